"""No function has more than 8 parameters, but public ones that make a value of options of theirs.

A public signature is kept for its callers; what it is given travels on as one frozen dataclass, so
that nothing inside spells the list out again. A click command's signature is its options.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnx_ternary
from onnx_ternary.graph_passes import pipeline

MAX_PARAMETERS = 8
ROOTS = (Path(onnx_ternary.__file__).parent, Path(pipeline.__file__).parent)
# Which dataclass a facade makes.
FACADES = {
    "bench.py bench": "onnx_ternary.bench.BenchSettings",
    "conversion/batch.py convert_many": "onnx_ternary.conversion.settings.BatchSettings",
    "conversion/convert.py convert": "onnx_ternary.conversion.settings.ConversionSettings",
    "exporting/export.py export_file": "onnx_ternary.exporting.export.ExportSettings",
    "verification/verify.py verify": "onnx_ternary.verification.settings.VerifySettings",
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(source: str) -> Iterator[Function]:
    """The functions of a file, click commands apart."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function) and not any(
            ast.unparse(each).startswith("click.command") for each in node.decorator_list
        ):
            yield node


def num_parameters(function: Function) -> int:
    """Named parameters, ``self`` and ``cls`` apart."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.fixture(scope="module")
def found() -> dict[str, Function]:
    """The functions with too many parameters, by file and name."""
    return {
        f"{path.relative_to(root).as_posix()} {function.name}": function
        for root in ROOTS
        for path in sorted(root.rglob("*.py"))
        for function in functions(path.read_text(encoding="utf-8"))
        if num_parameters(function) > MAX_PARAMETERS
    }


def test_parameters_are_counted() -> None:
    source = "class A:\n  def f(self, a, /, b, *args, c=1, **rest): pass\n  async def g(a): pass\n"
    assert [num_parameters(function) for function in functions(source)] == [3, 1]
    assert not [*functions("@click.command('x')\n@click.option('--a')\ndef f(a): pass\n")]


def test_only_facades_have_many_parameters(found: dict[str, Function]) -> None:
    assert found.keys() == FACADES.keys()


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_makes_its_options(found: dict[str, Function], name: str) -> None:
    """And hands on every parameter: one that is forgotten would change nothing."""
    module, _, made = FACADES[name].rpartition(".")
    options = getattr(importlib.import_module(module), made)
    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    inside = [node for node in ast.walk(found[name]) if isinstance(node, ast.Name)]
    read = {node.id for node in inside}
    assert made in read
    given = found[name].args
    assert {each.arg for each in (*given.args, *given.kwonlyargs)} <= read
