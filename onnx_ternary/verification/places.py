"""Where the converted products stand, and where that is in the original."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
)

from onnx_ternary.op.nodes import AXES_KEY, CHANGE_KEY, ROWS_KEY, is_own
from onnx_ternary.schema import DOMAIN, GATHER_TYPE, OP_TYPE, OpAttributes

# No tolerance of a conversion is larger.
_MAX_CHANGE = 1 / 3
_MOVING = ("Transpose", "Reshape")


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
    """Nodes of subgraphs and of functions other than the operators' own bodies."""
    yield from subgraph_nodes(model.graph.node)
    for function in model.functions:
        if not is_own(function.domain, function.name):
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


class Scope:
    """Where products stand: the main graph, a local function seen as a graph, or a subgraph.

    What names mean is looked up once, so that a product costs the same however large its graph is.
    """

    def __init__(
        self,
        before: GraphProto,
        after: GraphProto,
        function: FunctionKey | None = None,
        outer: Scope | None = None,
    ) -> None:
        """A graph of both models.

        Args:
            before: the original's.
            after: the converted model's.
            function: which function it is, or is inside of; None for the main graph.
            outer: what a subgraph sees; None where the graph is none.
        """
        self.before = before
        self.after = after
        self.function = function
        self.outer = outer

    @property
    def is_subgraph(self) -> bool:
        """Whether it is a branch or a body, which may run many times or not at all."""
        return self.outer is not None

    @cached_property
    def products(self) -> list[NodeProto]:
        """Products among the graph's own nodes, subgraphs apart."""
        return [node for node in self.after.node if is_product(node)]

    @cached_property
    def gathers(self) -> list[NodeProto]:
        """The `TernaryIndexedGather` nodes among its own."""
        kind = (DOMAIN, GATHER_TYPE)
        return [node for node in self.after.node if (node.domain, node.op_type) == kind]

    @cached_property
    def known(self) -> set[str]:
        """Names of the original's values."""
        names = {value.name for value in self.before.input}
        names.update(tensor.name for tensor in self.before.initializer)
        names.update(name for node in self.before.node for name in node.output if name)
        return names if self.outer is None else names | self.outer.known

    @cached_property
    def makers(self) -> Mapping[str, tuple[tuple[int, int], NodeProto]]:
        """The original's nodes by their outputs, and their place: outer graphs come first."""
        found = {} if self.outer is None else dict(self.outer.makers)
        for at, node in enumerate(self.before.node):
            found.update((name, ((self._depth, at), node)) for name in node.output if name)
        return found

    @cached_property
    def initializers(self) -> Mapping[str, TensorProto]:
        """The original's, by name."""
        found = {} if self.outer is None else dict(self.outer.initializers)
        found.update((tensor.name, tensor) for tensor in self.before.initializer)
        return found

    @cached_property
    def constants(self) -> Mapping[str, TensorProto]:
        """The converted model's initializers and Constant nodes, by name."""
        found = {} if self.outer is None else dict(self.outer.constants)
        found.update(constant_tensors(self.after))
        return found

    @cached_property
    def attributes(self) -> Mapping[int, OpAttributes]:
        """The attributes of each product, by the node's id."""
        return {id(node): node_attributes(node) for node in self.products}

    @cached_property
    def places(self) -> Mapping[int, Place]:
        """Where each product stands in the original, by the node's id."""
        return find_places(self.after, self.products, self.known)

    @property
    def _depth(self) -> int:
        return 0 if self.outer is None else self.outer._depth + 1


def constant_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers and Constant nodes of a graph, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    found.update(
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant" and node.domain == ""
        for attribute in node.attribute
        if attribute.name == "value"
    )
    return found


def find_scopes(before: ModelProto, after: ModelProto) -> list[Scope]:
    """The main graph, and the local functions and subgraphs with products that both models have."""
    originals = {function_key(function): function for function in before.functions}
    scopes = [Scope(before.graph, after.graph)]
    for function in after.functions:
        key = function_key(function)
        # The operators' own bodies hold no product.
        if key in originals and not is_own(*key[:2]):
            scopes.append(Scope(_as_graph(originals[key]), _as_graph(function), key))
    subgraphs = [inner for scope in scopes for inner in _subgraph_scopes(scope)]
    found = (*scopes, *subgraphs)
    return [each for each in found if each.products or each.gathers or each is scopes[0]]


def _subgraph_scopes(scope: Scope) -> Iterator[Scope]:
    """Subgraphs of the nodes that both graphs have, at every depth."""
    originals = {
        node.output[0]: node
        for node in scope.before.node
        if node.output and any(map(has_graph, node.attribute))
    }
    for node in scope.after.node:
        original = originals.get(node.output[0]) if node.output else None
        if original is None or original.op_type != node.op_type:
            continue
        graphs = {each.name: each.g for each in original.attribute if each.HasField("g")}
        for attribute in node.attribute:
            if attribute.HasField("g") and attribute.name in graphs:
                inner = Scope(graphs[attribute.name], attribute.g, scope.function, scope)
                yield inner
                yield from _subgraph_scopes(inner)


