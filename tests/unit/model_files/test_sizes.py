"""Sizes on disk, told without parsing: what is added up is what parsing finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from onnx_ternary.model_files.load import file_bytes
from onnx_ternary.model_files.sizes import stored_bytes
from tests.support.parses import count_parses
from tests.support.two_products import two_products, write_two_products


@pytest.mark.parametrize("data", ["w", "weights.bin", "d" * 128, "e" * 200])
@pytest.mark.parametrize("constant_node", [False, True], ids=["initializers", "Constant node"])
def test_data_files_are_found_without_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, constant_node: bool
) -> None:
    path = tmp_path / "model.onnx"
    write_two_products(path, data, constant_node=constant_node)
    parses: Counter[bytes] = count_parses(monkeypatch)
    found = stored_bytes(path)
    assert not parses
    assert found == file_bytes(path)
    assert found == path.stat().st_size + (tmp_path / data).stat().st_size
    assert parses  # of file_bytes


def test_a_model_in_one_file_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_products(), path)
    assert stored_bytes(path) == path.stat().st_size


@pytest.mark.parametrize("location", ["../outside.bin", "/dev/zero", "", "missing.bin", "a\0b"])
def test_only_files_below_the_folder_count(tmp_path: Path, location: str) -> None:
    path = tmp_path / "models" / "model.onnx"
    path.parent.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    entry = onnx.StringStringEntryProto(key="location", value=location)
    tensor = onnx.TensorProto(name="w", external_data=[entry])
    path.write_bytes(onnx.ModelProto(graph={"initializer": [tensor]}).SerializeToString())
    assert stored_bytes(path) in (0, path.stat().st_size)


@pytest.mark.parametrize("content", [b"", b"\x0a\x08location\x12", b"\x0a\x08location\x12\xff"])
def test_what_is_no_model_is_no_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert stored_bytes(path) == len(content)
    assert stored_bytes(tmp_path) == 0
    assert stored_bytes(tmp_path / "missing.onnx") == 0
