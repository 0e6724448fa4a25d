"""Checkpoints are trained once a session, and built once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.append(str(Path(__file__).parents[2] / "examples/chat"))

from make_checkpoint import LAYOUTS, write_checkpoints

STEPS = 60


class Trained:
    """Trained checkpoints by layout; a model is trained when one of its layouts is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, layout: str) -> Path:
        kind = next(kind for kind, layouts in LAYOUTS.items() if layout in layouts)
        if not (self._folder / layout).is_dir():
            write_checkpoints(self._folder, (kind,), STEPS)
        return self._folder / layout


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))
