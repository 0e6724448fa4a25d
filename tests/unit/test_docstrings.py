"""Docstrings stand in one mood: a noun phrase for what is, an imperative for what is done.

A verb in the third person ("Writes the report") is neither. ruff's D401 asks for imperatives
everywhere, and refuses "The levels of a matrix"; so the verbs are listed here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.graph_passes import pipeline

REPOSITORY = Path(__file__).parents[2]
ROOTS = (
    Path(onnx_ternary.__file__).parent,
    Path(pipeline.__file__).parent,
    *(REPOSITORY / name for name in ("tests", "benchmarks", "examples", ".ci")),
)
# As a first word. Words that are plural nouns as well ("Runs of items") are left out.
VERBS = re.compile(
    r"Adds|Appends|Applies|Asks|Begins|Builds|Checks|Chooses|Compares|Computes|Converts|"
    r"Copies|Counts|Creates|Cuts|Damages|Decides|Decodes|Defines|Describes|Does|Drops|Edits|"
    r"Encodes|Evaluates|Expects|Exports|Fills|Finds|Follows|Forces|Gets|Gives|Handles|Has|"
    r"Hides|Holds|Inserts|Installs|Is|Joins|Judges|Keeps|Lets|Loads|Looks|Makes|Matches|"
    r"Moves|Opens|Packs|Parses|Prepares|Prints|Provides|Puts|Quantizes|Raises|Reads|Refuses|"
    r"Registers|Remembers|Removes|Renames|Replaces|Resolves|Returns|Rewrites|Rotates|Rounds|"
    r"Saves|Says|Sets|Shows|Skips|Solves|Sorts|Splits|Stands|Starts|Stops|Stores|Takes|Tells|"
    r"Transforms|Tries|Turns|Unpacks|Updates|Uses|Validates|Verifies|Waits|Walks|Writes|"
    r"Yields"
)
# Behind a semicolon, a verb has the subject of the first one.
LATER = re.compile(r"; (returns|raises|refuses|writes|keeps|removes) ")


def docstrings(source: str) -> Iterator[str]:
    """The first line of every docstring of a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text.splitlines()[0]


def in_third_person(line: str) -> bool:
    """Whether the first line of a docstring tells what somebody unnamed does."""
    return any((VERBS.fullmatch(line.split()[0]), LATER.search(line)))


@pytest.mark.parametrize(
    "line",
    ["Writes the report.", "Is a weight.", "Make a session; returns the seconds it took."],
)
def test_third_person_is_found(line: str) -> None:
    assert in_third_person(line)


@pytest.mark.parametrize(
    "line", ["Write the report.", "The levels of a matrix.", "Runs of items that share a session."]
)
def test_nouns_and_imperatives_pass(line: str) -> None:
    assert not in_third_person(line)


def test_docstrings_stand_in_one_mood() -> None:
    lines = [
        f"{path}: {line}"
        for root in ROOTS
        for path in sorted(root.rglob("*.py"))
        for line in docstrings(path.read_text(encoding="utf-8"))
        if in_third_person(line)
    ]
    assert lines == []
    assert any("The package has no circle" in line for line in docstrings(_source("layers")))


def _source(name: str) -> str:
    return (REPOSITORY / "tests" / "unit" / f"test_{name}.py").read_text(encoding="utf-8")
