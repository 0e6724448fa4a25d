"""The commands and code of the README and of docs/quickstart.md run, in a copy of the examples.
`.ci/run` runs the two that install the package and the tests."""

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


def commands(page: str) -> dict[str, tuple[str, str]]:
    """Language and text of every named block of a page, in its order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- command: (\w+) -->\s*```(\w+)\n(.*?)```", text, re.DOTALL)
    return {name: (language, block) for name, language, block in blocks}


def run(language: str, block: str, folder: Path) -> None:
    script = Path(sys.executable).with_name("onnx-ternary")
    environment = dict(os.environ)
    # The README's commands need no active environment, which is another one here.
    block = block.replace(".venv/bin/onnx-ternary ", "onnx-ternary ")
    if not script.exists():  # the package is on the path, not installed
        block = block.replace("onnx-ternary ", f"{sys.executable} -m onnx_ternary ")
    else:
        environment["PATH"] = f"{script.parent}{os.pathsep}{environment['PATH']}"
    arguments = [sys.executable, "-c", block] if language == "python" else ["sh", "-euc", block]
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_every_block_has_a_name(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^```(?:bash|sh|shell|console|python|py)\b", text, re.MULTILINE)
    assert len(commands(page)) == len(fences)


def test_readme_names_every_command() -> None:
    assert set(commands("README.md")) == {*("example", "optimize", "python", "tools", "ci", "test")}


def test_readme_is_short_and_shows_first_what_matters() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = re.sub(
        r"```.*?```|<!-- (?:models|rivals) -->.*?<!-- end -->", "", text, flags=re.DOTALL
    )
    words = re.sub(r"<!--.*?-->|\]\([^)]*\)", "", prose).split()
    assert len(words) <= 900
    screen = text[: text.index("\n## ")]
    for what in (
        "front.svg",
        "terminal.svg",
        "pip install",
        "onnx-ternary optimize",
        "times smaller",
    ):
        assert what in screen


def test_every_link_of_the_readme_leads_to_a_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"(?:\]\(|src(?:set)?=\")([^)#\"]+)", text)
    links = [link for link in links if not link.startswith("https:")]
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_badges_say_what_the_package_needs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    badges = set(re.findall(r"img\.shields\.io/badge/([^)]*)-blue\)", text))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    (python,) = re.findall(r"^requires-python = .>=([0-9.]+)", project, re.MULTILINE)
    (onnxruntime,) = re.findall(r"^  .onnxruntime>=([0-9.]+)", project, re.MULTILINE)
    (license_name,) = re.findall(r"^license = .(\w+)", project, re.MULTILINE)
    assert badges == {
        f"Python-{python}%2B",
        f"onnxruntime-{onnxruntime}%2B",
        f"license-{license_name}",
    }


@pytest.mark.parametrize("name", sorted(set(commands("README.md")) - INSTALLING))
def test_readme_command_runs(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    run(*commands("README.md")[name], tmp_path)
    assert (tmp_path / "digits.onnx").stat().st_size < 200_000
    # In a checkout git ignores what the commands write, and so does the sdist.
    ignored = set((ROOT / ".gitignore").read_text(encoding="utf-8").splitlines())
    assert {f"/{path.name}" for path in tmp_path.iterdir()} - {"/examples"} <= ignored


def test_quickstart_runs_from_top_to_bottom(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    blocks = commands("docs/quickstart.md")
    # The installation is the README's, which .ci/run runs.
    assert blocks.pop("example") == commands("README.md")["example"]
    for language, block in blocks.values():
        run(language, block, tmp_path)
    assert (tmp_path / "digits.onnx").stat().st_size < 200_000
    assert (tmp_path / "digits_int8.onnx").exists()


def test_what_it_is_compared_with_says_accuracy_size_speed_place_and_source() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"<!-- rivals -->\n(.*?)<!-- end -->", text, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines.splitlines()]
    _, *head = rows[0]
    error, bits, *speeds, runs, sources = head
    assert (error, bits, runs, sources) == ("error", "bits per weight", "runs", "source")
    # Of one class of processor, or of the best and the worst.
    assert 1 <= len(speeds) <= 2
    assert all(re.fullmatch(r"times faster than float32, .+, \S.+", speed) for speed in speeds)
    for name, *cells, source in rows[2:]:
        assert all(cells)
        assert bool(source) is ("onnx-ternary" not in name)
