"""Calls of local functions, written out one by one.

onnx_ir inlines every call of a function or none. Here a call is given a copy of its function first,
whose values and nodes have the call's name in front, so that what comes out is named alike whatever
else is inlined: conversion and verification make the same model of the same original.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeAlias

import onnx_ir as ir

from onnx_ternary._walk import nodes_in

MAX_NODES = 200_000
"""Nodes that calls are written out to at most: calls of calls can double at every level."""

MAX_ROUNDS = 32
"""Calls that are written out one inside the other at most."""

_DOMAIN = "onnx_ternary.inlined"
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)

CallKey: TypeAlias = "tuple[ir.OperatorIdentifier | None, str]"
"""The local function a call stands in, None outside of functions, and the call's first result."""


def can_inline(
    model: ir.Model, call: ir.Node, function: ir.Function, caller: ir.Function | None
) -> bool:
    """Whether a call of a function can be written out in a caller, or in the main graph.

    Opsets have to agree; subgraphs cannot be parameters; results have to be made in the function,
    and the call has to take all of them: ONNX Runtime opens no other.
    """
    if len(call.inputs) > len(function.inputs) or len(call.outputs) != len(function.outputs):
        return False
    imports = model.opset_imports
    inner = {} if caller is None else caller.opset_imports
    for domain, version in function.opset_imports.items():
        if imports.get(domain, version) != version or inner.get(domain, version) != version:
            return False
    if any(attr.type in _GRAPHS for attr in function.attributes.values()):
        return False
    made = [value for value in function.outputs if value.producer() is not None]
    return len(made) == len(set(made)) == len(function.outputs)


def calls(model: ir.Model) -> Iterator[tuple[CallKey, ir.Node]]:
    """Every call of a local function whose first result has a name, with its key."""
    owners: list[tuple[ir.OperatorIdentifier | None, ir.Graph | ir.Function]]
    owners = [(None, model.graph), *model.functions.items()]
    for owner, graph in owners:
        for node in nodes_in(graph):
            if node.op_identifier() in model.functions and node.outputs and node.outputs[0].name:
                yield (owner, node.outputs[0].name), node


def inline_calls(model: ir.Model, keys: Collection[CallKey]) -> None:
    """Write calls out, in place, and remove functions that nobody calls any more.

    Args:
        model: without functions that call themselves.
        keys: of calls that `can_inline` allows.
    """
    from onnx_ir.passes.common import InlinePass  # imports every pass; few models need one

    used: set[ir.OperatorIdentifier] = set()
    copies: dict[ir.OperatorIdentifier | None, list[ir.Function]] = {}
    redirected: list[tuple[ir.Node, ir.Function]] = []
    for number, ((owner, output), node) in enumerate(calls(model)):
        if (owner, output) not in keys:
            continue
        function = model.functions[node.op_identifier()]
        used.add(function.identifier())
        copy = _named_after(function, node, number)
        copies.setdefault(owner, []).append(copy)
        redirected.append((node, copy))
    # Not before all copies are made: what they call are functions of the model.
    for node, copy in redirected:
        node.domain, node.op_type, node.overload = copy.identifier()
    for owner, functions in copies.items():
        graph = model.graph if owner is None else model.functions[owner].graph
        # The pass takes the square of the functions it sees, unless they share a name.
        InlinePass()(ir.Model(graph, ir_version=model.ir_version, functions=functions))
        for copy in functions:
            for domain, version in copy.opset_imports.items():
                model.opset_imports.setdefault(domain, version)
    called = {node.op_identifier() for _, node in calls(model)}
    for key in used - called:
        del model.functions[key]


def _named_after(function: ir.Function, call: ir.Node, number: int) -> ir.Function:
    """A copy of a function for one call, in a domain of its own."""
    copy = function.clone()
    copy.domain, copy.name, copy.overload = f"{_DOMAIN}.{number}", "call", ""
    values, nodes = call.outputs[0].name, call.name or call.outputs[0].name
    for node in nodes_in(copy.graph):
        inner = node.name or (node.outputs[0].name if node.outputs else "") or node.op_type
        node.name = f"{nodes}/{inner}"
        for output in node.outputs:
            if output.name:
                output.name = f"{values}/{output.name}"
    return copy
