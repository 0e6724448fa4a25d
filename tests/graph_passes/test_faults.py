"""Constant expressions that end the process in onnxruntime: refused, in a process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_ternary.conversion.optimize import optimize
from tests.catalogue.case import matmul, ternary
from tests.support.command_line import run_process

Array = NDArray[Any]
LOWEST = np.array([np.iinfo(np.int32).min], np.int32)
MINUS_ONE = np.array([-1], np.int32)
# Operators no weight is made by, and attributes that end the process.
LAYERS: dict[str, dict[str, Any]] = {
    "EyeLike": {},
    "LayerNormalization": {"axis": 2**31},
    "RegexFullMatch": {"pattern": "x"},
    "Unique": {"axis": 1},
}
TO_FLOAT = helper.make_node("Cast", ["i"], ["s"], to=TensorProto.FLOAT)


def scaled(nodes: Sequence[onnx.NodeProto], **constants: Array) -> onnx.ModelProto:
    """``x @ (v * s)``: a ternary ``v`` (64, 64), and ``s`` as the nodes compute it."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Mul", ["v", "s"], ["w"], "scale"), matmul("x", "w")],
        "graph",
        [helper.make_tensor_value_info("x", 1, (1, 64))],
        [helper.make_tensor_value_info("y", 1, None)],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in {"v": ternary(64, 64), **constants}.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def divide(one: str, other: str, op_type: str = "Div") -> onnx.NodeProto:
    return helper.make_node(op_type, [one, other], ["i"], "divide")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            scaled([divide("a", "b"), TO_FLOAT], a=LOWEST, b=MINUS_ONE),
            "Div 'divide' may divide -2147483648 by -1",
        ),
        (
            scaled(
                [
                    helper.make_node("Neg", ["one"], ["b"]),
                    helper.make_node("Identity", ["low"], ["a"]),
                    divide("a", "b"),
                    TO_FLOAT,
                ],
                low=LOWEST,
                one=-MINUS_ONE,
            ),
            "Div 'divide' may divide -2147483648 by -1",
        ),
        (
            scaled(
                [divide("a", "b"), TO_FLOAT], a=LOWEST.astype(np.uint8), b=np.zeros(1, np.uint8)
            ),
            "Div 'divide' divides by zero",
        ),
        (
            scaled([divide("a", "b", "Mod"), TO_FLOAT], a=LOWEST, b=0 * LOWEST),
            "Mod 'divide' divides by zero",
        ),
        *(
            (
                scaled(
                    [helper.make_node("GatherND", ["a", "b"], ["s"], "pick", batch_dims=dims)],
                    a=np.ones((2, 2), np.float32),
                    b=np.zeros((1, 2), np.int64),
                ),
                f"GatherND 'pick' has batch_dims = {dims}, expected 0 or more",
            )
            for dims in (-(2**63), -(2**31))
        ),
        *(
            (
                scaled(
                    [helper.make_node(op_type, ["a", "b"], ["s"], "layer", **attributes)],
                    a=np.ones((2, 2), np.float32),
                    b=np.ones(2, np.float32),
                ),
                f"{op_type} 'layer', which this version does not evaluate",
            )
            for op_type, attributes in LAYERS.items()
        ),
    ],
    ids=[
        *("lowest", "computed", "zero", "modulo", "gather", "gather_near"),
        *LAYERS,
    ],
)
def test_what_ends_the_process_does_not_run(
    made: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(made, path)
    assert message in " ".join(run_process("inspect", path, "--json").stdout.split())


@pytest.mark.parametrize(
    ("dividend", "divisor"),
    [(7, 3), (-7, -1), (np.iinfo(np.int32).min, 2), (np.iinfo(np.int32).max, -1)],
)
def test_other_integers_are_divided(dividend: int, divisor: int) -> None:
    a, b = np.array([dividend], np.int32), np.array([divisor], np.int32)
    result = optimize(scaled([divide("a", "b"), TO_FLOAT], a=a, b=b))
    assert len(result.report.rewrites) == 1


def test_floats_are_divided_by_zero_as_ever() -> None:
    """One over infinity is zero, so that the weight is finite again."""
    nodes = [
        helper.make_node("Div", ["one", "zero"], ["infinite"]),
        helper.make_node("Div", ["one", "infinite"], ["none"]),
        helper.make_node("Add", ["none", "one"], ["s"]),
    ]
    one = np.ones(1, np.float32)
    assert len(optimize(scaled(nodes, one=one, zero=0 * one)).report.rewrites) == 1
