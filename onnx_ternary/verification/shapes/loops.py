"""Loop and Scan: what their bodies say about sizes, from one walk through each body.

A carried value has the shape it starts with, as long as the body's result has that shape too. Its
elements change, so what they are is not known inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnx import GraphProto

from onnx_ternary.verification.shapes.facts import Scope, Shape
from onnx_ternary.verification.shapes.node import Node
from onnx_ternary.verification.shapes.sizes import Size

WalkBody = Callable[[GraphProto], None]
_LOOP_OPERANDS = 2  # the number of turns, and the condition


def loop(node: Node, walk: WalkBody) -> None:
    """Loop(turns, condition, carried...): (turn, condition, carried...) -> (condition, ...)."""
    body = _body(node)
    if body is None or len(body.input) < _LOOP_OPERANDS:
        return
    for scalar in body.input[:_LOOP_OPERANDS]:
        node.scope.shapes[scalar.name] = ()
    carried = [value.name for value in body.input[_LOOP_OPERANDS:]]
    for at, name in enumerate(carried):
        _start(node.scope, node.input(at + _LOOP_OPERANDS), name)
    walk(body)
    turns = node.numbers(0)
    length = node.sizes.fresh() if turns is None or len(turns) != 1 else Size(turns[0])
    results = [value.name for value in body.output[1:]]
    _finish(node, carried, results)
    for at, name in enumerate(results[len(carried) :], len(carried)):
        if (shape := node.scope.shapes.get(name)) is not None:
            node.set((length, *shape), at)


def scan(node: Node, walk: WalkBody) -> None:
    """Scan(carried..., sequences...): (carried..., elements...) -> (carried..., elements...)."""
    body, num_sequences = _body(node), node.integer("num_scan_inputs", 0)
    if body is None or not 1 <= num_sequences <= len(node.proto.input):
        return
    num_carried = len(node.proto.input) - num_sequences
    if len(body.input) != len(node.proto.input) or len(body.output) < num_carried:
        return
    carried = [value.name for value in body.input[:num_carried]]
    for at, name in enumerate(carried):
        _start(node.scope, node.input(at), name)
    axes, length = node.ints("scan_input_axes"), node.sizes.fresh()
    for at, value in enumerate(body.input[num_carried:]):
        shape = node.shape(num_carried + at)
        axis = _axis(axes, at, shape)
        if shape is None or axis is None:
            continue
        node.equate(length, shape[axis])
        node.scope.shapes[value.name] = (*shape[:axis], *shape[axis + 1 :])
        _origin(node.scope, node.input(num_carried + at), value.name)
    walk(body)
    results = [value.name for value in body.output]
    _finish(node, carried, results)
    axes = node.ints("scan_output_axes")
    for at, name in enumerate(results[num_carried:]):
        shape = node.scope.shapes.get(name)
        whole = None if shape is None else (length, *shape)
        axis = _axis(axes, at, whole)
        if shape is not None and axis is not None:
            node.set((*shape[:axis], length, *shape[axis:]), num_carried + at)


def _body(node: Node) -> GraphProto | None:
    attribute = node.attributes.get("body")
    return attribute.g if attribute is not None and attribute.HasField("g") else None


def _axis(axes: Sequence[int], at: int, shape: Shape | None) -> int | None:
    """An axis of a list of attributes, 0 where the list is absent; None where there is none."""
    axis = axes[at] if at < len(axes) else 0
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    return axis % len(shape)


def _start(scope: Scope, given: str, name: str) -> None:
    """A carried value as its body is entered."""
    if given in scope.shapes:
        scope.shapes[name] = scope.shapes[given]
        _origin(scope, given, name)


def _origin(scope: Scope, given: str, name: str) -> None:
    if given in scope.origins:
        scope.origins[name] = scope.origins[given]


def _finish(node: Node, carried: Sequence[str], results: Sequence[str]) -> None:
    """The carried values' results, where a turn leaves their shape as it is."""
    for at, (name, result) in enumerate(zip(carried, results, strict=False)):
        before, behind = node.scope.shapes.get(name), node.scope.shapes.get(result)
        if before is None or behind is None or len(before) != len(behind):
            continue
        sizes = node.sizes
        if all(map(lambda a, b: sizes.resolve(a) == sizes.resolve(b), before, behind)):
            node.set(before, at)
