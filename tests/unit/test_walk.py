"""Nodes and graphs of a model, in the order of onnx_ir's own walk."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from onnx_ternary._walk import graphs_in, nodes_in, owners_in, subgraphs_of
from tests.catalogue import HITS

NESTED = ("function_with_branches", "function_called_in_branches", "row_scale_in_branch", "matmul")


@pytest.mark.parametrize("name", NESTED)
def test_walk_meets_what_onnx_ir_meets(name: str) -> None:
    model = ir.from_proto(HITS[name]().model)
    for owner in (model.graph, *model.functions.values()):
        assert [*nodes_in(owner)] == [*ir.traversal.RecursiveGraphIterator(owner)]
    # onnx_ir leaves out the graphs in functions.
    own, *functions = owners_in(model)
    assert {*map(id, graphs_in(own))} == {id(model.graph), *map(id, model.graph.subgraphs())}
    for graph in functions:
        assert {*map(id, graphs_in(graph))} == {id(graph), *map(id, graph.subgraphs())}


def nested(depth: int) -> ir.Graph:
    """An If in the branch of an If, and so on, with a node on either side."""
    inner = [ir.Node("", "Relu", [], name=f"last{depth}")]
    if depth:
        branches = [
            ir.AttrGraph("then_branch", nested(depth - 1)),
            ir.AttrGraph("else_branch", nested(0)),
        ]
        inner.insert(0, ir.Node("", "If", [], branches, name=f"if{depth}"))
    return ir.Graph([], [], nodes=inner, name=f"graph{depth}")


def test_nodes_of_subgraphs_come_behind_their_owner() -> None:
    whole = nested(2)
    names = [node.name for node in nodes_in(whole)]
    assert names == ["if2", "if1", "last0", "last0", "last1", "last0", "last2"]
    assert names == [node.name for node in ir.traversal.RecursiveGraphIterator(whole)]
    assert [graph.name for graph in graphs_in(whole)] == [
        "graph2",
        "graph1",
        "graph0",
        "graph0",
        "graph0",
    ]


def test_attribute_of_a_function_is_no_graph() -> None:
    given = ir.RefAttr("then_branch", "body", ir.AttributeType.GRAPH)
    assert subgraphs_of(ir.Node("", "If", [], [given])) == []
