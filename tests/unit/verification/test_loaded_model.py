"""Sessions of a model: where an edited copy finds data, and what an error advises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
from onnx_ternary.runtime import onnxruntime_version
from onnx_ternary.verification.loaded_model import LoadedModel


def table(rows: int) -> onnx.ModelProto:
    """A row of a table by its number."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((rows, 4)).astype(np.float32), "t")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "ids"], ["y"], name="lookup")],
        "graph",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, (1,))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4))],
        [weights],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def test_a_run_that_fails_asks_for_other_inputs() -> None:
    model = LoadedModel.load(table(3), "original", ())
    with pytest.raises(ModelError, match=r"cannot run .*--inputs") as caught:
        model.run({"ids": np.array([9])}, ["y"], optimized=False)
    assert "--library" not in str(caught.value)
    assert "checker" not in str(caught.value)


def test_a_model_that_does_not_load_asks_for_its_operators() -> None:
    unknown = table(3)
    unknown.graph.node[0].op_type = "Unknown"
    with pytest.raises(ModelError, match="--library"):
        LoadedModel.load(unknown, "original", ()).session(None, optimized=False)


@pytest.mark.parametrize("version", [(1, 20), onnxruntime_version()])
def test_an_edited_copy_finds_its_data(
    version: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older onnxruntime cannot be told where the data of a model in memory lies."""
    proto = table(3)
    path = tmp_path / "model.onnx"
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    onnx.save(proto, path, save_as_external_data=True, location="x.data", size_threshold=0)
    model = LoadedModel.load(path, "original", ())
    monkeypatch.setattr("onnx_ternary.runtime.onnxruntime_version", lambda: version)
    session = model.session(model.proto, optimized=False)
    (y,) = session.run(None, {"ids": np.array([2])})
    np.testing.assert_array_equal(y, expected[[2]])
