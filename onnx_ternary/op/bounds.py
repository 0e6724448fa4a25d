"""How far a kernel may be off: the derived error bounds of docs/op_spec.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.op.activations import quantize_rows
from onnx_ternary.schema import OpAttributes

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Largest relative rounding error, half the distance of denormals, largest finite number.
_ROUNDING: dict[np.dtype[Any], tuple[float, float, float]] = {
    np.dtype(np.float16): (2.0**-11, 2.0**-25, 65504.0),
    _BFLOAT16: (2.0**-8, 2.0**-134, (2 - 2.0**-7) * 2.0**127),
    # A float32 result is rounded by its last operation, which gamma counts.
    np.dtype(np.float32): (0.0, 0.0, float(np.finfo(np.float32).max)),
}
_DENORMAL_STEP = 2.0**-149
_COLUMNS_ELEMENTS = 1 << 22


def gamma(num_roundings: int) -> float:
    """Bound on the relative error of `num_roundings` float32 operations, gamma of docs/op_spec."""
    accumulated = num_roundings * 2.0**-24
    return accumulated / (1 - accumulated) if accumulated < 1 else np.inf


def float_error_bound(
    x: NDArray[Any],
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    group_size: int,
    bias: NDArray[np.float32],
    *,
    addition_depth: int,
    fixed_point: bool,
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = float`, docs/op_spec.md.

    With u = 2^-24 and gamma(n) = n u / (1 - n u), a term scale * level * x passes at most T =
    `addition_depth` additions within its group, the multiplication by the scale, one addition a
    group and the one of the bias, so it is off by at most gamma(T + G + 2) of its magnitude; one
    more rounding is left for a conversion (fixed point to float32). Summed over the terms, with
    A = sum |scale * level * x|:

        gamma(T + G + 3) * (A + |bias|)

    Additions in float32 are exact where they give denormals; multiplications are not. There are
    at most K + G of them, by a scale or from fixed point to float32 before that, each off by at
    most half a denormal step. Hence (K + G) * (1 + max scale) * 2^-149, which leaves room for the
    additions after them.

    A fixed-point kernel first rounds each activation by at most absmax * 2^-22.99, absmax that of
    the row, and each column takes scale * nonzeros of that.

    Rounding to float16 or bfloat16 adds half a unit in the last place of the result, whose
    magnitude is at most |exact| plus the above, or half a denormal step. Where that exceeds the
    largest number of the dtype, the result may overflow and the bound is inf. What the float64
    arithmetic here is off is added.

    Args:
        x: (..., K) activations.
        levels: (K, N) int8.
        scale: (), (N,) or (num_groups, N).
        group_size: rows per scale group, or 0.
        bias: (N,) or a scalar zero.
        addition_depth: T, the kernel's longest chain of float32 additions.
        fixed_point: whether the kernel rounds activations to fixed point.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (..., N) float64; NaN in rows with NaN or inf, which follow IEEE 754 and compare as such.

    Raises:
        ValueError: if `dtype` is another one.
    """
    K, N = levels.shape
    rows = x.reshape(-1, K).astype(np.float64)
    finite: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=1)
    rows = np.where(finite[:, None], rows, 0)
    group_scales = spread_scales(scale, levels.shape)
    num_groups = group_scales.shape[0]
    group_rows = group_size or K

    exact = np.zeros((rows.shape[0], N)) + bias
    magnitude = np.zeros((rows.shape[0], N)) + np.abs(bias)
    scaled_nonzeros = np.zeros(N)
    for g in range(num_groups):
        group = slice(g * group_rows, (g + 1) * group_rows)
        part, size = rows[:, group], np.abs(rows[:, group])
        for columns, signs in float64_columns(levels[group]):
            exact[:, columns] += (part @ signs) * group_scales[g, columns]
            magnitude[:, columns] += (size @ np.abs(signs)) * group_scales[g, columns]
        scaled_nonzeros += np.count_nonzero(levels[group], axis=0) * group_scales[g]

    bound = gamma(addition_depth + num_groups + 3) * magnitude
    bound += (K + num_groups) * (1 + group_scales.max(axis=0)) * _DENORMAL_STEP
    if fixed_point:
        absmax = np.max(np.abs(rows), axis=1, initial=0)
        bound += absmax[:, None] * scaled_nonzeros * 2.0**-22.99
    bound += (K + num_groups + 3) * 2.0**-53 * magnitude
    bound = _with_output_rounding(exact, bound, dtype)
    bound[~finite] = np.nan
    return bound.reshape(*x.shape[:-1], N)


