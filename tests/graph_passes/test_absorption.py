"""Any chain of scales and biases around a product gives the original's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.op.nodes import op_nodes
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import Array, K, N
from tests.catalogue.matmul import surrounded
from tests.support.checks import dense, tensors

OPTIONS = OptimizeOptions(min_elements=0)


@st.composite
def numbers(draw: st.DrawFn, *, positive: bool) -> Array:
    """A constant of one element, of N, or of a shape that broadcasts differently."""
    shape = draw(st.sampled_from([(), (1,), (1, 1), (N,), (1, N), (2, 1), (2, N)]))
    values = st.floats(0.125, 4, width=32) if positive else st.floats(-4, 4, width=32)
    count = int(np.prod(shape, dtype=int))
    drawn = draw(st.lists(values, min_size=count, max_size=count))
    return np.array(drawn, np.float32).reshape(shape)


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, Array]]:
    op_types = draw(st.lists(st.sampled_from(["Mul", "Div", "Add", "Sub"]), max_size=4))
    chain = []
    for op_type in op_types:
        positive = op_type == "Div" or draw(st.booleans())
        chain.append((op_type, draw(numbers(positive=positive))))
    return chain


@settings(deadline=None, max_examples=150)
@given(
    before=st.none()
    | st.tuples(st.sampled_from(["Mul", "Div"]), st.floats(0.125, 4, width=32).map(np.float32)),
    after=chains(),
    x_shape=st.sampled_from([(2, K), ("batch", K), (K,), (1, 2, K), None]),
)
def test_any_chain(before: Any, after: list[tuple[str, Array]], x_shape: Any) -> None:
    if before:
        before = (before[0], np.asarray(before[1]))
    case = surrounded(before, after, pattern="", x_shape=x_shape)
    result = optimize(case.model, OPTIONS)
    (row,) = result.report.rewrites
    assert row.pattern.count("->") <= len(after) + bool(before)
    shape = (2, K) if x_shape is None else tuple(d if isinstance(d, int) else 2 for d in x_shape)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    # In float64 what is left to see is the rounding of scale and bias to float32.
    expected = evaluate(case.model, x)
    found = evaluate_converted(result, x)
    assert found.shape == expected.shape
    bound = 2.0**-22 * evaluate(case.model, x, magnitudes=True)
    assert (np.abs(found - expected) <= bound).all()


def constants(model: Any) -> dict[str, Array]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


OPERATIONS = {
    "Mul": np.multiply,
    "Div": np.divide,
    "Add": np.add,
    "Sub": np.subtract,
}


def evaluate(model: Any, x: Array, *, magnitudes: bool = False) -> Array:
    """The chain in float64; with ``magnitudes``, of absolute values that only add up."""
    values: dict[str, Array] = {"x": x, **constants(model)}
    values = {name: np.asarray(value, np.float64) for name, value in values.items()}
    if magnitudes:
        values = {name: np.abs(value) for name, value in values.items()}
    for node in model.graph.node:
        first, second = (values[name] for name in node.input)
        operation: Any = np.matmul if node.op_type == "MatMul" else OPERATIONS[node.op_type]
        if magnitudes and node.op_type == "Sub":
            operation = np.add
        values[node.output[0]] = operation(first, second)
    return values["y"]


def evaluate_converted(result: Any, x: Array) -> Array:
    (op,) = op_nodes(result.model)
    matrix, bias = dense(op), tensors(op)[3].astype(np.float64)
    values = {"x": x.astype(np.float64)}
    for name, value in result.model.graph.initializers.items():
        values[name] = value.const_value.numpy().astype(np.float64)
    for node in result.model.graph:
        if node is op:
            values[node.outputs[0].name] = values[node.inputs[0].name] @ matrix + bias
            continue
        first, second = (values[value.name] for value in node.inputs)
        values[node.outputs[0].name] = OPERATIONS[node.op_type](first, second)
    return values["y"]
