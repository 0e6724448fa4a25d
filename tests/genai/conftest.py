"""Checkpoints are trained once a session."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("accelerate", "onnxruntime_genai", "safetensors", "tokenizers", "torch", "transformers")
# The extras exporters and genai; a test session without them has no tests of this folder.
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
sys.path.append(str(Path(__file__).parents[2] / "examples/chat"))

STEPS = 80


class Trained:
    """Trained checkpoints by layout; a model is trained when one of its layouts is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, layout: str) -> Path:
        from make_checkpoint import LAYOUTS, write_checkpoints

        kind = next(kind for kind, layouts in LAYOUTS.items() if layout in layouts)
        if not (self._folder / layout).is_dir():
            write_checkpoints(self._folder, (kind,), STEPS)
        return self._folder / layout


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))
