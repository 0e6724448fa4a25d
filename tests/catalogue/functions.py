"""Products inside local functions, and what their calls may not decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    Array,
    Case,
    K,
    Miss,
    changed,
    column_scales,
    in_float64,
    matmul,
    model,
    node,
    ternary,
)

LOCAL = helper.make_opsetid("local", 1)
SQUARE = ternary(K, K, scale=0.5)


def constant(array: Array, name: str) -> onnx.NodeProto:
    return helper.make_node(
        "Constant", [], [name], name=f"make_{name}", value=numpy_helper.from_array(array)
    )


def function(
    nodes: Sequence[onnx.NodeProto],
    *,
    name: str = "Linear",
    inputs: Sequence[str] = ("x",),
    attributes: Sequence[str] = (),
    imports: Mapping[str, int] | None = None,
    overload: str = "",
) -> onnx.FunctionProto:
    made = helper.make_function(
        "local",
        name,
        list(inputs),
        ["y"],
        list(nodes),
        [helper.make_opsetid(*each) for each in (imports or {"": 17, "local": 1}).items()],
        list(attributes),
    )
    if overload:
        made.overload = overload
    return made


def call(
    x: str = "x", y: str = "y", *, name: str = "Linear", label: str = "call", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(name, x.split(), [y], domain="local", name=label, **attributes)


def calling(
    functions: Sequence[onnx.FunctionProto],
    nodes: Sequence[onnx.NodeProto] | None = None,
    initializers: Mapping[str, Array] | None = None,
    **kwargs: Any,
) -> onnx.ModelProto:
    made = model(
        [call()] if nodes is None else nodes,
        initializers or {},
        functions=functions,
        opsets=[LOCAL],
        **kwargs,
    )
    # Not every version of onnx infers shapes through functions.
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    return made


def in_function() -> onnx.ModelProto:
    return calling([function([constant(ternary(), "w"), matmul()])])


def called_twice() -> Case:
    """One body, one index in the file."""
    made = calling(
        [function([constant(SQUARE, "w"), matmul()])],
        [call("x", "h", label="first"), call("h", "y", label="second")],
    )
    return Case(made, ("MatMul",), (in_float64(SQUARE),))


def shared_in_function() -> Case:
    """Two products of one function share a weight; one has a bias and a scale to absorb."""
    made = calling(
        [
            function(
                [
                    constant(SQUARE, "w"),
                    constant(column_scales(K), "c"),
                    constant(np.array(2, F32), "two"),
                    matmul("x", "w", "h", "first"),
                    node("Mul", ["h", "two"], "h2"),
                    helper.make_node("Gemm", ["h2", "w", "c"], ["y"], name="second"),
                ]
            )
        ],
    )
    return Case(made, ("MatMul -> Mul", "Gemm"), (in_float64(SQUARE) * 2, in_float64(SQUARE)))


def nested() -> Case:
    """Both the function and the one it calls multiply."""
    inner = function([constant(SQUARE, "w"), matmul("x", "w", "y", "inner")])
    outer = function(
        [constant(SQUARE, "v"), call("x", "h"), matmul("h", "v", "y", "outer")], name="Block"
    )
    made = calling([inner, outer], [call(name="Block", label="block")])
    return Case(made, ("MatMul", "MatMul"), (in_float64(SQUARE), in_float64(SQUARE)))


def branching(branches: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    graphs = {
        branch: helper.make_graph(
            [only],
            branch,
            [],
            [helper.make_tensor_value_info(only.output[0], TensorProto.FLOAT, None)],
        )
        for branch, only in branches.items()
    }
    return helper.make_node("If", ["positive"], ["y"], name="choice", **graphs)


BRANCHES = ("then_branch", "else_branch")
CONDITION = [
    node("ReduceMax", ["x"], "top", keepdims=0),
    node("Greater", ["top", "zero"], "positive"),
]
ZERO = np.array(0, F32)


def branches_in_function() -> Case:
    """The weight is the function's, the products are in the branches of its If."""
    choice = branching(
        {each: matmul("x", "w", f"y_{each}", f"product_{each}") for each in BRANCHES}
    )
    made = calling(
        [function([constant(ternary(), "w"), constant(ZERO, "zero"), *CONDITION, choice])]
    )
    return Case(made, ("MatMul", "MatMul"), (in_float64(ternary()),) * 2)


def called_in_branches() -> Case:
    choice = branching({each: call("x", f"y_{each}", label=each) for each in BRANCHES})
    made = calling(
        [function([constant(ternary(), "w"), matmul()])], [*CONDITION, choice], {"zero": ZERO}
    )
    return Case(made, ("MatMul",), (in_float64(ternary()),))


def overloads() -> Case:
    """Two functions of one name, each with its own weight."""
    weights = [SQUARE, ternary(K, K, scale=0.25, seed=1)]
    functions = [
        function([constant(weight, "w"), matmul("x", "w", "y", f"product_{name}")], overload=name)
        for name, weight in zip("ab", weights, strict=True)
    ]
    calls = [call("x", "h", label="first"), call("h", "y", label="second")]
    for each, overload in zip(calls, "ab", strict=True):
        each.overload = overload
    made = calling(functions, calls, ir_version=10)
    return Case(made, ("MatMul", "MatMul"), tuple(map(in_float64, weights)))


