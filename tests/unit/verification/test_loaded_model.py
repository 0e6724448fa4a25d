"""What a session's error advises: something that can help."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError
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
