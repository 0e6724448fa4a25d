"""No function is longer than a screen: 60 lines, its docstring apart.

The signature of a click command is its options, so commands may be longer. What else is longer is
listed here with the reason; a function that has become short leaves the list.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.graph_passes import pipeline

MAX_LINES = 60
ROOTS = (Path(onnx_ternary.__file__).parent, Path(pipeline.__file__).parent)
LONGER = {
    "cli/_options.py rewrite_options": "a table of click options",
}


def lengths(source: str) -> Iterator[tuple[str, int]]:
    """Every function of a file and its lines, signature and decorators included."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if any(ast.unparse(each).startswith("click.command") for each in node.decorator_list):
            continue
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        assert node.end_lineno is not None
        count = node.end_lineno - first + 1
        if ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            assert docstring.end_lineno is not None
            count -= docstring.end_lineno - docstring.lineno + 1
        yield node.name, count


@pytest.fixture(scope="module")
def found() -> dict[str, int]:
    longest: dict[str, int] = {}
    for root in ROOTS:
        for path in root.rglob("*.py"):
            for name, count in lengths(path.read_text(encoding="utf-8")):
                full = f"{path.relative_to(root).as_posix()} {name}"
                longest[full] = max(count, longest.get(full, 0))  # methods may share a name
    return longest


def test_lines_are_counted_without_the_docstring() -> None:
    body = "    pass\n" * MAX_LINES
    (whole,) = lengths(f'@decorated\ndef f():\n    """One\n\n    two.\n    """\n{body}')
    assert whole == ("f", MAX_LINES + 2)
    nested = dict(lengths(f"class A:\n  async def f(self):\n    def g():\n    {body}"))
    assert nested.keys() == {"f", "g"}
    assert not [*lengths("@click.command()\n@click.option('--a')\ndef f(a):\n    pass\n")]


def test_every_file_is_read(found: dict[str, int]) -> None:
    assert "conversion/convert.py convert" in found
    assert "rewrite/replace.py replace" in found


def test_no_function_is_longer_than_a_screen(found: dict[str, int]) -> None:
    longer = {name: count for name, count in found.items() if count > MAX_LINES}
    assert {name: count for name, count in longer.items() if name not in LONGER} == {}
    assert LONGER.keys() <= longer.keys()
