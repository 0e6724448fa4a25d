"""What the interpreter of tests/fuzz/intervals.py does for each operator: attributes, inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.fuzz import intervals
from tests.fuzz.intervals import Array, Interval, monotonic, multiply, rounded

Attributes = dict[str, Any]
Kernel = Callable[..., Sequence[Interval]]


def _elementwise(function: Callable[[Array], Array]) -> Kernel:
    return lambda _, x: [monotonic(x, function)]


def _abs(_: Attributes, x: Interval) -> list[Interval]:
    return [Interval(np.abs(x.value), x.radius, x.dtype)]


def _neg(_: Attributes, x: Interval) -> list[Interval]:
    return [Interval(-x.value, x.radius, x.dtype)]


def _identity(_: Attributes, x: Interval) -> list[Interval]:
    return [x]


def _smooth(function: Callable[[Array], Array]) -> Kernel:
    """A function that ONNX Runtime approximates to a few 1e-7."""

    def kernel(_: Attributes, x: Interval) -> list[Interval]:
        found = monotonic(x, function)
        return [rounded(found.value, found.radius + 2e-6, x.dtype)]

    return kernel


def _reciprocal(attributes: Attributes, x: Interval) -> list[Interval]:
    one = Interval.of(np.ones((), x.dtype))
    return [intervals.divide(one, x)]


def _choose(choose: Callable[[Array, Array], Array]) -> Kernel:
    """Max or Min of two."""

    def kernel(_: Attributes, a: Interval, b: Interval) -> list[Interval]:
        value = choose(a.value, b.value)
        up = choose(a.value + a.radius, b.value + b.radius) - value
        down = value - choose(a.value - a.radius, b.value - b.radius)
        return [Interval(value, np.maximum(up, down), a.dtype)]

    return kernel


def _clip(
    attributes: Attributes, x: Interval, low: Interval | None = None, high: Interval | None = None
) -> list[Interval]:
    least = -np.inf if low is None else low.value
    most = np.inf if high is None else high.value
    shape = x.shape  # bounds have one element
    return [
        monotonic(
            x, lambda each: np.clip(each, np.ravel(least)[0], np.ravel(most)[0]).reshape(shape)
        )
    ]


def _round(_: Attributes, x: Interval) -> list[Interval]:
    return [_whole(x, np.rint)]


def _floor(_: Attributes, x: Interval) -> list[Interval]:
    return [_whole(x, np.floor)]


def _whole(x: Interval, function: Callable[[Array], Array]) -> Interval:
    value = function(x.value)
    up, down = function(x.value + x.radius) - value, value - function(x.value - x.radius)
    radius = np.where(np.isnan(up) | np.isnan(down), np.inf, np.maximum(up, down))
    return Interval(value, radius, x.dtype)


def _cast(attributes: Attributes, x: Interval) -> list[Interval]:
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    if dtype.kind == "f" and x.is_float:
        return [rounded(x.value, x.radius, dtype)]
    if dtype.kind in "iu" and x.is_float:
        x = _whole(x, np.trunc)
        outside = (x.value + x.radius > np.iinfo(dtype).max) | (
            x.value - x.radius < np.iinfo(dtype).min
        )
        return [Interval(x.value, np.where(outside, np.inf, x.radius), dtype)]
    return [Interval(x.value, x.radius, dtype)]


def _matmul(_: Attributes, a: Interval, b: Interval) -> list[Interval]:
    return [intervals.matmul(a, b)]


def _turn(x: Interval) -> Interval:
    return x.moved(lambda each: np.swapaxes(each, -1, -2))


def _scaled(x: Interval, factor: float) -> Interval:
    return x if factor == 1 else multiply(x, Interval.of(np.array(factor, x.dtype)))


def _gemm(
    attributes: Attributes, a: Interval, b: Interval, c: Interval | None = None
) -> list[Interval]:
    a = _turn(a) if attributes.get("transA") else a
    b = _turn(b) if attributes.get("transB") else b
    found = _scaled(intervals.product(a, b), attributes.get("alpha", 1.0))
    if c is not None and attributes.get("beta", 1.0) != 0:
        found = intervals.add(found, _scaled(c, attributes.get("beta", 1.0)))
    return [found]


def _fused_matmul(attributes: Attributes, a: Interval, b: Interval) -> list[Interval]:
    a = _turn(a) if attributes.get("transA") else a
    b = _turn(b) if attributes.get("transB") else b
    return [_scaled(intervals.matmul(a, b), attributes.get("alpha", 1.0))]


def _einsum(attributes: Attributes, a: Interval, b: Interval) -> list[Interval]:
    """The two equations that are drawn."""
    if attributes["equation"] == b"...k,nk->...n":
        b = _turn(b)
    return [intervals.matmul(a, b)]


def _matmul_integer(
    _: Attributes, a: Interval, b: Interval, za: Interval | None = None, zb: Interval | None = None
) -> list[Interval]:
    a = a if za is None else Interval(a.value - za.value, a.radius + za.radius, a.dtype)
    b = b if zb is None else Interval(b.value - zb.value, b.radius, b.dtype)
    found = intervals.matmul(Interval(a.value, a.radius, np.dtype(np.int32)), b)
    return [Interval(found.value, found.radius, np.dtype(np.int32))]


def _dynamic_quantize(_: Attributes, x: Interval) -> list[Interval]:
    low = _choose(np.minimum)({}, _least(x, np.min), Interval.of(np.zeros((), np.float32)))[0]
    high = _choose(np.maximum)({}, _least(x, np.max), Interval.of(np.zeros((), np.float32)))[0]
    spread = intervals.add(high, low, -1)
    scale = intervals.divide(spread, Interval.of(np.array(255, np.float32)))
    if spread.value == 0:
        scale = Interval(np.ones(()), np.where(spread.radius > 1e-40, np.inf, 0), x.dtype)
    point = _whole(
        monotonic(intervals.divide(low, scale), lambda each: np.clip(-each, 0, 255)), np.rint
    )
    steps = _whole(intervals.divide(x, scale), np.rint)
    q = np.clip(steps.value + point.value, 0, 255)
    byte = np.dtype(np.uint8)
    codes = Interval(q, steps.radius + point.radius, byte)
    return [codes, scale, Interval(point.value, point.radius, byte)]


def _least(x: Interval, function: Callable[..., Any], **where: Any) -> Interval:
    """Min or max: no farther off than the worst of its candidates."""
    value = np.asarray(function(x.value, **where))
    up, down = function(x.value + x.radius, **where), function(x.value - x.radius, **where)
    return Interval(value, np.maximum(np.abs(up - value), np.abs(value - down)), x.dtype)


def _axes(attributes: Attributes, x: Interval, axes: Interval | None) -> tuple[int, ...]:
    given = attributes.get("axes") if axes is None else axes.value.astype(int).tolist()
    return tuple(range(x.value.ndim)) if given is None else tuple(given)


def _reduce_max(
    attributes: Attributes, x: Interval, axes: Interval | None = None
) -> list[Interval]:
    where = {"axis": _axes(attributes, x, axes), "keepdims": bool(attributes.get("keepdims", 1))}
    return [_least(x, np.max, **where)]


def _reduce_mean(
    attributes: Attributes, x: Interval, axes: Interval | None = None
) -> list[Interval]:
    where: Any = {
        "axis": _axes(attributes, x, axes),
        "keepdims": bool(attributes.get("keepdims", 1)),
    }
    terms = np.mean(np.abs(x.value), **where) * math.prod(x.shape)
    return [rounded(np.mean(x.value, **where), np.mean(x.radius, **where), x.dtype, terms)]


def _dequantize(
    attributes: Attributes, codes: Interval, scale: Interval, point: Interval | None = None
) -> list[Interval]:
    def along(each: Interval) -> Interval:
        if each.value.size == 1 and each.value.ndim < 2:
            return each.moved(lambda array: array.reshape(()))
        shape = [1] * codes.value.ndim
        shape[attributes.get("axis", 1)] = each.value.size
        return each.moved(lambda array: array.reshape(shape))

    value, radius = codes.value, codes.radius
    if point is not None:
        value = value - along(point).value
        radius = radius + along(point).radius
    return [multiply(Interval(value, radius, scale.dtype), along(scale))]


def _matmul_nbits(
    attributes: Attributes,
    x: Interval,
    codes: Interval,
    scales: Interval,
    points: Interval | None = None,
) -> list[Interval]:
    N, K, bits = attributes["N"], attributes["K"], attributes["bits"]
    size = attributes["block_size"]
    blocks, a_byte = -(-K // size), 8 // bits

    def fields(packed: Array, count: int) -> Array:
        shifts = np.arange(a_byte) * bits
        spread = (packed.astype(np.int64)[..., None] >> shifts) & (2**bits - 1)
        return spread.reshape(*packed.shape[:-1], -1)[..., :count]

    levels = fields(codes.value.reshape(N, blocks, -1), size)
    zero = np.full((N, blocks), 2 ** (bits - 1))
    if points is not None:
        zero = fields(points.value.reshape(N, -1), blocks)
    matrix = (levels - zero[..., None]) * scales.value.reshape(N, blocks, 1)
    weight = Interval(matrix.reshape(N, -1)[:, :K].T, np.zeros((K, N)), x.dtype)
    return [intervals.matmul(x, weight)]


def _transpose(attributes: Attributes, x: Interval) -> list[Interval]:
    return [x.moved(lambda each: np.transpose(each, attributes.get("perm")))]


def _reshape(_: Attributes, x: Interval, shape: Interval) -> list[Interval]:
    wanted = [x.shape[at] if size == 0 else int(size) for at, size in enumerate(shape.value)]
    return [x.moved(lambda each: each.reshape(wanted))]


def _gather(attributes: Attributes, x: Interval, where: Interval) -> list[Interval]:
    at = where.value.astype(np.int64)
    return [x.moved(lambda each: np.take(each, at, axis=attributes.get("axis", 0)))]


def _concat(attributes: Attributes, *parts: Interval) -> list[Interval]:
    value, radius = (
        np.concatenate([getattr(each, name) for each in parts], attributes["axis"])
        for name in ("value", "radius")
    )
    return [Interval(value, radius, parts[0].dtype)]


def _constant(attributes: Attributes) -> list[Interval]:
    return [Interval.of(numpy_helper.to_array(attributes["value"]))]


KERNELS: dict[str, Kernel] = {
    "Abs": _abs,
    "Add": lambda _, a, b: [intervals.add(a, b)],
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "DequantizeLinear": _dequantize,
    "Div": lambda _, a, b: [intervals.divide(a, b)],
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Einsum": _einsum,
    "Floor": _floor,
    "FusedMatMul": _fused_matmul,
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": _identity,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "MatMulNBits": _matmul_nbits,
    "Max": _choose(np.maximum),
    "Min": _choose(np.minimum),
    "Mul": lambda _, a, b: [multiply(a, b)],
    "Neg": _neg,
    "Reciprocal": _reciprocal,
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "Relu": _elementwise(lambda each: np.maximum(each, 0)),
    "Reshape": _reshape,
    "Round": _round,
    "Sigmoid": _smooth(lambda each: 1 / (1 + np.exp(-each))),
    "Sub": lambda _, a, b: [intervals.add(a, b, -1)],
    "Tanh": _smooth(np.tanh),
    "Transpose": _transpose,
}
