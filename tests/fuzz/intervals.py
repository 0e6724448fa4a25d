"""A small interpreter of ONNX in float64 that also says how far any float32 evaluation may be off.

Every number is a value and a radius. A node's radius holds what its operands are off and what its
own arithmetic may lose in its dtype, in any order of additions; products may lose what
docs/op_spec.md states for `activation = float`, the fixed-point term included. Where a value may
leave the range of its dtype the radius is infinite. So an original, its conversion and both behind
ONNX Runtime's optimizations lie within the radius, or one of them is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
EXTRA_ROUNDINGS = 24
"""Of a product beside its sum: absorbed factors and scales, each rounded, and a margin of two."""
ERRORS = {"float32": 2.0**-24, "float16": 2.0**-11}
STEPS = {"float32": 2.0**-149, "float16": 2.0**-24}
LIMITS = {"float32": float(np.finfo(np.float32).max), "float16": 65504.0}


@dataclass(frozen=True)
class Interval:
    """Numbers (float64) of a dtype, and how far each may be off."""

    value: Array
    radius: Array
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: Array) -> Interval:
        value = array.astype(np.float64)
        return cls(value, np.zeros_like(value), array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def reach(self) -> Array:
        return np.abs(self.value) + self.radius

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "f"

    def moved(self, move: Callable[[Array], Array]) -> Interval:
        """The same numbers in other places."""
        return Interval(move(self.value), move(self.radius), self.dtype)


Values = dict[str, Interval]
Node = onnx.NodeProto
Kernel = Callable[..., Sequence[Interval]]


def rounded(
    value: Array, radius: Array, dtype: np.dtype[Any], terms: Array | None = None
) -> Interval:
    """A result after one rounding of ``terms``, by default of the value."""
    value, radius = np.asarray(value), np.asarray(radius)
    if dtype.kind != "f":
        return Interval(value, _known(radius), dtype)
    reach = (np.abs(value) if terms is None else terms) + radius
    radius = _known(radius + 2 * ERRORS[dtype.name] * reach + STEPS[dtype.name])
    beyond = ~(np.abs(value) + radius < LIMITS[dtype.name])
    return Interval(np.where(beyond, 0, value), np.where(beyond, np.inf, radius), dtype)


def _known(radius: Array) -> Array:
    return np.where(np.isnan(radius), np.inf, radius)


def times(radius: Array, size: Array) -> Array:
    """A radius times a size; nothing of an unknown number is nothing."""
    return np.where(size == 0, 0, radius * size)


def monotonic(x: Interval, function: Callable[[Array], Array]) -> Interval:
    """An elementwise function that never decreases, or never increases."""
    value = function(x.value)
    up, down = function(x.value + x.radius), function(x.value - x.radius)
    return rounded(value, np.maximum(np.abs(up - value), np.abs(down - value)), x.dtype)


def add(a: Interval, b: Interval, sign: int = 1) -> Interval:
    terms = np.abs(a.value) + np.abs(b.value)
    return rounded(a.value + sign * b.value, a.radius + b.radius, a.dtype, terms)


def multiply(a: Interval, b: Interval) -> Interval:
    radius = times(a.radius, np.abs(b.value)) + times(b.radius, a.reach)
    return rounded(a.value * b.value, radius, a.dtype)


def divide(a: Interval, b: Interval) -> Interval:
    least = np.abs(b.value) - b.radius
    quotient = np.where(least > 0, a.value / np.where(least > 0, b.value, 1), 0)
    radius = (a.radius + times(b.radius, np.abs(quotient))) / np.where(least > 0, least, 1)
    return rounded(quotient, np.where(least > 0, radius, np.inf), a.dtype)


def product(a: Interval, b: Interval) -> Interval:
    """A matrix product (rank 2 and up) in any order of additions, or in fixed point."""
    K = a.shape[-1]
    unknown = np.matmul(np.isinf(a.radius) * 1.0, np.ones_like(b.value)) > 0
    unknown |= np.matmul(np.ones_like(a.value), np.isinf(b.radius) * 1.0) > 0
    ra, rb = (np.where(np.isinf(each.radius), 0, each.radius) for each in (a, b))
    size_a, size_b = np.abs(a.value) + ra, np.abs(b.value) + rb
    value, terms = np.matmul(a.value, b.value), np.matmul(size_a, size_b)
    radius = np.matmul(ra, size_b) + np.matmul(size_a, rb)
    if not a.is_float:
        return rounded(value, np.where(unknown, np.inf, radius), a.dtype)
    # Sums are of the dtype; inputs, factors and results are rounded to it.
    unit, step = ERRORS[a.dtype.name], STEPS[a.dtype.name]
    radius = radius + (K + K // 16 + EXTRA_ROUNDINGS) * unit * 1.01 * terms
    # Either side may be the activations.
    turned = np.swapaxes(_digits(np.swapaxes(size_b, -1, -2), np.swapaxes(size_a, -1, -2)), -1, -2)
    radius = radius + 2.0**-22.99 * np.maximum(_digits(size_a, size_b), turned)
    radius = radius + 4 * K * step * (1 + size_a.max(initial=0) + size_b.max(initial=0))
    # A partial sum may leave the range though the sum does not.
    unknown |= terms >= LIMITS[a.dtype.name] / 4
    return rounded(value, np.where(unknown, np.inf, radius), a.dtype, terms)


def _digits(x: Array, w: Array) -> Array:
    """What fixed point may lose, in units of its last digit: the largest input times the weights.

    Where W has a scale per row (docs/patterns.md), the largest input is one of X times that scale.
    """
    found = x.max(axis=-1, keepdims=True, initial=0) * w.sum(axis=-2, keepdims=True)
    gain = w.max(axis=-1, keepdims=True, initial=0)
    levels = w / np.where(gain > 0, gain, 1)
    scale = levels.max(axis=-2, keepdims=True, initial=0)
    # A zero has a radius of a subnormal number.
    if not np.isclose(levels, np.where(levels > 1e-30, scale, 0), rtol=1e-3, atol=1e-30).all():
        return found
    largest = (x * np.swapaxes(gain, -1, -2)).max(axis=-1, keepdims=True, initial=0)
    return np.maximum(found, largest * levels.sum(axis=-2, keepdims=True))


def matmul(a: Interval, b: Interval) -> Interval:
    """`numpy.matmul`, vectors included."""
    left, right = a.value.ndim == 1, b.value.ndim == 1
    a = a.moved(lambda each: each[None]) if left else a
    b = b.moved(lambda each: each[:, None]) if right else b
    found = product(a, b)
    if right:
        found = found.moved(lambda each: each[..., 0])
    if left:
        found = found.moved(lambda each: each[..., 0, :] if not right else each[..., 0])
    return found


class Interpreter:
    """Runs nodes of one model.

    Args:
        kernels: what each operator does; tests/fuzz/interval_kernels.py.
        functions: of the model.
    """

    def __init__(
        self, kernels: Mapping[str, Kernel], functions: Sequence[onnx.FunctionProto] = ()
    ) -> None:
        self.kernels = kernels
        self.functions = {(each.domain, each.name): each for each in functions}

    def run(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Values:
        """Every value of the main graph, by name."""
        values = {name: Interval.of(array) for name, array in feeds.items()}
        return self.graph(model.graph, values)

    def graph(self, graph: onnx.GraphProto, values: Values) -> Values:
        """Run a graph on what it can see, and add what it makes."""
        for tensor in graph.initializer:
            values.setdefault(tensor.name, Interval.of(numpy_helper.to_array(tensor)))
        return self.nodes(graph.node, values)

    def nodes(self, nodes: Sequence[Node], values: Values) -> Values:
        for node in nodes:
            found = self.node(node, values)
            values.update(zip(node.output, found, strict=False))
        return values

    def node(self, node: Node, values: Values) -> Sequence[Interval]:
        """The results of one node."""
        inputs = [values[name] if name else None for name in node.input]
        function = self.functions.get((node.domain, node.op_type))
        with np.errstate(all="ignore"):
            if function is not None:
                inner = self.nodes(function.node, dict(zip(function.input, inputs, strict=False)))
                return [inner[name] for name in function.output]
            if node.op_type in ("If", "Loop", "Scan"):
                return getattr(self, f"_{node.op_type.lower()}")(node, inputs, values)
            return self.kernels[node.op_type](attributes(node), *inputs)

    def body(
        self, graph: onnx.GraphProto, inputs: Sequence[Interval], values: Values
    ) -> list[Interval]:
        """One run of a body: its outputs."""
        inner = self.graph(
            graph, values | {v.name: x for v, x in zip(graph.input, inputs, strict=True)}
        )
        return [inner[output.name] for output in graph.output]

    def _if(self, node: Node, inputs: Sequence[Interval], values: Values) -> Sequence[Interval]:
        branch = "then_branch" if inputs[0].value else "else_branch"
        return self.body(attributes(node)[branch], [], values)

    def _loop(self, node: Node, inputs: Sequence[Interval], values: Values) -> Sequence[Interval]:
        body, carried = attributes(node)["body"], list(inputs[2:])
        yes, scanned = Interval.of(np.array(True)), []
        for count in range(int(inputs[0].value)):
            found = self.body(body, [Interval.of(np.array(count)), yes, *carried], values)
            carried, rest = found[1 : 1 + len(carried)], found[1 + len(carried) :]
            scanned.append(rest)
        return [*carried, *(stack(each) for each in zip(*scanned, strict=True))]

    def _scan(self, node: Node, inputs: Sequence[Interval], values: Values) -> Sequence[Interval]:
        body, (x,) = attributes(node)["body"], inputs
        found = [
            self.body(body, [x.moved(lambda each, row=row: each[row])], values)
            for row in range(x.shape[0])
        ]
        return [stack(each) for each in zip(*found, strict=True)]


def stack(parts: Sequence[Interval]) -> Interval:
    value, radius = (
        np.stack([getattr(each, name) for each in parts]) for name in ("value", "radius")
    )
    return Interval(value, radius, parts[0].dtype)


def attributes(node: Node) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
