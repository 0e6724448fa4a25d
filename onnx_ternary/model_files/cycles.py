"""Graphs whose nodes wait for each other, and functions that call themselves: no model has them.

Everything that follows values back to where they come from relies on that.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import onnx_ir as ir

from onnx_ternary._walk import nodes_in, subgraphs_of

DOMAINS_OF_OPERATORS = ("", "com.microsoft")
"""Where an operator and a local function share a name, runtimes choose differently."""

_Key = TypeVar("_Key", bound=Hashable)


def find_cycle(model: ir.Model) -> str:
    """What waits for itself in a model, in words; empty if nothing does."""
    for owner in (model.graph, *(function.graph for function in model.functions.values())):
        waits: dict[int, set[int]] = {}
        nodes: dict[int, ir.Node] = {}
        _collect(owner, waits, nodes)
        if found := _cycle(waits):
            names = " -> ".join(
                f"{nodes[each].op_type} '{nodes[each].name or _first_output(nodes[each])}'"
                for each in (*found[:_MAX_NAMED], found[0])
            )
            return f"its nodes form a cycle: {names}"
    calls = {
        key: {
            node.op_identifier()
            for node in nodes_in(function.graph)
            if node.op_identifier() in model.functions
        }
        for key, function in model.functions.items()
        # Calls of a function named like an operator may be meant for the operator.
        if function.domain not in DOMAINS_OF_OPERATORS
    }
    if called := _cycle(calls):
        return "its local functions call themselves: " + " -> ".join(
            f"{domain}::{name}" for domain, name, _ in (*called[:_MAX_NAMED], called[0])
        )
    return ""


_MAX_NAMED = 4


def _first_output(node: ir.Node) -> str:
    return (node.outputs[0].name or "") if node.outputs else ""


def _collect(whole: ir.Graph, waits: dict[int, set[int]], nodes: dict[int, ir.Node]) -> None:
    """Which nodes each node waits for; a node with subgraphs waits for what is in them."""
    open_graphs: list[tuple[ir.Graph, ir.Node | None]] = [(whole, None)]
    while open_graphs:
        graph, owner = open_graphs.pop()
        if owner is not None:
            waits[id(owner)] |= {id(node) for node in graph}
            # A graph may hand on a value of the graphs around it without a node.
            waits[id(owner)] |= _makers(graph.outputs)
        for node in graph:
            nodes[id(node)] = node
            waits.setdefault(id(node), set()).update(_makers(node.inputs))
            if node.attributes:
                open_graphs += [(each, node) for each in subgraphs_of(node)]


def _makers(values: Iterable[ir.Value | None]) -> set[int]:
    producers = (None if value is None else value.producer() for value in values)
    return {id(producer) for producer in producers if producer is not None}


def _cycle(waits: Mapping[_Key, set[_Key]]) -> list[_Key]:
    """Keys that wait for each other in turn; none if there are none."""
    num_waiting = dict.fromkeys(waits, 0)
    users: dict[_Key, list[_Key]] = {key: [] for key in waits}
    for key, sources in waits.items():
        for source in sources:
            if source in users:
                users[source].append(key)
                num_waiting[key] += 1
    ready = [key for key, count in num_waiting.items() if not count]
    while ready:
        for user in users[ready.pop()]:
            num_waiting[user] -= 1
            if not num_waiting[user]:
                ready.append(user)
    stuck = {key for key, count in num_waiting.items() if count}
    if not stuck:
        return []
    path: dict[_Key, None] = {}
    key = next(iter(stuck))
    while key not in path:
        path[key] = None
        key = next(each for each in waits[key] if each in stuck)
    found = [*path]
    return found[found.index(key) :]
