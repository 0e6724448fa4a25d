"""What a model's operators say about the sizes of its inputs and the range of its integers.

The graph is walked once without running it: shapes as tuples of `Size`, small integer tensors that
hold shapes as tuples of sizes, and where integers come from. Operators that are not known end what
is known; nothing is allocated, so the walk costs the same for any size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from onnx_ternary.op.nodes import is_own
from onnx_ternary.verification.shapes import (
    attention,
    constants,
    elementwise,
    layout,
    lookup,
    loops,
    products,
)
from onnx_ternary.verification.shapes.facts import Origin, Scope, Shape, Traced, copy_facts
from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size, Sizes

# Nodes looked at inside calls of local functions, and how deep these may call.
_MAX_CALLED_NODES = 50_000
_MAX_DEPTH = 64


# An operator that two files name is the later one's.
HANDLERS: Mapping[str, Handler] = {
    **elementwise.HANDLERS,
    **products.HANDLERS,
    **layout.HANDLERS,
    **lookup.HANDLERS,
    **attention.HANDLERS,
    **constants.HANDLERS,
}

LOOPS = {"Loop": loops.loop, "Scan": loops.scan}


def trace(model: ModelProto, inputs: Mapping[str, Shape], sizes: Sizes) -> Traced:
    """Walk the model from its inputs' shapes on; ``sizes`` is solved on the way."""
    found = Traced(sizes)
    scope = Scope()
    for value in model.graph.input:
        if value.name in inputs:
            scope.shapes[value.name] = inputs[value.name]
            scope.origins[value.name] = Origin(value.name)
    tracer = _Tracer(model, found)
    tracer.walk(model.graph, scope, 0)
    sizes.solve_products()
    return found


class _Tracer:
    """The walk through one model's graphs and the functions they call."""

    def __init__(self, model: ModelProto, found: Traced) -> None:
        self.found = found
        self.functions = {(each.domain, each.name): each for each in model.functions}
        self.num_called = 0

    def walk(self, graph: GraphProto, scope: Scope, depth: int) -> None:
        """The nodes of a graph, whose values go into ``scope``."""
        for tensor in graph.initializer:
            scope.tensors[tensor.name] = tensor
            scope.shapes.setdefault(tensor.name, tuple(map(Size, tensor.dims)))
            self.found.constants.update((dim, None) for dim in tensor.dims if dim > 1)
        self.walk_nodes(graph.node, scope, depth)

    def walk_nodes(self, nodes: Iterable[NodeProto], scope: Scope, depth: int) -> None:
        for node in nodes:
            self.num_called += depth > 0
            if self.num_called > _MAX_CALLED_NODES:
                return
            function = self.functions.get((node.domain, node.op_type))
            if function is not None and not is_own(node.domain, node.op_type):
                self.call(node, function, scope, depth)
            else:
                self.visit(node, scope, depth)

    def call(self, node: NodeProto, function: Any, scope: Scope, depth: int) -> None:
        """A call of a local function, walked with what its operands are."""
        if depth >= _MAX_DEPTH:
            return
        inner = Scope()
        for name, given in zip(function.input, node.input, strict=False):
            copy_facts(scope, given, inner, name)
        self.walk_nodes(function.node, inner, depth + 1)
        for name, made in zip(function.output, node.output, strict=False):
            copy_facts(inner, name, scope, made)

    def visit(self, proto: NodeProto, scope: Scope, depth: int) -> None:
        node = Node(proto, scope, self.found)
        if proto.op_type == "If":
            self.branch(node, depth)
        elif proto.op_type in LOOPS and depth < _MAX_DEPTH:
            LOOPS[proto.op_type](node, lambda body: self.walk(body, scope, depth + 1))
        elif proto.op_type in HANDLERS:
            HANDLERS[proto.op_type](node)
        elementwise.track_elements(node)

    def branch(self, node: Node, depth: int) -> None:
        """If: both branches, the second's shapes where they differ."""
        origin = node.scope.origins.get(node.input(0))
        if origin is not None:
            self.found.conditions.setdefault(origin.name)
        if depth >= _MAX_DEPTH:
            return
        for name in ("then_branch", "else_branch"):
            if name not in node.attributes:
                continue
            graph = node.attributes[name].g
            self.walk(graph, node.scope, depth + 1)
            for made, value in zip(node.proto.output, graph.output, strict=False):
                copy_facts(node.scope, value.name, node.scope, made)
