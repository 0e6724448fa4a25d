"""Calls of a model's local functions, kept apart from the operators whose names they have.

A model may bring a function of its own for any domain and name: exporters write one for QONNX's
Quant, so that ONNX Runtime can run the model. What such a node computes is what the function says.
While `set_apart` is open, every node that calls a local function has a domain no rule knows, so
that no code of the pass takes it for the operator it is named like.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from onnx_ternary._walk import nodes_in
from onnx_ternary.op.nodes import local_functions

_PREFIX = "local function of "


@contextmanager
def set_apart(model: ir.Model) -> Iterator[None]:
    """While open, nodes of ``model`` that call its local functions have a domain of their own."""
    functions = {function.identifier() for function in local_functions(model)}
    calls: list[tuple[ir.Node, str]] = []
    if functions:
        for graph in (model.graph, *(each.graph for each in local_functions(model))):
            for node in nodes_in(graph):
                if node.op_identifier() in functions:
                    calls.append((node, node.domain))
                    node.domain = f"{_PREFIX}{node.domain}"
    try:
        yield
    finally:
        for node, domain in calls:
            node.domain = domain


def real_domain(node: ir.Node) -> str:
    """The domain of a node as the model has it."""
    return node.domain.removeprefix(_PREFIX)


def called(model: ir.Model, node: ir.Node) -> ir.Function | None:
    """The local function a node calls; None for an operator."""
    return model.functions.get((real_domain(node), node.op_type, node.overload))


def serialized(function: ir.Function) -> onnx.FunctionProto:
    """A function as the model has it, also while its calls are set apart."""
    proto = ir.serde.serialize_function(function)
    open_nodes = [*proto.node]
    while open_nodes:
        node = open_nodes.pop()
        node.domain = node.domain.removeprefix(_PREFIX)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                open_nodes += graph.node
    return proto
