"""What is known of a whole model is found once, and is right for its subgraphs and functions."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.graph_passes import site
from onnx_ternary.graph_passes.site import Site
from onnx_ternary.op.nodes import local_functions, owning_functions
from tests.catalogue import HITS
from tests.catalogue.case import Case
from tests.support.checks import options_of


@pytest.fixture(params=[name for name in HITS if "function" in name or "subgraph" in name], ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return HITS[request.param]()


def test_a_conversion_looks_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[ir.Model] = []

    def counting(model: ir.Model) -> dict[int, ir.Function]:
        looks.append(model)
        return owning_functions(model)

    monkeypatch.setattr(site, "owning_functions", counting)
    result = optimize(case.model, options_of(case))
    assert result.report.rewrites
    # Calls that give weights are tried in a copy.
    assert len([model for model in looks if model is result.model]) == 1
    if not any("written out" in note for note in result.report.notes):
        assert len(looks) == 1


def test_names_and_owners(case: Case) -> None:
    model = ir.from_proto(case.model)
    found = Site.of(model)
    assert found.opset == model.opset_imports[""]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        assert found.function_of(node) is None
        assert node.name in found.node_names
        assert {value.name for value in (*node.inputs, *node.outputs) if value} <= found.value_names
    for function in local_functions(model):
        for node in ir.traversal.RecursiveGraphIterator(function):
            assert found.function_of(node) is function
            assert {value.name for value in node.outputs} <= found.value_names
