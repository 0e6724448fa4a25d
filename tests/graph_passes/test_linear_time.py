"""Twice the model takes at most a little more than twice the work.

Work is the number of functions and methods that run, C's included, not time: a count is the same on
every machine. What a conversion does once is taken off by a third size.
"""

from __future__ import annotations

import cProfile
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import F32, Array, matmul, model, ternary

SIDE = 8
SMALL = 40
# Of the growth from twice to four times the size to the growth from once to twice it. Linear work
# gives 2, quadratic work 4; sorted containers and maps that grow are above 2.
MOST = 2.4
LONG = 900
# onnx.checker takes calls within calls to this depth, four times.
LEVELS = 24
LOCAL = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
WEIGHT = ternary(SIDE, SIDE)


def made(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array] | None = None, **more: Any
) -> onnx.ModelProto:
    return model(nodes, constants or {"w": WEIGHT}, x_shape=("b", SIDE), **more)


def chain(
    op_type: str, count: int, first: str, last: str, **attributes: Any
) -> list[onnx.NodeProto]:
    names = [first, *(f"{op_type}{last}{at}" for at in range(count - 1)), last]
    return [
        helper.make_node(op_type, [one], [other], **attributes)
        for one, other in itertools.pairwise(names)
    ]


def summed(names: Sequence[str]) -> list[onnx.NodeProto]:
    """The sum, without a node of many operands or a graph of many outputs.

    onnx_ir looks at all of these where it changes one.
    """
    nodes, total = [], names[0]
    for name in names[1:]:
        nodes.append(helper.make_node("Add", [total, name], [f"sum {name}"]))
        total = f"sum {name}"
    return [*nodes, helper.make_node("Relu", [total], ["y"])]


def products(count: int) -> onnx.ModelProto:
    names = ["x", *(f"p{at}" for at in range(count - 1)), "y"]
    return made([matmul(a, "w", b, f"product {b}") for a, b in itertools.pairwise(names)])


def weights(count: int) -> onnx.ModelProto:
    names = ["x", *(f"p{at}" for at in range(count - 1)), "y"]
    pairs = enumerate(itertools.pairwise(names))
    nodes = [matmul(one, f"w{at}", other, f"product {at}") for at, (one, other) in pairs]
    return made(nodes, {f"w{at}": ternary(SIDE, SIDE, seed=at) for at in range(count)})


def siblings(count: int) -> onnx.ModelProto:
    outputs = [f"p{at}" for at in range(count)]
    nodes = [matmul("x", "w", each, f"product {each}") for each in outputs]
    return made([*nodes, *summed(outputs)])


def weight_chain(op_type: str, **attributes: Any) -> Callable[[int], onnx.ModelProto]:
    return lambda count: made([*chain(op_type, count, "w", "v", **attributes), matmul("x", "v")])


def activation_chain(op_type: str, **attributes: Any) -> Callable[[int], onnx.ModelProto]:
    def make(count: int) -> onnx.ModelProto:
        before = chain(op_type, count, "x", "a", **attributes)
        after = chain(op_type, count, "b", "y", **attributes)
        return made([*before, matmul("a", "w", "b"), *after])

    return make


def cone(count: int) -> onnx.ModelProto:
    """One expression of many nodes."""
    return made([*chain("Abs", count, "w", "v"), matmul("x", "v")])


def products_along_a_cone(count: int) -> onnx.ModelProto:
    """Every value of one expression is the weight of a product."""
    steps = chain("Neg", count, "w", "v")
    weights, outputs = [each.output[0] for each in steps], [f"p{at}" for at in range(count)]
    pairs = zip(weights, outputs, strict=True)
    products = [matmul("x", weight, output, f"product {output}") for weight, output in pairs]
    return made([*steps, *products, *summed(outputs)])


def cones_of_one_constant(count: int) -> onnx.ModelProto:
    outputs = [f"p{at}" for at in range(count)]
    nodes = []
    for each in outputs:
        nodes.append(helper.make_node("Neg", ["w"], [f"v{each}"]))
        nodes.append(matmul("x", f"v{each}", each, f"product {each}"))
    return made([*nodes, *summed(outputs)])


def cone_of_many_constants(count: int) -> onnx.ModelProto:
    names = ["w", *(f"v{at}" for at in range(count - 1)), "v"]
    nodes = [
        helper.make_node("Mul", [one, f"{other}w"], [other])
        for one, other in itertools.pairwise(names)
    ]
    constants = {"w": WEIGHT} | {f"{each}w": np.ones(1, F32) for each in names[1:]}
    return made([*nodes, matmul("x", "v")], constants)


