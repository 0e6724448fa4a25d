"""What a release is made of: one version everywhere, links that work away from the checkout."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_ternary

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci/release_metadata.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the tests do not lie in a checkout")
_RELATIVE = re.compile(r"(?:\]\(|src(?:set)?=\")(?!https?:|#)([^)#\s\"]+)")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci")
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def change(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / ".ci/release_metadata.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_changelog_ends_with_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*?)\]", text, re.MULTILINE)[0] == onnx_ternary.__version__


def test_readme_of_a_release_has_only_absolute_links(checkout: Path) -> None:
    relative = _RELATIVE.findall((checkout / "README.md").read_text(encoding="utf-8"))
    assert relative
    assert [path for path in relative if not (ROOT / path).exists()] == []
    assert change(checkout, "someone/onnx-ternary", "v1.2.3").returncode == 0
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert _RELATIVE.findall(text) == []
    raw = "https://github.com/someone/onnx-ternary/raw/v1.2.3/docs/images"
    for picture in (f'srcset="{raw}/front_narrow.svg"', f'src="{raw}/front.svg"'):
        assert picture in text
    assert f"({raw}/terminal.svg)" in text
    assert "(https://github.com/someone/onnx-ternary/blob/v1.2.3/CHANGELOG.md)" in text


def test_metadata_of_a_release_names_the_repository(checkout: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    assert change(checkout, "someone/onnx-ternary", "v1.2.3").returncode == 0
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["urls"]["Repository"] == "https://github.com/someone/onnx-ternary"
    assert project["scripts"] == {"onnx-ternary": "onnx_ternary.cli:main"}


@pytest.mark.parametrize("arguments", [(), ("onnx-ternary", "v1"), ("a/b", "v1 && true")])
def test_nothing_changes_on_other_arguments(checkout: Path, arguments: tuple[str, ...]) -> None:
    before = (checkout / "README.md").read_bytes()
    assert change(checkout, *arguments).returncode == 1
    assert (checkout / "README.md").read_bytes() == before


def test_no_page_installs_from_an_index_that_has_no_release() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.*")]
    promise = re.compile(r"pip install [^\n`]*(?<![/\w])onnx-ternary\b(?!@)")
    found = [
        f"{page.relative_to(ROOT)}: {match[0]}"
        for page in pages
        if page.suffix in {".md", ".py", ".sh", ".mjs"}
        for match in promise.finditer(page.read_text(encoding="utf-8"))
    ]
    assert found == []
