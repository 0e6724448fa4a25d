"""The numbers docs/op_spec.md promises: an oracle that shares no line with what it judges.

Written from docs/op_spec.md, section Arithmetic, in float64 and exact integers. `judge` takes what
a kernel answered and raises AssertionError where the page does not allow the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

F32, F64 = np.float32, np.float64
U = 2.0**-24
SMALLEST = 2.0**-149
LARGEST = float(np.finfo(F32).max)
HIGHEST_FLOAT_ROW = 1e31
Floats = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Product:
    """What one node stands for.

    Args:
        levels: (K, N), -1, 0 or 1.
        scale: (), (N,) or (num_groups, N) float32.
        bias: (N,) or () float32.
        group_size: rows per scale group, or 0.
        activation: float, int8 or uint8.
        rule: activation_rule.
        epsilon: activation_epsilon.
        qmin: activation_qmin.
        qmax: activation_qmax.
    """

    levels: NDArray[np.int8]
    scale: Floats
    bias: Floats
    group_size: int = 0
    activation: str = "float"
    rule: str = "none"
    epsilon: float = 0.0
    qmin: int = 0
    qmax: int = 0

    @property
    def groups(self) -> list[tuple[slice, Wide]]:
        """Rows of every scale group, and the group's scales (N,)."""
        K, N = self.levels.shape
        size = self.group_size or K
        scales = np.broadcast_to(self.scale.astype(F64), (-(-K // size), N))
        return [(slice(at * size, (at + 1) * size), row) for at, row in enumerate(scales)]


@dataclass(frozen=True)
class Rounding:
    """How Y's dtype rounds: relative error, half the smallest step, the largest number."""

    relative: float = 0.0
    absolute: float = 0.0
    largest: float = LARGEST


ROUNDING = {
    "float32": Rounding(),
    "bfloat16": Rounding(2.0**-8, 2.0**-134, float.fromhex("0x1.fep127")),
    "float16": Rounding(2.0**-11, 2.0**-25, 65504.0),
}


@dataclass(frozen=True)
class Promise:
    """What the page says of the kernel that ran.

    Args:
        depth: T, the longest chain of additions; at most K.
        fixed_point: whether a kernel that rounds X to fixed point may have run.
        guarded: whether rows that are not ordinary went where the page sends them; not so where a
            kernel was forced.
        dtype: of Y.
    """

    depth: int
    fixed_point: bool
    guarded: bool = True
    dtype: str = "float32"


def gamma(roundings: int) -> float:
    return roundings * U / (1 - roundings * U)


def judge(product: Product, x: Floats, y: Floats, promise: Promise) -> None:
    """Compare Y (M, N) with the rule for X (M, K).

    Raises:
        AssertionError: if the page does not allow Y.
    """
    assert y.shape == (x.shape[0], product.levels.shape[1])
    with np.errstate(all="ignore"):
        if product.activation == "float":
            _judge_float(product, x, y, promise)
        elif product.activation == "int8":
            _judge_int8(product, x, y, promise)
        else:
            _judge_uint8(product, x, y, promise)


def ordinary(x: Floats) -> NDArray[np.bool_]:
    """Rows (M,) that fixed-point kernels may take: both measures of the page.

    A kernel sums in float32, so a row within a thousandth of a limit counts as ordinary.
    """
    K, size = x.shape[1], np.abs(x.astype(F64))
    absmax = size.max(axis=1, initial=0)
    small = np.where((size < absmax[:, None] / 16) & (size > 0), size, 0)
    count = np.count_nonzero(small, axis=1)
    limit = 1.001
    crest = absmax * K <= 128 * limit * size.sum(axis=1)
    among_small = absmax * count <= max(128, K / 2) * limit * small.sum(axis=1)
    taken: NDArray[np.bool_] = (absmax == 0) | (crest & among_small)
    return taken


def _judge_float(product: Product, x: Floats, y: Floats, promise: Promise) -> None:
    wide = x.astype(F64)
    finite = np.isfinite(x).all(axis=1)
    exact, terms, before, rounded = _float_sums(product, np.where(finite[:, None], wide, 0))
    K, num_groups = product.levels.shape[0], len(product.groups)
    bound = gamma(min(promise.depth, K) + num_groups + 3) * terms
    bound += (K + num_groups) * (1 + float(product.scale.max())) * SMALLEST
    if promise.fixed_point:
        allowed = ordinary(x) if promise.guarded else np.ones(x.shape[0], bool)
        bound += np.where(allowed[:, None], rounded, 0)
    fits = np.maximum(terms, before) * (1 + gamma(2 * K + num_groups)) < LARGEST
    # Weighted parts of groups that leave float32 meet as infinities; nobody guards a kernel that
    # is forced.
    guarded = np.abs(x).max(axis=1, initial=0) > HIGHEST_FLOAT_ROW
    open_ended = ~fits & ((not promise.guarded) | ((product.group_size > 0) & ~guarded[:, None]))
    chosen = finite[:, None] & ~(open_ended & ~np.isfinite(y))
    # A product that is infinite before the bias stays so.
    infinite = chosen & np.isinf(y) & (np.abs(exact - product.bias) + bound >= LARGEST)
    surely = infinite & (np.abs(exact - product.bias) > bound)
    assert (np.sign(y) == np.sign(exact - product.bias))[surely].all(), "infinite with a wrong sign"
    chosen &= ~infinite
    _compare(y[chosen], exact[chosen], bound[chosen], promise.dtype)
    if promise.guarded:
        # Rows with NaN or inf: as IEEE 754 multiplies and adds. 0 * inf is NaN, so no number stays.
        np.testing.assert_array_equal(y[~finite], _by_ieee(product, wide[~finite]).astype(F32))


def _float_sums(product: Product, x: Wide) -> tuple[Wide, Wide, Wide, Wide]:
    """Of every column: the sum, A + |bias|, A before the scale, and the fixed-point term."""
    M, N = x.shape[0], product.levels.shape[1]
    exact = np.zeros((M, N)) + product.bias
    terms, before, weighted = np.abs(exact), np.zeros((M, N)), np.zeros(N)
    for rows, scale in product.groups:
        levels = product.levels[rows].astype(F64)
        exact += (x[:, rows] @ levels) * scale
        size = np.abs(x[:, rows]) @ np.abs(levels)
        terms += size * scale
        before += size
        weighted += np.abs(levels).sum(axis=0) * scale
    absmax = np.abs(x).max(axis=1, initial=0)[:, None]
    return exact, terms, before, absmax * weighted * 2.0**-22.99


def _by_ieee(product: Product, x: Wide) -> Wide:
    """Y of a few rows, every product formed, those with zero too."""
    y = np.zeros((x.shape[0], product.levels.shape[1]))
    for rows, scale in product.groups:
        levels = product.levels[rows].astype(F64)
        y += (x[:, rows, None] * (levels * scale)[None]).sum(axis=1)
    return y + product.bias


def _compare(y: Floats, exact: Wide, bound: Wide, dtype: str) -> None:
    """Answers to finite inputs: within the bound, and infinite only where the sum is."""
    rounding = ROUNDING[dtype]
    # float64 sums of at most 2^17 terms are off themselves.
    bound = bound + 2.0**-35 * bound
    reach = np.abs(exact) + bound
    bound = bound + np.maximum(reach * rounding.relative, rounding.absolute)
    assert not np.isnan(y).any(), "NaN for finite inputs"
    may_overflow = reach + np.maximum(reach * rounding.relative, 0) >= rounding.largest
    surely = np.abs(exact) - bound > rounding.largest * (1 + rounding.relative + U)
    assert np.isfinite(y)[~may_overflow].all(), "infinite where the sum is not"
    assert np.isinf(y)[surely].all(), "finite where the sum is beyond the dtype"
    off = np.abs(np.where(np.isfinite(y), y, 0).astype(F64) - exact)
    wrong = np.isfinite(y) & (off > bound)
    assert not wrong.any(), _worst(wrong, y, exact, bound)
    infinite = np.isinf(y) & (np.abs(exact) > bound)
    assert (np.sign(y) == np.sign(exact))[infinite].all(), "infinite with a wrong sign"


def _worst(wrong: NDArray[np.bool_], y: Any, exact: Wide, bound: Wide) -> str:
    at = np.flatnonzero(wrong)[0]
    return (
        f"{y[at]!r}, expected {exact[at]!r} within {bound[at]:.3g}; {np.count_nonzero(wrong)} of "
        f"{wrong.size} are off"
    )


def rounded(values: Any, dtype: str) -> Floats:
    """float32 values as another dtype holds them."""
    if dtype == "float32":
        return np.asarray(values, F32)
    kind: Any = np.float16 if dtype == "float16" else ml_dtypes.bfloat16
    return np.asarray(values, F32).astype(kind).astype(F32)


def _judge_int8(product: Product, x: Floats, y: Floats, promise: Promise) -> None:
    finite = np.isfinite(x).all(axis=1)
    assert np.isnan(y[~finite]).all(), "a row with NaN or inf gives NaN in every column"
    x, y = x[finite], y[finite]
    absmax = np.maximum(np.abs(x).max(axis=1, initial=0), F32(product.epsilon))
    qmax = F32(product.qmax)
    s = qmax / absmax if product.rule == "absmax_division" else (F32(1) / absmax) * qmax
    s = s[:, None].astype(F32)
    q = np.clip(np.rint((x * s).astype(F32)), product.qmin, product.qmax).astype(np.int64)
    if not product.group_size:
        sums = (q @ product.levels.astype(np.int64)).astype(F32)
        expected = ((sums / s).astype(F32) * product.scale).astype(F32) + product.bias
        np.testing.assert_array_equal(y, rounded(expected, promise.dtype))
        return
    exact = np.zeros(y.shape) + product.bias
    terms, before = np.abs(exact), np.zeros(y.shape)
    for rows, scale in product.groups:
        levels = product.levels[rows].astype(np.int64)
        before += np.abs(q[:, rows]) @ np.abs(levels) / s
        exact += (q[:, rows] @ levels) * scale / s
        terms += (np.abs(q[:, rows]) @ np.abs(levels)) * scale / s
    num_groups = len(product.groups)
    bound = gamma(-(-product.levels.shape[0] // 128) + num_groups + 5) * terms
    bound += num_groups * SMALLEST
    # The page promises nothing where the terms together leave float32, with the scale or before.
    fits = np.maximum(terms, before) * (1 + gamma(1000)) < LARGEST
    _compare(y[fits], exact[fits], bound[fits], promise.dtype)


def _judge_uint8(product: Product, x: Floats, y: Floats, promise: Promise) -> None:
    lowest, highest = min(F32(0), x.min(initial=0)), max(F32(0), x.max(initial=0))
    spread = F32(highest - lowest)
    if not np.isfinite(x).all() or not np.isfinite(spread):
        assert np.isnan(y).all(), "NaN, inf or a range that overflows gives NaN in all of Y"
        return
    x_scale = F32(spread / F32(255)) if spread else F32(1)
    zero_point = np.rint(np.clip(F32(0) - F32(lowest / x_scale), 0, 255))
    q = np.clip(np.rint((x / x_scale).astype(F32)) + zero_point, 0, 255)
    if x_scale == 0:
        q = np.full(x.shape, zero_point)
    sums = (q - zero_point).astype(np.int64) @ product.levels.astype(np.int64)
    factor = (x_scale * product.scale).astype(F32)
    expected = (sums.astype(F32) * factor).astype(F32) + product.bias
    np.testing.assert_array_equal(y, rounded(expected, promise.dtype))
