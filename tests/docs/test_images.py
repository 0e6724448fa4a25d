"""The README's picture shows what the command prints."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/pages/terminal.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests do not lie in a checkout")


def test_picture_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_picture_comparison_sees_a_changed_word_and_no_web_address() -> None:
    spec = importlib.util.spec_from_file_location("terminal", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    terminal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(terminal)
    svg = terminal.PICTURE.read_text(encoding="utf-8")
    assert terminal.words(svg) != terminal.words(svg.replace("rewritten", "ignored"))
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
