"""The Python programs of docs/llm.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from onnx_ternary import BuildOptions, build
from tests.genai.trained import Trained

PAGE = Path(__file__).parents[2] / "docs/llm.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "built"
    build(trained["bitnet-packed"], folder, verify_result=False)
    return folder


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "embedding"
    options = BuildOptions(task="embedding", pooling="last")
    build(trained["qwen-groups"], folder, options, verify_result=False)
    return folder


def test_the_page_has_all_programs() -> None:
    assert len(PROGRAMS) == 3


def test_the_embeddings_program_runs(embedding: Path) -> None:
    values: dict[str, object] = {}
    exec(PROGRAMS[0].replace("FOLDER", str(embedding)), values)
    found = values["embeddings"]
    assert isinstance(found, np.ndarray)
    assert found.shape == (2, 256)
    assert np.abs(found[0] - found[1]).max() > 0.1


@pytest.mark.parametrize("program", PROGRAMS[1:], ids=["genai", "onnxruntime"])
def test_a_program_runs(built: Path, program: str, capfd: pytest.CaptureFixture[str]) -> None:
    values: dict[str, object] = {}
    exec(program.replace("FOLDER", str(built)), values)
    if "tokens" in values:
        assert len(values["tokens"]) == 23  # type: ignore[arg-type]
    else:
        assert len(capfd.readouterr().out) > 20
