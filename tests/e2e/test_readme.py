"""The README's commands and code run, in a copy of the examples. `.ci/run` runs the two that
install the package and the tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLING = {"example", "test"}


def commands() -> dict[str, tuple[str, str]]:
    """Language and text of every named block of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- command: (\w+) -->\s*```(\w+)\n(.*?)```", text, re.DOTALL)
    return {name: (language, block) for name, language, block in blocks}


def test_readme_names_every_command() -> None:
    assert set(commands()) == {"example", "test", "optimize", "python", "ci"}


@pytest.mark.parametrize("name", sorted(set(commands()) - INSTALLING))
def test_readme_command_runs(name: str, tmp_path: Path) -> None:
    language, block = commands()[name]
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    script = Path(sys.executable).with_name("onnx-ternary")
    environment = dict(os.environ)
    if not script.exists():  # the package is on the path, not installed
        block = block.replace("onnx-ternary ", f"{sys.executable} -m onnx_ternary ")
    else:
        environment["PATH"] = f"{script.parent}{os.pathsep}{environment['PATH']}"
    arguments = [sys.executable, "-c", block] if language == "python" else ["sh", "-euc", block]
    done = subprocess.run(
        arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "digits.onnx").stat().st_size < 200_000