def has_graph(attribute: AttributeProto) -> bool:
    """Whether an attribute holds subgraphs."""
    return attribute.HasField("g") or len(attribute.graphs) > 0


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
    return OpAttributes.read(values, node_name(node), node.op_type)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a converted node stands in the original.

    Attributes:
        source: the original's value that leads to X.
        target: the original's value that Y leads to.
        perm_x: permutation of the Transpose from source to X; None if there is no Transpose.
        perm_y: permutation of the Transpose from Y to target; None if there is no Transpose.
        split_x: lengths of the source's axes, transposed, that are X's last one; empty if one is.
        split_y: lengths of the target's axes, transposed, that are Y's last one; empty if one is.
        row_scale: name of the constant (K,) that a Mul right in front multiplies X by; empty if
            there is no such Mul. What `x_of` gives, and `source_of` takes, is X without it.
    """

    source: str
    target: str
    perm_x: tuple[int, ...] | None = None
    perm_y: tuple[int, ...] | None = None
    split_x: tuple[int, ...] = ()
    split_y: tuple[int, ...] = ()
    row_scale: str = ""

    @property
    def rank(self) -> int | None:
        """Of X and Y; None if they may have any."""
        if self.perm_x is not None:
            return len(self.perm_x) - max(len(self.split_x) - 1, 0)
        if self.perm_y is not None:
            return len(self.perm_y) - max(len(self.split_y) - 1, 0)
        return None

    def x_of(self, source: NDArray[Any]) -> NDArray[Any]:
        """X as the converted node gets it."""
        return _joined(_transposed(source, self.perm_x), self.split_x)

    def source_of(self, x: NDArray[Any]) -> NDArray[Any]:
        """What X comes from."""
        x = x.reshape(*x.shape[:-1], *self.split_x) if self.split_x else x
        return _transposed(x, None if self.perm_x is None else _inverse(self.perm_x))

    def y_of(self, target: NDArray[Any]) -> NDArray[Any]:
        """Y as the converted node should give it."""
        perm = None if self.perm_y is None else _inverse(self.perm_y)
        return _joined(_transposed(target, perm), self.split_y)


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(perm.index(axis) for axis in range(len(perm)))


def _transposed(array: NDArray[Any], perm: tuple[int, ...] | None) -> NDArray[Any]:
    if perm is None or len(perm) != array.ndim:
        return array
    return np.ascontiguousarray(array.transpose(perm))


def _joined(array: NDArray[Any], split: tuple[int, ...]) -> NDArray[Any]:
    """The last axes as one, where they have these lengths."""
    if not split or array.shape[-len(split) :] != split:
        return array
    return array.reshape(*array.shape[: -len(split)], math.prod(split))


def find_places(graph: GraphProto, nodes: Sequence[NodeProto], known: set[str]) -> dict[int, Place]:
    """Where nodes stand, by their id; conversion leaves a Transpose and a Reshape on either side.

    A Reshape says in its metadata what axes it joins or splits. A Mul may stand right in front.
    """
    moving = [node for node in graph.node if node.domain == "" and node.op_type in _MOVING]
    scaling = {node.output[0]: node for node in graph.node if _scales_rows(node)}
    before = {node.output[0]: node for node in moving}
    behind = {node.input[0]: node for node in moving}
    places: dict[int, Place] = {}
    for node in nodes:
        source, target = node.input[0], node.output[0]
        found: dict[str, Any] = {}
        if source not in known and source in scaling:
            source, found["row_scale"] = scaling[source].input
        for _ in _MOVING:
            if source not in known and source in before:
                found.update(_moved(before[source], "x"))
                source = before[source].input[0]
            if target not in known and target in behind:
                found.update(_moved(behind[target], "y"))
                target = behind[target].output[0]
        places[id(node)] = Place(source, target, **found)
    return places


def _scales_rows(node: NodeProto) -> bool:
    """Whether a node is the Mul that brings in the scale of a weight's rows."""
    if (node.domain, node.op_type, len(node.input)) != ("", "Mul", 2):
        return False
    return any(each.key == ROWS_KEY for each in node.metadata_props)


def _moved(node: NodeProto, side: str) -> dict[str, tuple[int, ...]]:
    """What a Transpose or a Reshape does, as `Place` says it."""
    if node.op_type == "Transpose":
        perm = tuple(axis for each in node.attribute if each.name == "perm" for axis in each.ints)
        return {f"perm_{side}": perm}
    axes = next((each.value for each in node.metadata_props if each.key == AXES_KEY), "")
    return {f"split_{side}": tuple(int(each) for each in axes.split(",") if each.isdecimal())}


def weight_change(node: NodeProto) -> float:
    """What conversion changed a product's weight by, relative to its scale, as it recorded it."""
    text = next((each.value for each in node.metadata_props if each.key == CHANGE_KEY), "0")
    try:
        change = float(text)
    except ValueError:
        return 0.0
    return change if 0 <= change < _MAX_CHANGE else 0.0


def node_name(node: NodeProto) -> str:
    """What reports call a node: its name, or its output's where it has none."""
    return node.name or node.output[0]
