"""The Python programs of docs/llm.md run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnx_ternary import build
from tests.genai.trained import Trained

PAGE = Path(__file__).parents[2] / "docs/llm.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "built"
    build(trained["bitnet-packed"], folder, verify_result=False)
    return folder


def test_the_page_has_both_programs() -> None:
    assert len(PROGRAMS) == 2


@pytest.mark.parametrize("program", PROGRAMS, ids=["genai", "onnxruntime"])
def test_a_program_runs(built: Path, program: str, capfd: pytest.CaptureFixture[str]) -> None:
    values: dict[str, object] = {}
    exec(program.replace("FOLDER", str(built)), values)
    if "tokens" in values:
        assert len(values["tokens"]) == 23  # type: ignore[arg-type]
    else:
        assert len(capfd.readouterr().out) > 20
