"""Operators that look elements up: slices, and indices that have to stay inside an axis."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_ternary.schema import GATHER_TYPE
from onnx_ternary.verification.shapes.facts import Values
from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size

# Slices to the end are written with the largest integer of some type.
_NO_END = 1 << 30


def _slice(node: Node) -> None:
    x = node.shape(0)
    starts, ends = _slice_operand(node, "starts", 1), _slice_operand(node, "ends", 2)
    axes, steps = _slice_operand(node, "axes", 3), _slice_operand(node, "steps", 4)
    if starts is None or ends is None or len(starts) != len(ends):
        if x is not None:
            named = node.numbers(3, "axes")
            cut = set(range(len(x))) if named is None else {a % max(1, len(x)) for a in named}
            node.set([node.sizes.fresh() if a in cut else s for a, s in enumerate(x)])
        return
    places = [None if a is None else a.value for a in axes] if axes else range(len(starts))
    values = node.values(0)
    if x is None:
        return
    made = list(x)
    for at, axis in enumerate(places):
        if axis is None or at >= len(starts) or not -len(x) <= axis < len(x):
            return
        given = Size(1) if not steps else steps[at]
        step = None if given is None else given.value
        size = node.sizes.resolve(x[axis])
        made[axis] = _sliced(node, size, starts[at], ends[at], step)
        if values is not None and len(x) == 1:
            node.set_values(_slice_values(values, starts[at], ends[at], step))
    node.set(made)


def _slice_operand(node: Node, name: str, at: int) -> Values | None:
    """Starts, ends, axes or steps: an input, or an attribute in older opsets."""
    if name in node.attributes:
        return tuple(map(Size, node.attributes[name].ints))
    values = node.values(at)
    return values and tuple(v if v is None else node.sizes.resolve(v) for v in values)


def _sliced(node: Node, size: Size, start: Size | None, end: Size | None, step: int | None) -> Size:
    """The length of a slice that stays inside its axis."""
    if start is None or end is None or step is None or step < 1:
        return node.sizes.fresh()
    if start.value is not None and start.value < 0:
        start = size + start
    stop = end.value
    if stop is not None and stop < 0:
        end = size + end
    elif stop is not None and size.value is not None:
        end = Size(min(stop, size.value))
    elif stop is not None and stop > _NO_END:
        end = size
    elif stop is not None:
        return node.sizes.fresh()
    if step == 1:
        return end - start
    count = node.sizes.fresh()
    node.equate(count.times(step), end - start)
    return count


def _slice_values(
    values: Values, start: Size | None, end: Size | None, step: int | None
) -> Values | None:
    if start is None or end is None or start.value is None or end.value is None or not step:
        return None
    return values[start.value : end.value : step]


def _gather(node: Node) -> None:
    x, at = node.shape(0), node.shape(1)
    values, places = node.values(0), node.numbers(1)
    if values is not None and places is not None and node.shape(0) is not None:
        inside = all(-len(values) <= place < len(values) for place in places)
        node.set_values(tuple(values[place] for place in places) if inside else None)
    if not x or at is None:
        return
    key = "gather_axis" if node.proto.op_type == "GatherBlockQuantized" else "axis"
    axis = node.integer(key, 0) % len(x)
    node.bound(1, x[axis])
    node.set((*x[:axis], *at, *x[axis + 1 :]))


def _packed_rows(node: Node) -> None:
    """The package's own gather, whose table has N rows of K."""
    at, K, N = node.shape(0), node.integer("K", 0), node.integer("N", 0)
    if K > 0 and N > 0:
        node.bound(0, Size(N))
        if at is not None:
            node.set((*at, Size(K)))


def _gather_elements(node: Node) -> None:
    x, at = node.shape(0), node.shape(1)
    if x:
        node.bound(1, x[node.integer("axis", 0) % len(x)])
    node.set(at)


def _scatter(node: Node) -> None:
    x = node.shape(0)
    if x:
        axis = node.integer("axis", 0) if node.proto.op_type != "ScatterND" else 0
        node.bound(2 if node.proto.op_type == "TensorScatter" else 1, x[axis % len(x)])
    node.set(x)


def _embed_layer_norm(node: Node) -> None:
    ids, table = node.shape(0), node.shape(2)
    for at, rows in ((0, 2), (1, 4)):
        indexed = node.shape(rows)
        if indexed:
            node.bound(at, indexed[0])
    if ids is not None and table:
        node.set((*ids, table[-1]))


def _one_hot(node: Node) -> None:
    depth = node.numbers(1)
    if depth:
        node.bound(0, Size(depth[0]))


def _rotary(node: Node) -> None:
    """com.microsoft's: positions stay inside the table of cosines."""
    table = node.shape(2)
    if table and len(table) == 2:
        node.bound(1, table[0])
    node.set(node.shape(0))


HANDLERS: Mapping[str, Handler] = {
    "Slice": _slice,
    **dict.fromkeys(("Gather", "GatherBlockQuantized"), _gather),
    GATHER_TYPE: _packed_rows,
    "GatherElements": _gather_elements,
    **dict.fromkeys(("ScatterElements", "ScatterND", "TensorScatter"), _scatter),
    "EmbedLayerNormalization": _embed_layer_norm,
    "OneHot": _one_hot,
    "RotaryEmbedding": _rotary,
}
