"""The nodes that function bodies are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_ternary.op.body_nodes import MIN_IR_VERSION, BodyNodes, NoBody, early_refusal

VALUE = np.array([[3, 1, 2], [-1, 5, 0]], np.float32)


@pytest.mark.parametrize(
    ("num_nodes", "opset", "ir_version", "expected"),
    [
        (0, 17, MIN_IR_VERSION, "the model has no Op node"),
        (1, 14, MIN_IR_VERSION, "the model's opset is 14"),
        (1, 17, MIN_IR_VERSION - 1, "the model's IR version is 7"),
    ],
)
def test_models_that_get_no_body(
    num_nodes: int, opset: int, ir_version: int, expected: str
) -> None:
    refusal = early_refusal("Op", num_nodes, opset, ir_version, min_opset=15)
    assert isinstance(refusal, NoBody)
    assert refusal.reason.startswith(expected)


def test_other_models_get_one() -> None:
    assert early_refusal("Op", 1, 15, MIN_IR_VERSION, min_opset=15) is None


def run(build: Callable[[BodyNodes], str], opset: int, x: NDArray[np.float32]) -> NDArray[Any]:
    """What nodes compute of x."""
    nodes = BodyNodes(opset)
    output = build(nodes)
    graph = helper.make_graph(
        nodes.protos,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [onnx.ValueInfoProto(name=output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("opset", [15, 17, 18])
def test_what_nodes_compute(opset: int) -> None:
    cases: list[tuple[Callable[[BodyNodes], str], NDArray[Any]]] = [
        (lambda nodes: nodes.reduce_last("ReduceMax", "x"), VALUE.max(axis=-1, keepdims=True)),
        (lambda nodes: nodes.reduce_last("ReduceMean", "x"), VALUE.mean(axis=-1, keepdims=True)),
        (lambda nodes: nodes.last_dim("x"), np.array([3])),
        (lambda nodes: nodes.entry(nodes("Shape", "x"), 0), np.array([2])),
        (lambda nodes: nodes.first("x", nodes.constant([2], np.int64), [1]), VALUE[:, :2]),
        (lambda nodes: nodes.sort("x")[0], np.sort(VALUE)),
        (lambda nodes: nodes.sort("x")[1], np.argsort(VALUE)),
        (lambda nodes: nodes.reshape("x", [3, -1]), VALUE.reshape(3, 2)),
    ]
    for build, expected in cases:
        assert np.array_equal(run(build, opset, VALUE), expected)


@pytest.mark.parametrize("opset", [17, 18])
def test_a_maximum_of_no_rows_keeps_its_axis(opset: int) -> None:
    found = run(lambda nodes: nodes.reduce_last("ReduceMax", "x"), opset, np.zeros((0, 3), "f"))
    assert found.shape == (0, 1)


def test_names_of_outputs_never_meet() -> None:
    nodes = BodyNodes(17)
    for _ in range(3):
        nodes.sort(nodes("Neg", "x"))
    names = [name for node in nodes.protos for name in node.output]
    assert len(set(names)) == len(names)
