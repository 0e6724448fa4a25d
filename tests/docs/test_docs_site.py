"""The documentation as pages: what every page must hold, whatever it is rendered by."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import onnx_ternary

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page that are not code."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            code = not code
        elif not code:
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_lists_begin_after_an_empty_line(page: Path) -> None:
    """GitHub does without; the site then shows the items as one paragraph."""
    before = ""
    for number, line in prose(page):
        continues = not before.strip() or before.startswith(("#", " ", "<!--"))
        if _ITEM.match(line) and not continues and not _ITEM.match(before):
            pytest.fail(f"{page.name}:{number}: a list directly below a paragraph: {line}")
        before = line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_headings_do_not_end_in_a_number_sign(page: Path) -> None:
    """The site leaves a last # out; C\\# shows it there and on GitHub."""
    ends = [line for _, line in prose(page) if re.match(r"#+ .*[^\\]#$", line)]
    assert ends == []


@pytest.mark.parametrize("language", ["C++", r"C\#", "Java", "Triton"])
def test_path_of_the_library_is_absolute(language: str) -> None:
    """A bare name is not found beside the program on Linux."""
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    (section,) = re.findall(
        rf"^## {re.escape(language)}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL
    )
    (path,) = re.findall(r'"([^"]*libonnx_ternary_ops\.so)"', section)
    assert path.startswith("/")


@pytest.mark.skipif(
    tuple(map(int, version("click").split(".")[:2])) < (8, 2), reason="written with click 8.2"
)
def test_cli_page_is_what_the_commands_say() -> None:
    command = [sys.executable, str(ROOT / ".ci/cli_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert "UNSET" not in page
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", page, re.MULTILINE)
    assert len(rows) > 40
    assert [name for name, meaning in rows if not meaning.strip()] == []


def api_titles() -> list[str]:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


@pytest.mark.parametrize("title", api_titles())
def test_api_title_can_be_typed(title: str) -> None:
    module, _, name = title.rpartition(".")
    assert not any(part.startswith("_") for part in title.split("."))
    assert hasattr(import_module(module), name)


def test_api_page_has_every_public_name() -> None:
    missing = {f"onnx_ternary.{name}" for name in onnx_ternary.__all__} - set(api_titles())
    assert missing == {"onnx_ternary.__version__"}


def test_a_page_names_a_section_of_its_own_that_is_there() -> None:
    page = (ROOT / "docs/index_format.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\d+)\. (.*)$", page, re.MULTILINE))
    named = set(re.findall(r"\b[Ss]ection (\d+)", page))
    assert named <= sections.keys()
    (number,) = re.findall(r"Section (\d+) writes two small matrices out", page)
    assert sections[number] == "Worked examples"