def int8_error_bound(
    x: NDArray[Any],
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    group_size: int,
    bias: NDArray[np.float32],
    attributes: OpAttributes,
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = int8`, exact being what q, s and scale give.

    q, s and integer sums are exact. With one scale per column the sum is converted to float32,
    divided by s and multiplied by the scale, and the bias is added: gamma(5) of
    |sum / s * scale| + |bias|, one more than that for kernels that multiply by 1 / s.

    With scales per group kernels add weighted integers in float32: sums of groups, or of parts of
    them in spans of 128 inputs. A term scale * level * q passes at most an addition a span and a
    group, two among the lanes of a column, a conversion, the multiplications by the scale and by
    1 / s, and the addition of the bias. With A = sum |scale * level * q| / s:

        gamma(ceil(K / 128) + G + 5) * (A + |bias|)

    A product that is a denormal is off by half a denormal step. Rounding to Y's dtype as in
    `float_error_bound`.

    Args:
        x: (..., K) activations.
        levels: (K, N) int8.
        scale: (), (N,) or (num_groups, N).
        group_size: rows per scale group, or 0.
        bias: (N,) or a scalar zero.
        attributes: the activation rule.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (..., N) float64; NaN in rows with NaN or inf, whose results are NaN.

    Raises:
        ValueError: if `dtype` is another one.
    """
    K, N = levels.shape
    q, s = quantize_rows(x.reshape(-1, K).astype(np.float32), attributes)
    group_scales = spread_scales(scale, levels.shape)
    num_groups = group_scales.shape[0]
    group_rows = group_size or K

    exact = np.zeros((q.shape[0], N)) + bias
    magnitude = np.abs(exact)
    for g in range(num_groups):
        group = slice(g * group_rows, (g + 1) * group_rows)
        part = q[:, group].astype(np.float64)
        size = np.abs(part)
        for columns, signs in float64_columns(levels[group]):
            factor = group_scales[g, columns] / s[:, None].astype(np.float64)
            term = (part @ signs) * factor
            exact[:, columns] += term
            magnitude[:, columns] += (size @ np.abs(signs)) * factor if group_size else np.abs(term)

    roundings = (-(-K // 128) if group_size else 0) + num_groups + (5 if group_size else 4)
    bound = gamma(roundings) * magnitude + num_groups * _DENORMAL_STEP
    bound += roundings * 2.0**-53 * magnitude
    bound = _with_output_rounding(exact, bound, dtype)
    return bound.reshape(*x.shape[:-1], N)


def uint8_error_bound(
    centred: NDArray[np.int64],
    x_scale: np.float32,
    levels: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    dtype: Any,
) -> NDArray[np.float64]:
    """Bound on ``|Y - exact|`` for `activation = uint8`, exact being what q and the scales give.

    The integer sums are exact. A sum is converted to float32, x_scale multiplied by scale, both
    multiplied, and the bias added: gamma(4) of |sum * x_scale * scale| + |bias|. The product of the
    scales may be off by half a denormal step, as often as the sum says, and the last product by
    another.

    Args:
        centred: (M, K) as `quantize_tensor` returns it, some rows or all of them.
        x_scale: as well.
        levels: (K, N) int8.
        scale: () or (N,).
        bias: (N,) or a scalar zero.
        dtype: of Y: float32, float16 or bfloat16.

    Returns:
        (M, N) float64; NaN where x_scale is not finite, and so is every result.

    Raises:
        ValueError: if `dtype` is another one.
    """
    sums = np.empty((centred.shape[0], levels.shape[1]))
    for columns, signs in float64_columns(levels):
        sums[:, columns] = centred.astype(np.float64) @ signs
    products = sums * (np.float64(x_scale) * scale.astype(np.float64))
    magnitude = np.abs(products) + np.abs(bias)
    bound = (gamma(4) + 4 * 2.0**-53) * magnitude + (np.abs(sums) + 1) * _DENORMAL_STEP
    return _with_output_rounding(products + bias, bound, dtype)


def float64_columns(levels: NDArray[np.int8]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Levels a few columns at a time, so that a large matrix is never in memory as float64."""
    step = max(1, _COLUMNS_ELEMENTS // levels.shape[0])
    for start in range(0, levels.shape[1], step):
        columns = slice(start, start + step)
        yield columns, levels[:, columns].astype(np.float64)


def spread_scales(scale: NDArray[np.float32], weight_shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Scales (num_groups, N) float64."""
    full = scale if scale.ndim == 2 else np.broadcast_to(scale, (1, weight_shape[1]))
    return full.astype(np.float64)


def require_rounding(dtype: Any) -> tuple[float, float, float]:
    """How results of a dtype are rounded, as `_ROUNDING` has it.

    Raises:
        ValueError: if the op has no results of this dtype.
    """
    found = _ROUNDING.get(np.dtype(dtype))
    if found is None:
        raise ValueError(f"dtype is {np.dtype(dtype)}, expected float32, float16 or bfloat16")
    return found


def _with_output_rounding(
    exact: NDArray[np.float64], bound: NDArray[np.float64], dtype: Any
) -> NDArray[np.float64]:
    relative, absolute, largest = require_rounding(dtype)
    reach = np.abs(exact) + bound
    rounded = bound + np.maximum(reach * relative, absolute)
    return np.where(reach > largest, np.inf, rounded)
