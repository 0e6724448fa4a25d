"""Calls that a conversion wrote out, in the original."""

from __future__ import annotations

import onnx
import pytest

from onnx_ternary.verification import inlined
from onnx_ternary.verification.loaded_model import LoadedModel
from tests.catalogue.functions import doubling


def loaded(proto: onnx.ModelProto) -> LoadedModel:
    return LoadedModel.load(proto, "original", ())


def without_functions(model: onnx.ModelProto) -> LoadedModel:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.functions[:]
    changed.graph.node[0].CopyFrom(onnx.helper.make_node("Identity", ["x"], ["other"]))
    return loaded(changed)


def test_calls_the_converted_model_has_not_are_written_out() -> None:
    model = doubling(3)
    found = inlined.with_inlined_calls(loaded(model), without_functions(model)).proto
    assert [node.op_type for node in found.graph.node] == ["MatMul"] * 8


def test_calls_that_double_at_every_level_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlined, "MAX_NODES", 500)
    model = doubling(14)
    found = inlined.with_inlined_calls(loaded(model), without_functions(model)).proto
    assert sum(len(each.node) for each in (found.graph, *found.functions)) < 1000


def test_calls_that_stay_stay() -> None:
    model = loaded(doubling(3))
    assert inlined.with_inlined_calls(model, model) is model
