"""Where the converted products stand, and where that is in the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper

from onnx_ternary.schema import DOMAIN, OP_TYPE, OpAttributes


def is_product(node: NodeProto) -> bool:
    """Whether a node is a `TernaryIndexedMatMul`."""
    return node.op_type == OP_TYPE and node.domain == DOMAIN


def blockwise_products(model: ModelProto) -> set[str]:
    """What MatMulNBits nodes produce."""
    return {
        node.output[0]
        for node in model.graph.node
        if (node.domain, node.op_type) == ("com.microsoft", "MatMulNBits")
    }


def nested_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes of subgraphs and of functions other than the op's own body."""
    yield from subgraph_nodes(model.graph.node)
    for function in model.functions:
        if (function.domain, function.name) != (DOMAIN, OP_TYPE):
            yield from function.node
            yield from subgraph_nodes(function.node)


def subgraph_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes of the subgraphs of nodes, at every depth."""
    for node in nodes:
        for attribute in node.attribute:
            graphs: list[GraphProto] = [*attribute.graphs]
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            for graph in graphs:
                yield from graph.node
                yield from subgraph_nodes(graph.node)


# Domain, name and overload of a local function.
FunctionKey: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """Where products stand: the main graph, or a local function seen as a graph.

    Attributes:
        before: the original's.
        after: the converted model's.
        function: which function; None for the main graph.
    """

    before: GraphProto
    after: GraphProto
    function: FunctionKey | None = None

    @property
    def products(self) -> list[NodeProto]:
        """Those of its own nodes, subgraphs apart."""
        return [node for node in self.after.node if is_product(node)]

    @property
    def known(self) -> set[str]:
        """Names of the original's values."""
        names = {value.name for value in self.before.input}
        names.update(tensor.name for tensor in self.before.initializer)
        names.update(name for node in self.before.node for name in node.output if name)
        return names


def find_scopes(before: ModelProto, after: ModelProto) -> list[Scope]:
    """The main graph, and the local functions with products that both models have."""
    originals = {function_key(function): function for function in before.functions}
    scopes = [Scope(before.graph, after.graph)]
    for function in after.functions:
        key = function_key(function)
        # The op's own body holds no product.
        if key in originals and any(map(is_product, function.node)):
            scopes.append(Scope(_as_graph(originals[key]), _as_graph(function), key))
    return scopes


def function_key(function: FunctionProto) -> FunctionKey:
    """Domain, name and overload of a local function."""
    return function.domain, function.name, function.overload


def _as_graph(function: FunctionProto) -> GraphProto:
    return GraphProto(
        name=function.name,
        node=function.node,
        input=[onnx.ValueInfoProto(name=name) for name in function.input],
        output=[onnx.ValueInfoProto(name=name) for name in function.output],
    )


def node_attributes(node: NodeProto) -> OpAttributes:
    """The node's attributes.

    Raises:
        IndexFormatError: if they break the rules of docs/op_spec.md.
    """
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values: dict[str, Any] = {
        name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()
    }
    return OpAttributes.read(values, node_name(node))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a converted node stands in the original.

    Attributes:
        source: the original's value that leads to X.
        target: the original's value that Y leads to.
        perm_x: of the Transpose from source to X; None if they are the same.
        perm_y: of the Transpose from Y to target; None if they are the same.
    """

    source: str
    target: str
    perm_x: tuple[int, ...] | None = None
    perm_y: tuple[int, ...] | None = None

    def x_of(self, source: NDArray[Any]) -> NDArray[Any]:
        """X as the converted node gets it."""
        return _transposed(source, self.perm_x)

    def source_of(self, x: NDArray[Any]) -> NDArray[Any]:
        """What X comes from."""
        return _transposed(x, None if self.perm_x is None else _inverse(self.perm_x))

    def y_of(self, target: NDArray[Any]) -> NDArray[Any]:
        """Y as the converted node should give it."""
        return _transposed(target, None if self.perm_y is None else _inverse(self.perm_y))

    def target_of(self, y: NDArray[Any]) -> NDArray[Any]:
        """What Y leads to."""
        return _transposed(y, self.perm_y)


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


def _transposed(array: NDArray[Any], perm: tuple[int, ...] | None) -> NDArray[Any]:
    if perm is None or len(perm) != array.ndim:
        return array
    return np.ascontiguousarray(array.transpose(perm))


def find_places(graph: GraphProto, nodes: Sequence[NodeProto], known: set[str]) -> dict[int, Place]:
    """Where nodes stand, by their id; conversion leaves at most a Transpose on either side."""
    transposes = [node for node in graph.node if node.op_type == "Transpose" and node.domain == ""]
    before = {node.output[0]: node for node in transposes}
    behind = {node.input[0]: node for node in transposes}
    places: dict[int, Place] = {}
    for node in nodes:
        source, target = node.input[0], node.output[0]
        perms: list[tuple[int, ...] | None] = [None, None]
        if source not in known and source in before:
            perms[0], source = _perm(before[source]), before[source].input[0]
        if target not in known and target in behind:
            perms[1], target = _perm(behind[target]), behind[target].output[0]
        places[id(node)] = Place(source, target, *perms)
    return places


def _perm(node: NodeProto) -> tuple[int, ...]:
    return tuple(axis for each in node.attribute if each.name == "perm" for axis in each.ints)


def node_name(node: NodeProto) -> str:
    """What reports call a node: its name, or its output's where it has none."""
    return node.name or node.output[0]
