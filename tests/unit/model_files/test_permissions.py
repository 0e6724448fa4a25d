"""Who may read what is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_ternary.conversion.convert import convert
from onnx_ternary.options import OptimizeOptions
from tests.catalogue.case import matmul, model, ternary

SIDE = 64
ALWAYS = OptimizeOptions(min_elements=0, external_data="always")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def write(path: Path, *, external: bool = False, dense: bool = False) -> None:
    weight = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    made = model([matmul()], {"w": weight if dense else ternary(SIDE, SIDE)}, x_shape=("b", SIDE))
    location = f"{path.name}.data"
    onnx.save(made, path, save_as_external_data=external, location=location, size_threshold=0)


def modes(folder: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mode & 0o777 for each in folder.iterdir()}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
@pytest.mark.parametrize("dense", [False, True], ids=["rewritten", "copied"])
def test_result_is_as_readable_as_its_source(
    tmp_path: Path, external: bool, in_place: bool, mode: int, dense: bool
) -> None:
    path = tmp_path / "model.onnx"
    write(path, external=external, dense=dense)
    for each in tmp_path.iterdir():
        each.chmod(mode)
    options = ALWAYS if external else OptimizeOptions(min_elements=0)
    convert(path, path if in_place else tmp_path / "new.onnx", options, verify_result=False)
    assert set(modes(tmp_path).values()) == {mode}


def test_result_is_no_more_readable_than_the_data_of_its_source(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", external=True)
    (tmp_path / "model.onnx.data").chmod(0o600)
    convert(tmp_path / "model.onnx", tmp_path / "new.onnx", ALWAYS, verify_result=False)
    assert modes(tmp_path)["new.onnx"] == modes(tmp_path)["new.onnx.data"] == 0o600


@pytest.mark.parametrize("dense", [False, True], ids=["rewritten", "copied"])
def test_replaced_file_keeps_its_permissions(tmp_path: Path, dense: bool) -> None:
    write(tmp_path / "model.onnx", dense=dense)
    write(tmp_path / "old.onnx")
    (tmp_path / "old.onnx").chmod(0o600)
    options = OptimizeOptions(min_elements=0)
    convert(tmp_path / "model.onnx", tmp_path / "old.onnx", options, verify_result=False)
    assert modes(tmp_path)["old.onnx"] == 0o600
