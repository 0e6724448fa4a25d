"""CONTRIBUTING.md has a map: it names every folder, and nothing that is not there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def table(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    return str(found)


def named(text: str) -> set[str]:
    """Files and folders: what stands in backticks and has a slash or an ending."""
    names = re.findall(r"`([\w./-]+)`", text)
    return {name for name in names if "/" in name or "." in name} - {"onnx_ternary.graph_passes"}


@pytest.mark.parametrize("title", ["Where things are", "What a change usually touches"])
def test_what_the_map_names_is_there(title: str) -> None:
    names = named(table(title))
    assert len(names) > 10
    assert [name for name in names if not (ROOT / name).exists() and name != "case.py"] == []


def test_the_map_names_every_folder() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("which folders are the project's is known in a checkout only")
    command = ["git", "-C", str(ROOT), "ls-files"]
    files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    folders = {f"{Path(name).parent}/" for name in files if "/" in name}
    mirrored = {
        name.replace("onnx_ternary/", "tests/unit/", 1)
        for name in folders
        if name.startswith("onnx_ternary/")
    }
    assert folders - mirrored - named(table("Where things are")) - {"tests/"} == set()