def dequantized_in_function() -> Case:
    levels = ternary(scale=1.0)
    made = calling(
        [
            function(
                [
                    constant(levels.astype(np.int8), "codes"),
                    constant(np.array(0.5, F32), "scale"),
                    node("DequantizeLinear", ["codes", "scale"], "w"),
                    matmul(),
                ]
            )
        ]
    )
    return Case(made, ("MatMul",), (in_float64(levels) / 2,))


def cone_in_function() -> Case:
    """The expression calls another function."""
    levels = ternary(scale=1.0)
    double = function([node("Add", ["x", "x"], "y")], name="Double")
    linear = function(
        [
            constant(levels, "levels"),
            call("levels", "w", name="Double", label="double"),
            matmul(),
        ]
    )
    return Case(calling([double, linear]), ("MatMul",), (in_float64(levels) * 2,))


HITS: dict[str, Callable[[], Case]] = {
    "in_function": lambda: Case(in_function(), ("MatMul",), (in_float64(ternary()),)),
    "function_called_twice": called_twice,
    "function_shared_weight": shared_in_function,
    "function_nested": nested,
    "function_with_branches": branches_in_function,
    "function_called_in_branches": called_in_branches,
    "function_overloads": overloads,
    "function_dequantized": dequantized_in_function,
    "function_cone": cone_in_function,
}


def referring(made: onnx.NodeProto, name: str, kind: Any) -> onnx.NodeProto:
    """The node with an attribute that its function's calls give."""
    made.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=kind))
    return made


def attribute_weight() -> onnx.ModelProto:
    made = referring(helper.make_node("Constant", [], ["w"], name="make_w"), "value", TENSOR)
    weight = numpy_helper.from_array(ternary())
    return calling([function([made, matmul()], attributes=["value"])], [call(value=weight)])


def weight_input(*, through: bool = False) -> onnx.ModelProto:
    functions = [function([node("Transpose", ["w"], "t"), matmul("x", "t")], inputs=("x", "w"))]
    nodes = [call("x weight")]
    if through:
        functions.append(function([call("a b")], name="Block", inputs=("a", "b")))
        nodes = [call("x weight", name="Block", label="block")]
    return calling(functions, nodes, {"weight": np.ascontiguousarray(ternary().T)})


def attribute_trans_b() -> onnx.ModelProto:
    gemm = referring(helper.make_node("Gemm", ["x", "w"], ["y"], name="product"), "transB", INT)
    return calling(
        [function([constant(ternary(), "w"), gemm], attributes=["transB"])], [call(transB=0)]
    )


def attribute_in_cone() -> onnx.ModelProto:
    turn = referring(node("Transpose", ["v"], "w"), "perm", AttributeProto.INTS)
    turned = np.ascontiguousarray(ternary().T)
    return calling(
        [function([constant(turned, "v"), turn, matmul()], attributes=["perm"])],
        [call(perm=[1, 0])],
    )


def float_weight_input() -> onnx.ModelProto:
    return calling(
        [function([matmul()], inputs=("x", "w"))],
        [call("x weight")],
        {"weight": changed(ternary(), 1, 3, 0.25025)},
    )


INT, TENSOR = AttributeProto.INT, AttributeProto.TENSOR


def given(made: onnx.ModelProto, pattern: str = "MatMul") -> Case:
    """The weight or an attribute comes from the call, which is written out."""
    return Case(made, (pattern,), (in_float64(ternary()),), noted=True)


HITS.update(
    {
        "function_attribute_weight": lambda: given(attribute_weight()),
        "function_weight_input": lambda: given(weight_input()),
        "function_weight_input_nested": lambda: given(weight_input(through=True)),
        "function_attribute_of_product": lambda: given(attribute_trans_b(), "Gemm"),
        "function_attribute_in_cone": lambda: given(attribute_in_cone()),
    }
)
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "function_one_weight_off": lambda: Miss(
        calling([function([constant(changed(ternary(), 1, 3, 0.25025), "w"), matmul()])]),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "function_weight_input_float": lambda: Miss(
        float_weight_input(),
        "weight 'w' is an input of local function local::Linear, and no call that is left gives a "
        "ternary one ('call' gives 'weight'): weight has 2 distinct magnitudes in column 3, "
        "expected 1",
    ),
    "function_weight_input_other_opset": lambda: Miss(
        calling(
            [function([matmul()], inputs=("x", "w"), imports={"": 16})],
            [call("x weight")],
            {"weight": ternary()},
        ),
        "local function local::Linear imports opset 16, the model 17; the op's function body "
        "serves one opset",
    ),
    "function_excluded": lambda: Miss(weight_input(), "excluded by '*'", {"exclude": ("*",)}),
    "function_without_body": lambda: Miss(
        in_function(),
        "it is inside local function local::Linear, where ONNX Runtime finds the types of the op "
        "through its function body only, and that is switched off",
        {"function_body": False},
    ),
    "function_other_opset": lambda: Miss(
        calling([function([constant(ternary(), "w"), matmul()], imports={"": 16})]),
        "local function local::Linear imports opset 16, the model 17; the op's function body "
        "serves one opset",
    ),
}


def doubling(levels: int) -> onnx.ModelProto:
    """Functions of two calls of the one below: 2**levels products, written out."""
    functions = [function([matmul()], inputs=("x", "w"))]
    for at in range(levels):
        inner = "Linear" if at == 0 else f"Level{at - 1}"
        body = [
            call("a w", "h", name=inner, label="one"),
            call("h w", "y", name=inner, label="two"),
        ]
        functions.append(function(body, name=f"Level{at}", inputs=("a", "w")))
    return calling(functions, [call("x weight", name=f"Level{levels - 1}")], {"weight": SQUARE})
