"""Checkpoints are trained once a session."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.genai.trained import Trained

NEEDED = ("accelerate", "onnxruntime_genai", "safetensors", "tokenizers", "torch", "transformers")
# The extras exporters and genai; a test session without them has no tests of this folder.
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]
sys.path.append(str(Path(__file__).parents[2] / "examples/chat"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))
