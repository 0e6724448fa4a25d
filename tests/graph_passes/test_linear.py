"""Twice the model, twice the work: counted in calls of Python functions, not in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import node

SIDE = 32
COUNT = 40
Nodes = list[onnx.NodeProto]


def made(
    nodes: Nodes, outputs: list[str], functions: list[onnx.FunctionProto] | None = None
) -> onnx.ModelProto:
    weight = np.random.default_rng(0).integers(-1, 2, (SIDE, SIDE)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, (SIDE, SIDE))],
        [helper.make_tensor_value_info(name, 1, (SIDE, SIDE)) for name in outputs],
        [numpy_helper.from_array(weight, "w0"), numpy_helper.from_array(weight + 2, "dense")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def chain(op_type: str, source: str, count: int, **attributes: Any) -> Nodes:
    """``source``1 to ``source``count, each of the one before."""
    name = source.rstrip("0")
    return [
        node(
            op_type,
            [f"{name}{at}" if at or source != "x" else "x"],
            f"{name}{at + 1}",
            **attributes,
        )
        for at in range(count)
    ]


def products(count: int, x: str = "x", w: Callable[[int], str] = lambda at: "w0") -> Nodes:
    return [node("MatMul", [x, w(at)], f"y{at}") for at in range(count)]


def outputs(count: int) -> list[str]:
    return [f"y{at}" for at in range(count)]


def chain_on_the_weight(op_type: str, **attributes: Any) -> Callable[[int], onnx.ModelProto]:
    def build(count: int) -> onnx.ModelProto:
        nodes = [
            *chain(op_type, "w0", count, **attributes),
            node("MatMul", ["x", f"w{count}"], "y0"),
        ]
        return made(nodes, outputs(1))

    return build


def chain_on_the_activations(op_type: str, **attributes: Any) -> Callable[[int], onnx.ModelProto]:
    def build(count: int) -> onnx.ModelProto:
        nodes = [*chain(op_type, "x", count, **attributes), *products(count, f"x{count}")]
        return made(nodes, outputs(count))

    return build


def product_at_every_link(count: int) -> onnx.ModelProto:
    """Weights that are computed from each other."""
    nodes = [*chain("Neg", "w0", count), *products(count, w=lambda at: f"w{at + 1}")]
    return made(nodes, outputs(count))


def refused_at_every_link(count: int) -> onnx.ModelProto:
    """The same, ending in products that stay: sums are no longer ternary."""
    nodes = [node("Add", [f"w{at}", "dense"], f"w{at + 1}") for at in range(count)]
    return made([*nodes, *products(count, w=lambda at: f"w{at + 1}")], outputs(count))


def shared_weight(count: int) -> onnx.ModelProto:
    return made(products(count), outputs(count))


def expressions_that_share_a_chain(count: int) -> onnx.ModelProto:
    nodes = chain("Neg", "w0", count)
    nodes += [node("Abs", [f"w{count}"], f"a{at}") for at in range(count)]
    return made([*nodes, *products(count, w=lambda at: f"a{at}")], outputs(count))


def function_of_functions(count: int) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = [
        helper.make_function("local", "f0", ["a"], ["b"], [node("Neg", ["a"], "b")], opsets)
    ]
    for at in range(count):
        call = helper.make_node(f"f{at}", ["a"], ["b"], domain="local")
        functions.append(helper.make_function("local", f"f{at + 1}", ["a"], ["b"], [call], opsets))
    nodes = [
        helper.make_node(f"f{count}", ["w0"], ["w1"], domain="local"),
        node("MatMul", ["x", "w1"], "y0"),
    ]
    return made(nodes, outputs(1), functions)


def calls_of_one_function(count: int) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17)]
    body = [node("MatMul", ["a", "b"], "c")]
    functions = [helper.make_function("local", "f", ["a", "b"], ["c"], body, opsets)]
    nodes = [
        helper.make_node("f", ["x", "w0"], [f"y{at}"], domain="local", name=f"call{at}")
        for at in range(count)
    ]
    return made(nodes, outputs(count), functions)


def requests_to_quantize(count: int) -> onnx.ModelProto:
    """Steps an activation's rounding may come from."""
    nodes = [node("Round", ["x"], "x1")]
    nodes += [node("Max", [f"x{at}", "dense"], f"x{at + 1}") for at in range(1, count)]
    return made([*nodes, *products(count, f"x{count}")], outputs(count))


def nothing_ternary(count: int) -> onnx.ModelProto:
    """Nodes that are no products, and float products among them."""
    nodes = [node("Relu", ["x"], "x1")]
    for at in range(1, count):
        operator, operands = ("Relu", [f"x{at}"]) if at % 10 else ("MatMul", [f"x{at}", "dense"])
        nodes.append(node(operator, operands, f"x{at + 1}"))
    return made(nodes, [f"x{count}"])


MODELS: dict[str, Callable[[int], onnx.ModelProto]] = {
    "identities on the weight": chain_on_the_weight("Identity"),
    "transposes on the weight": chain_on_the_weight("Transpose", perm=[1, 0]),
    "casts on the weight": chain_on_the_weight("Cast", to=1),
    "identities on the activations": chain_on_the_activations("Identity"),
    "casts on the activations": chain_on_the_activations("Cast", to=1),
    "product at every link": product_at_every_link,
    "refused at every link": refused_at_every_link,
    "shared weight": shared_weight,
    "expressions that share a chain": expressions_that_share_a_chain,
    "function of functions": function_of_functions,
    "calls of one function": calls_of_one_function,
    "rounded activations": requests_to_quantize,
    "nothing ternary": nothing_ternary,
}
CALLS_PER_NODE = 400
"""Of functions, where every tenth node is a product; reading a node takes onnx_ir 50 of them."""


def num_calls(proto: onnx.ModelProto, **options: Any) -> int:
    """Functions called, Python's and C's, while a model is converted."""
    count = 0

    def called(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        optimize(proto, OptimizeOptions(**{"min_elements": 0, **options}))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("options", [{}, {"fold": False}, {"fuse_siblings": True}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_work_grows_with_the_model(name: str, options: dict[str, Any]) -> None:
    build = MODELS[name]
    num_calls(build(4), **options)  # what is imported or cached once
    half = num_calls(build(COUNT), **options)
    whole = num_calls(build(2 * COUNT), **options)
    assert whole < 2.3 * half


def test_node_that_is_no_product_costs_little() -> None:
    """A model of 100,000 nodes is converted in the time it takes to read it, a few times over."""
    calls = [num_calls(nothing_ternary(count)) for count in (10, 500, 1500)]
    assert calls[2] - calls[1] < CALLS_PER_NODE * 1000


@pytest.mark.parametrize("name", [name for name in MODELS if " on the " in name])
def test_any_length_works(name: str) -> None:
    optimize(MODELS[name](1200), OptimizeOptions(min_elements=0))
