"""Every node and every graph of a model, in one generator.

onnx_ir's own walk goes through three generators per node, which large models feel: a conversion
goes through all nodes some twenty times.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def nodes_in(owner: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Nodes of a graph or function; those of a node's subgraphs come right behind it."""
    waiting: list[Iterator[ir.Node]] = [iter(owner)]
    while waiting:
        for node in waiting[-1]:
            yield node
            if node.attributes and (inner := subgraphs_of(node)):
                waiting += [iter(graph) for graph in reversed(inner)]
                break
        else:
            waiting.pop()


def graphs_in(owner: ir.Graph | ir.Function) -> Iterator[ir.Graph]:
    """A graph, or that of a function, and all subgraphs below it."""
    yield owner.graph if isinstance(owner, ir.Function) else owner
    for node in nodes_in(owner):
        if node.attributes:
            yield from subgraphs_of(node)


def subgraphs_of(node: ir.Node) -> list[ir.Graph]:
    """The graphs among a node's own attributes."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type not in _GRAPHS or attr.is_ref():
            continue
        found += [attr.as_graph()] if attr.type == _GRAPHS[0] else attr.as_graphs()
    return found


def owners_in(model: ir.Model) -> tuple[ir.Graph, ...]:
    """The main graph and those of all local functions."""
    return (model.graph, *(function.graph for function in model.functions.values()))
