"""Models of old opsets and IR versions: converted, and run with and without the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnx_ternary


def model(opset: int, ir_version: int) -> onnx.ModelProto:
    levels = np.random.default_rng(opset).integers(-1, 2, (96, 40)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 40])],
        [numpy_helper.from_array(levels * np.float32(0.3), "w")],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@pytest.mark.parametrize(("opset", "ir_version"), [(11, 6), (12, 7), (13, 7), (15, 8), (21, 10)])
def test_old_model_runs_without_the_library(opset: int, ir_version: int, tmp_path: Path) -> None:
    original = model(opset, ir_version)
    result = onnx_ternary.optimize(original)
    result.save(tmp_path / "converted.onnx")
    assert result.report.has_function_body
    assert onnx.load(tmp_path / "converted.onnx").ir_version == max(ir_version, 8)
    raised = [note for note in result.report.notes if "IR version raised" in note]
    assert len(raised) == (ir_version < 8)

    feed = {"x": np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)}
    (expected,) = ort.InferenceSession(original.SerializeToString()).run(None, feed)
    (plain,) = ort.InferenceSession(tmp_path / "converted.onnx").run(None, feed)
    np.testing.assert_array_equal(plain, expected)
    report = onnx_ternary.verify(original, tmp_path / "converted.onnx", inputs=feed)
    assert report.passed, report.summary()


def test_no_function_body_keeps_the_ir_version() -> None:
    options = onnx_ternary.OptimizeOptions(function_body=False)
    converted = onnx_ternary.optimize(model(13, 7), options).to_proto()
    assert converted.ir_version == 7
    assert not converted.functions
