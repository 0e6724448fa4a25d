"""docs/writing_a_rule.md: what it names is there, and a rule written as it says is asked."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from onnx_ternary import OptimizeOptions, optimize
from onnx_ternary.graph_passes import match, pipeline
from onnx_ternary.graph_passes.match import Context, Rejection, TernaryMatMul
from onnx_ternary.graph_passes.rules import catalogue
from onnx_ternary.graph_passes.rules.finish import finish
from onnx_ternary.graph_passes.rules.matmul import MatMul
from onnx_ternary.graph_passes.rules.product import Product, constant_weight
from onnx_ternary.schema import OP_TYPE
from tests import catalogue as forms
from tests.catalogue.case import simple, ternary

ROOT = Path(__file__).parents[2]
PASSES = Path(pipeline.__file__).parent
TEXT = (ROOT / "docs/writing_a_rule.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:[\w./]+/)?\w+\.py|\w+/)`", TEXT)))


@pytest.mark.parametrize("name", FILES)
def test_file_is_there(name: str) -> None:
    folders = (PASSES, *(PASSES / each for each in ("rules", "constants", "rewrite")), ROOT)
    places = [folder / name for folder in (*folders, ROOT / "tests/catalogue")]
    assert any(place.exists() for place in places)


def test_every_folder_of_the_passes_is_in_the_table() -> None:
    found = {f"{path.parent.name}/" for path in PASSES.glob("*/__init__.py")}
    assert found <= set(FILES)


@pytest.mark.parametrize("name", ["Rule", "TernaryMatMul", "Rejection", "Context"])
def test_contract_is_in_match(name: str) -> None:
    assert f"`{name}" in TEXT
    assert hasattr(match, name)


def test_rule_on_the_page_is_the_rule() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (shown,) = ast.parse(block).body
    (real,) = ast.parse(inspect.getsource(MatMul)).body
    assert isinstance(shown, ast.ClassDef)
    assert isinstance(real, ast.ClassDef)
    assert shown.name == real.name

    def without_bodies(each: ast.ClassDef) -> list[str]:
        lines = []
        for statement in each.body:
            if isinstance(statement, ast.FunctionDef):
                statement.body = [ast.Pass()]
            elif isinstance(statement, ast.Expr):
                continue  # the docstring
            lines.append(ast.unparse(statement))
        return lines

    assert without_bodies(shown) == without_bodies(real)


def test_names_of_the_catalogue() -> None:
    assert "`FILES`" in TEXT
    assert "`RULES`" in TEXT
    for rule_file in forms.FILES:
        assert isinstance(rule_file.HITS, dict)
        assert isinstance(rule_file.NEAR_MISSES, dict)


class Doubled:
    """``test.domain::Doubled(X, W) = 2 * X @ W``, written as the page says."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("test.domain", "Doubled")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        weight = constant_weight(node, context)
        if isinstance(weight, Rejection):
            return weight
        x = node.inputs[0]
        assert x is not None
        return finish(Product(node, x, weight, 2, factor=np.array(2.0)), context)


def test_a_rule_in_the_catalogue_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = simple(ternary(scale=0.25))
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "test.domain", "Doubled"
    proto.opset_import.append(helper.make_opsetid("test.domain", 1))
    options = OptimizeOptions(min_elements=0)
    assert not optimize(proto, options).report.rewrites
    monkeypatch.setattr(catalogue, "RULES", (*catalogue.RULES, Doubled()))
    (node,) = (node for node in optimize(proto, options).model.graph if node.op_type == OP_TYPE)
    scale = node.inputs[3]
    assert scale is not None
    assert scale.const_value is not None
    assert float(scale.const_value.numpy()) == 0.5
