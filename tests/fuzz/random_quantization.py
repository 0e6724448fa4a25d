"""Activations that a model quantizes itself, in the forms the op has and in forms beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.fuzz.random_graphs import F32, Scope, draw_levels, draw_weight, one

SIZES = (8, 16, 32, 48)


def _whole_numbers(scope: Scope, x: str) -> tuple[str, str]:
    """q and s of the absmax rule, or of one that differs in a detail."""
    rng, opset = scope.rng, scope.model.opset
    magnitudes = scope.add("Abs", x)
    axes: Any = one([[-1], [-1], [-1], [-1], [0], None], rng)
    if axes is not None and opset >= 18:
        top = scope.add("ReduceMax", magnitudes, scope.constant(np.array(axes)), keepdims=1)
    else:
        extra = {} if axes is None else {"axes": axes}
        top = scope.add("ReduceMax", magnitudes, keepdims=1, **extra)
    epsilon = scope.number(one([1e-5, 1e-5, 1e-3], rng))
    top = scope.add("Max", *one([(top, epsilon), (epsilon, top)], rng))
    qmax = one([127, 127, 127, 7, 64], rng)
    if rng.random() < 0.5:
        s = scope.add("Div", scope.number(qmax), top)
    else:
        inverse = scope.add("Reciprocal", top)
        s = scope.add(
            "Mul", *one([(inverse, scope.number(qmax)), (scope.number(qmax), inverse)], rng)
        )
    scaled = scope.add("Mul", *one([(x, s), (s, x)], rng))
    q = scope.add(one(["Round", "Round", "Round", "Round", "Floor"], rng), scaled)
    if rng.random() < 0.7:
        low, high = one([(-128, 127), (-127, 127), (-7, 7)], rng)
        if rng.random() < 0.5:
            bounds = [scope.constant(np.array(each, scope.model.dtype)) for each in (low, high)]
            q = scope.add("Clip", q, *bounds)
        else:
            q = scope.add("Min", scope.add("Max", q, scope.number(low)), scope.number(high))
    return q, s


def _fits(scope: Scope, x: str) -> bool:
    shape = scope.values[x].shape
    return bool(shape) and scope.values[x].value.size > 0


def axes_differ(scope: Scope, s: str) -> bool:
    """Whether s has not one number per row: it is no factor of the sums."""
    return scope.values[s].shape[-1:] not in ((), (1,))


def absmax(scope: Scope, x: str) -> str | None:
    """``(q / s) @ w``, ``(q @ w) / s``, a straight-through estimator, or integers."""
    if not _fits(scope, x):
        return None
    rng, N = scope.rng, int(one(SIZES, scope.rng))
    q, s = _whole_numbers(scope, x)
    how = rng.integers(4)
    if how == 0:
        back = scope.add("Div", q, s)
        if rng.random() < 0.3:
            back = scope.add("Mul", back, scope.number(one([1.0, 2.0, 0.3], rng)))
        return scope.add("MatMul", back, draw_weight(scope, scope.values[back].shape[-1], N))
    K = scope.values[q].shape[-1]
    if how == 1:
        back = scope.add("Div", q, s)
        if scope.values[back].shape != scope.values[x].shape:
            return None
        passed = scope.add("Add", x, scope.add("Sub", back, x))
        return scope.add("MatMul", passed, draw_weight(scope, K, N))
    if how == 2 or scope.model.dtype != F32:
        sums = scope.add("MatMul", q, draw_weight(scope, K, N))
    else:
        codes = scope.add("Cast", q, to=TensorProto.INT8)
        levels = scope.constant(draw_levels(rng, (K, N)).astype(np.int8))
        sums = scope.add("Cast", scope.add("MatMulInteger", codes, levels), to=TensorProto.FLOAT)
    if axes_differ(scope, s):
        return None
    factor = s
    if rng.random() < 0.5:
        factor = scope.add("Mul", s, scope.number(one([1.0, 0.25, 3.0], rng)))
    return scope.add("Div", sums, factor)


def dynamic(scope: Scope, x: str) -> str | None:
    """DynamicQuantizeLinear in front of MatMulInteger, or of a DequantizeLinear and MatMul."""
    if not _fits(scope, x) or scope.model.dtype != F32:
        return None
    rng, K, N = scope.rng, scope.values[x].shape[-1], int(one(SIZES, scope.rng))
    codes, scale, point = scope.add_all("DynamicQuantizeLinear", [x], 3)
    if rng.random() < 0.3:
        back = scope.add("DequantizeLinear", codes, scale, point)
        return scope.add("MatMul", back, draw_weight(scope, K, N))
    kind = one([np.int8, np.uint8], rng)
    zero = 0 if kind == np.int8 else 1
    levels = scope.constant((draw_levels(rng, (K, N)) + zero).astype(kind))
    shape = one([(), (1,), (N,)], rng)
    zeros = scope.constant(np.full(shape, zero, kind))
    sums = scope.add("MatMulInteger", codes, levels, point, zeros)
    wide = scope.add("Cast", sums, to=TensorProto.FLOAT)
    sizes: tuple[int, ...] = one([(), (1,), (N,), (1, 1), (1, 1, 1, 1, 1)], rng)
    weight_scale = scope.constant(rng.uniform(0.05, 1, sizes).astype(F32))
    if rng.random() < 0.7:
        factor = scope.add("Mul", scale, weight_scale)
        made = scope.add("Mul", *one([(wide, factor), (factor, wide)], rng))
    else:
        made = scope.add("Mul", scope.add("Mul", wide, scale), weight_scale)
    if rng.random() < 0.4:
        made = scope.add("Add", made, scope.constant(rng.normal(size=(N,)).astype(F32)))
    return made


QUANTIZED = (absmax, absmax, absmax, dynamic, dynamic)
