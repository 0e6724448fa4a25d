"""The Python in docs/deployment.md runs, and tells the operator from its definition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import onnx_ternary
from tests.support.command_line import DIGITS, run

ROOT = Path(__file__).parents[2]
REGISTER = "onnx_ternary.register(options)"


def snippet() -> str:
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- run: which -->\n```python\n(.*?)```", text, re.DOTALL)
    assert REGISTER in block
    return str(block)


@pytest.mark.parametrize("registered", [True, False])
def test_profile_tells_operator_from_definition(
    registered: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "digits.onnx"
    onnx_ternary.optimize(DIGITS).save(model)
    monkeypatch.chdir(tmp_path)
    code = snippet() if registered else snippet().replace(REGISTER, "")
    exec(code, {"model": str(model), "inputs": {"image": np.zeros((2, 64), np.float32)}})
    assert capsys.readouterr().out.strip() == str(registered)


def test_info_prints_the_library_path_alone() -> None:
    (line,) = run("info", "--library-path").stdout.splitlines()
    assert Path(line).is_absolute()
    assert line == onnx_ternary.get_library_path()
