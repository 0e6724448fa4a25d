"""Operators that lay elements out differently: reshape, transpose, concatenate, split, reduce."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnx_ternary.verification.shapes.facts import MAX_VALUES, Shape
from onnx_ternary.verification.shapes.node import Handler, Node
from onnx_ternary.verification.shapes.sizes import Size


def _transpose(node: Node) -> None:
    x = node.shape(0)
    if x is not None:
        perm = node.ints("perm") or list(reversed(range(len(x))))
        if sorted(perm) == list(range(len(x))):
            node.set(tuple(x[axis] for axis in perm))


def _reshape(node: Node) -> None:
    x, wanted, length = node.shape(0), node.values(1), node.shape(1)
    if node.values(0) is not None:
        node.set_values(node.values(0))
    if wanted is None:
        rank = length[0].value if length and len(length) == 1 else None
        if rank is not None and rank <= MAX_VALUES:
            node.set([node.sizes.fresh() for _ in range(rank)])
        return
    target: list[Size | None] = []
    inferred = -1
    for at, size in enumerate(wanted):
        number = None if size is None else node.sizes.resolve(size)
        if number == Size(0) and not node.integer("allowzero", 0):
            number = x[at] if x is not None and at < len(x) else None
        elif number == Size(-1):
            number, inferred = None, at
        target.append(number)
    known = [size for size in target if size is not None]
    if x is not None and len(known) + (inferred >= 0) == len(target):
        rest = _quotient(node, x, known, nothing_left=inferred < 0)
        if inferred >= 0:
            target[inferred] = rest
    node.set([size if size is not None else node.sizes.fresh() for size in target])


def _quotient(
    node: Node, whole: Sequence[Size], parts: Sequence[Size], *, nothing_left: bool = False
) -> Size | None:
    """What the parts leave of a product: a size, or 1 if it is told that nothing is left."""
    above = list(map(node.sizes.resolve, whole))
    below = []
    for size in map(node.sizes.resolve, parts):
        if size in above:
            above.remove(size)
        else:
            below.append(size)
    top = math.prod(size.constant for size in above if not size.terms)
    bottom = math.prod(size.constant for size in below if not size.terms)
    unknown = [size for size in above if size.terms]
    unknown_below = [size for size in below if size.terms]
    if bottom <= 0 or top <= 0:
        return None
    divisor = math.gcd(top, bottom)
    top, bottom = top // divisor, bottom // divisor
    if nothing_left:
        if len(unknown) <= 1 and len(unknown_below) <= 1:
            one, other = (*unknown, Size(1))[0], (*unknown_below, Size(1))[0]
            node.equate(one.times(top), other.times(bottom))
        elif not unknown_below and top == 1:
            node.equate(node.sizes.product(1, tuple(unknown)), Size(bottom))
        return Size(1)
    if unknown_below or (bottom != 1 and len(unknown) != 1):
        return None
    if bottom != 1:
        # d as (-1, 64): d is a multiple of 64.
        left = unknown[0].times(top).divided(bottom) or node.sizes.fresh()
        node.equate(left.times(bottom), unknown[0].times(top))
        return left
    if not unknown:
        return Size(top)
    if len(unknown) == 1:
        return unknown[0].times(top)
    return node.sizes.product(top, tuple(unknown))


def _flatten(node: Node) -> None:
    x = node.shape(0)
    if x is not None:
        axis = node.integer("axis", 1)
        axis += len(x) if axis < 0 else 0
        sides = [_quotient(node, side, ()) for side in (x[:axis], x[axis:])]
        node.set([side if side is not None else node.sizes.fresh() for side in sides])


def _squeeze(node: Node) -> None:
    x, axes = node.shape(0), node.numbers(1, "axes")
    node.set_values(node.values(0))
    if x is not None:
        gone = (
            {axis % max(1, len(x)) for axis in axes}
            if axes is not None
            else {at for at, size in enumerate(x) if size == Size(1)}
        )
        node.set([size for at, size in enumerate(x) if at not in gone])


def _unsqueeze(node: Node) -> None:
    x, axes = node.shape(0), node.numbers(1, "axes")
    node.set_values(node.values(0))
    if x is not None and axes is not None:
        rank = len(x) + len(axes)
        new = {axis % rank for axis in axes}
        rest = iter(x)
        node.set([Size(1) if at in new else next(rest, Size(1)) for at in range(rank)])


def _concat(node: Node) -> None:
    shapes = [node.shape(at) for at in range(len(node.proto.input))]
    known = [shape for shape in shapes if shape]
    if len(shapes) == 2 and shapes[0] and len(shapes[0]) >= 3:
        node.mark_cache(0, node.integer("axis", 0) % len(shapes[0]))
    if len(known) == len(shapes) and len(set(map(len, known))) == 1:
        node.set(_joined(node, known))
    elements: list[Size | None] = []
    for at, shape in enumerate(shapes):
        part = node.values(at)
        if part is None and shape == (Size(1),):
            part = (None,)
        if part is None:
            return
        elements.extend(part)
    node.set_values(tuple(elements))


def _joined(node: Node, shapes: Sequence[Shape]) -> Shape:
    axis = node.integer("axis", 0) % len(shapes[0])
    result = list(shapes[0])
    for shape in shapes[1:]:
        for at, size in enumerate(shape):
            if at == axis:
                result[at] += size
            else:
                node.equate(result[at], size)
    return tuple(result)


def _split(node: Node) -> None:
    x = node.shape(0)
    if not x:
        return
    axis = node.integer("axis", 0) % len(x)
    count = len(node.proto.output)
    parts = node.numbers(1, "split")
    if parts is not None and len(parts) == count:
        node.equate(x[axis], Size(sum(parts)))
        made: list[Size | None] = [Size(part) for part in parts]
    else:
        made = [node.sizes.resolve(x[axis]).divided(count)] * count
    for at, size in enumerate(made):
        part = size if size is not None else node.sizes.fresh()
        node.set((*x[:axis], part, *x[axis + 1 :]), at)


def _expand(node: Node) -> None:
    x, target = node.shape(0), node.values(1)
    if x is None or target is None:
        return
    rank = max(len(x), len(target))
    left = [Size(1)] * (rank - len(x)) + list(x)
    right = [Size(1)] * (rank - len(target)) + list(target)
    made = []
    for one, other in zip(left, right, strict=True):
        if other is None:
            made.append(one if one != Size(1) else node.sizes.fresh())
        else:
            made.append(node.broadcast_shapes(((one,), (other,)))[0])
    node.set(made)


def _reduce(node: Node) -> None:
    x = node.shape(0)
    if x is None:
        return
    axes = node.numbers(1, "axes")
    if axes is None and node.proto.op_type.startswith("Arg"):
        axes = [node.integer("axis", 0)]
    if axes is None and node.input(1):
        return
    gone = set(range(len(x))) if not axes else {axis % max(1, len(x)) for axis in axes}
    if node.integer("keepdims", 1):
        node.set([Size(1) if at in gone else size for at, size in enumerate(x)])
    else:
        node.set([size for at, size in enumerate(x) if at not in gone])


HANDLERS: Mapping[str, Handler] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Expand": _expand,
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ArgMax", "ArgMin"),
        ),
        _reduce,
    ),
}
