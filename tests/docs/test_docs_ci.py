"""What docs/ci.md shows is what the command writes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from onnx_ternary.errors import ExitCode
from tests.support.command_line import DIGITS, run

PAGE = Path(__file__).parents[2] / "docs/ci.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the tests do not lie in a checkout")
def test_the_annotation_of_a_check_is_the_one_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(DIGITS, "models/digits_mlp.onnx")
    arguments = ("optimize", "models/digits_mlp.onnx", "--check", "--annotations", "annotations")
    run(*arguments, check=ExitCode.REQUIREMENT_NOT_MET)
    (shown,) = re.findall(r"^::error .*\n", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert Path("annotations").read_text(encoding="utf-8") == shown