def functions(count: int) -> onnx.ModelProto:
    """Each calls the one before."""
    bodies = [[helper.make_node("MatMul", ["a", "b"], ["c"], name="product")]]
    bodies += [
        [helper.make_node(f"f{at}", ["a", "b"], ["c"], domain="local")] for at in range(count - 1)
    ]
    protos = [
        helper.make_function("local", f"f{at}", ["a", "b"], ["c"], body, LOCAL)
        for at, body in enumerate(bodies)
    ]
    call = helper.make_node(f"f{count - 1}", ["x", "w"], ["y"], domain="local")
    return made([call], functions=protos, opsets=LOCAL[1:])


def calls(count: int) -> onnx.ModelProto:
    body = [helper.make_node("MatMul", ["a", "b"], ["c"], name="product")]
    function = helper.make_function("local", "f", ["a", "b"], ["c"], body, LOCAL)
    names = ["x", *(f"p{at}" for at in range(count - 1)), "y"]
    nodes = [
        helper.make_node("f", [a, "w"], [b], domain="local") for a, b in itertools.pairwise(names)
    ]
    return made(nodes, functions=[function], opsets=LOCAL[1:])


def cones_of_calls(count: int) -> onnx.ModelProto:
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("local", "f", ["a"], ["b"], body, LOCAL)
    nodes = chain("f", count, "w", "v", domain="local")
    return made([*nodes, matmul("x", "v")], functions=[function], opsets=LOCAL[1:])


def branches(count: int) -> onnx.ModelProto:
    """Subgraphs side by side."""
    nodes = []
    names = ["x", *(f"p{at}" for at in range(count - 1)), "y"]
    for at, (one, other) in enumerate(itertools.pairwise(names)):
        then, els = (
            helper.make_graph(
                [matmul(one, "w", f"{kind}{at}", f"product {kind}{at}")],
                f"{kind}{at}",
                [],
                [helper.make_tensor_value_info(f"{kind}{at}", TensorProto.FLOAT, None)],
            )
            for kind in ("t", "e")
        )
        nodes.append(helper.make_node("If", ["yes"], [other], then_branch=then, else_branch=els))
    return made(nodes, {"w": WEIGHT, "yes": np.array(True)})


def scaled(count: int) -> onnx.ModelProto:
    """Factors behind a product, which it absorbs."""
    names = ["a", *(f"s{at}" for at in range(count - 1)), "y"]
    nodes = [helper.make_node("Mul", [a, "two"], [b]) for a, b in itertools.pairwise(names)]
    return made([matmul("x", "w", "a"), *nodes], {"w": WEIGHT, "two": np.array(2, F32)})


KINDS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "products": products,
    "weights": weights,
    "siblings": siblings,
    "identities of a weight": weight_chain("Identity"),
    "casts of a weight": weight_chain("Cast", to=TensorProto.FLOAT),
    "transposes of a weight": weight_chain("Transpose"),
    "identities of activations": activation_chain("Identity"),
    "casts of activations": activation_chain("Cast", to=TensorProto.FLOAT),
    "rounds of activations": activation_chain("Round"),
    "cone": cone,
    "products along a cone": products_along_a_cone,
    "cones of one constant": cones_of_one_constant,
    "cone of many constants": cone_of_many_constants,
    "functions": functions,
    "calls": calls,
    "cones of calls": cones_of_calls,
    "branches": branches,
    "scaled": scaled,
}


OPTIONS = OptimizeOptions(min_elements=0, fuse_siblings=True, max_fold_steps=1 << 30)


def work(content: bytes) -> int:
    """Calls while a model is converted."""
    before = sys.getprofile()
    counter = cProfile.Profile()
    sys.setprofile(None)  # one profiler at a time
    try:
        counter.runcall(optimize, content, OPTIONS)
    finally:
        sys.setprofile(before)
    return sum(each.callcount for each in counter.getstats())


@pytest.mark.parametrize("kind", KINDS)
def test_twice_the_model_is_twice_the_work(kind: str) -> None:
    size = LEVELS if kind == "functions" else SMALL
    contents = [KINDS[kind](size << at).SerializeToString() for at in range(3)]
    optimize(contents[0], OPTIONS)  # imports and caches
    once, twice, four_times = map(work, contents)
    assert four_times - twice <= MOST * (twice - once)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if " of " in kind or kind in ("cone", "scaled")]
)
def test_length_is_no_matter_of_recursion(kind: str) -> None:
    content = KINDS[kind](LONG)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(LONG // 2 - 10)  # the usual limit would take longer models
    try:
        report = optimize(content, OptimizeOptions(min_elements=0)).report
    finally:
        sys.setrecursionlimit(before)
    assert report.rewrites or report.rejections
