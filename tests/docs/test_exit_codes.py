"""One table has the exit codes: docs/cli.md. Every other page points there."""

from __future__ import annotations

import re
from pathlib import Path

from onnx_ternary.errors import ExitCode

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| (\d) \| (\w+)", re.MULTILINE)
_LISTED = re.compile(r"\b1 (an )?error\b.*\b2 (wrong )?usage\b")


def test_table_has_every_exit_code() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert [int(code) for code, _ in _ROW.findall(text)] == [int(code) for code in ExitCode]


def test_no_other_page_lists_exit_codes() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    listing = [
        page.name
        for page in pages
        if page.exists() and _LISTED.search(page.read_text(encoding="utf-8"))
    ]
    assert listing == []
    assert "cli.md" in (ROOT / "docs/ci.md").read_text(encoding="utf-8")
