"""No test module imports from another: what two of them need is in tests/support."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(path for path in TESTS.rglob("*.py") if "__pycache__" not in path.parts)


def imported(text: str, package: str) -> Iterator[str]:
    """Every dotted name a module of a package imports, those in functions included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: 1 - node.level] if node.level > 1 else [package]
            module = [*(parents if node.level else ()), *filter(None, [node.module])]
            yield from (".".join([*module, each.name]) for each in node.names)


def into_test_modules(text: str, package: str) -> list[str]:
    """The imported names that lead into a test module or a conftest."""
    return [
        name
        for name in imported(text, package)
        if name.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_import_from_a_test_module(path: Path) -> None:
    package = ".".join(("tests", *path.relative_to(TESTS).parts[:-1]))
    assert into_test_modules(path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    "line",
    [
        "from tests.kernels.test_kernels import make_node",
        "from tests.kernels import test_kernels",
        "import tests.kernels.test_kernels",
        "from .test_kernels import make_node",
        "from . import test_kernels",
        "from ..kernels.test_kernels import make_node",
        "from tests.unit.native.conftest import rng",
        "def late():\n    from tests.kernels.test_kernels import make_node",
    ],
)
def test_import_from_a_test_module_is_found(line: str) -> None:
    assert len(into_test_modules(line, "tests.kernels")) == 1


@pytest.mark.parametrize(
    "line", ["from tests.support.checks import run", "from onnx.test_utils import x", "import json"]
)
def test_other_imports_are_allowed(line: str) -> None:
    assert into_test_modules(line, "tests.kernels") == []
