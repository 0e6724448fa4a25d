"""Folders with models in them."""

from __future__ import annotations

from pathlib import Path

import onnx

from tests.catalogue.case import simple, ternary


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(simple(ternary()), path)


def files(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
