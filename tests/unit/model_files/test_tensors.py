"""Tensors that wait in a file are those in memory."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnx_ternary import optimize
from onnx_ternary.model_files import tensors
from tests.catalogue.case import simple, ternary


def test_spooled_conversion_is_the_one_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    spool = tmp_path / "spool"
    spool.mkdir()
    onnx.save(simple(ternary(512, 512), x_shape=("batch", 512)), path)
    kept = optimize(path).to_proto()
    spooled = optimize(path, spool=tensors.Spool(spool))
    assert any(tensors.external_tensors(spooled.model))
    assert spooled.to_proto() == kept
