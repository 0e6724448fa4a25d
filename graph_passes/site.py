"""What is asked about a whole model while it is converted, found once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnx_ternary._walk import graphs_in, nodes_in
from onnx_ternary.op.nodes import local_functions, owning_functions

_DIGEST_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Site:
    """One model that is worked on.

    Attributes:
        model: the model.
        opset: the ai.onnx opset it imports; 0 if it imports none.
        owners: the local function each graph inside one belongs to, by the graph's id.
        value_names: names of values, values of local functions included; whoever makes a value adds
            its name.
        node_names: names of nodes, likewise.
        digest: of all these names: no model that can be merged with this one has it.
    """

    model: ir.Model
    opset: int
    owners: Mapping[int, ir.Function]
    value_names: set[str]
    node_names: set[str]
    digest: str

    @classmethod
    def of(cls, model: ir.Model) -> Site:
        """The site of a model nobody has changed yet."""
        graphs = (model.graph, *(each.graph for each in local_functions(model)))
        value_names = {name for graph in graphs for name in _value_names(graph)}
        return cls(
            model,
            model.opset_imports.get("", 0),
            owning_functions(model),
            value_names,
            {node.name or "" for graph in graphs for node in nodes_in(graph)},
            _digest(value_names),
        )

    def function_of(self, node: ir.Node) -> ir.Function | None:
        """The local function a node is in; None outside of local functions."""
        return self.owners.get(id(node.graph))


def _digest(names: set[str]) -> str:
    content = "\0".join(sorted(names)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LENGTH]


def _value_names(whole: ir.Graph) -> Iterator[str]:
    for graph in graphs_in(whole):
        yield from graph.initializers
        outputs = (output for node in graph for output in node.outputs)
        yield from (value.name or "" for value in (*graph.inputs, *outputs))


def function_name(function: ir.Function) -> str:
    """What reports call a local function: ``domain::name``, with its overload if it has one."""
    overload = f":{function.overload}" if function.overload else ""
    return f"{function.domain}::{function.name}{overload}"
