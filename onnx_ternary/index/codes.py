"""Which integer codes with zero points and scales are ternary weights.

Quantizers store W = (codes - zero_point) * scale, one scale for the matrix, a column, or a column
and group of consecutive rows. It is ternary where the levels ``codes - zero_point`` of each scale
and column are 0 and plus or minus one magnitude, whatever that magnitude is; it goes into the
scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.index.levels import SMALLEST_NORMAL, NotTernary, TernaryWeight, alphabet_of, tiles

# Smaller groups of rows have no place in a packed index.
_MIN_GROUP_SIZE = 16
_MAX_LISTED_CODES = 6


def ternarize_codes(
    codes: NDArray[Any],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float64],
    *,
    group_size: int,
    dtypes: Sequence[np.dtype[Any]] = (),
) -> TernaryWeight | NotTernary:
    """Find the levels and scales of a quantized weight matrix, exactly.

    Scales stay as fine as they are given, except that groups of rows count as one where their
    scales are the same: quantizers of blocks give a matrix with one scale as many as it has blocks.

    Args:
        codes: (K, N) integers, any memory order.
        scale: float32 (num_groups, N) or (num_groups, 1).
        zero_point: float64, one number for all or the shape of `scale`; need not be whole.
        group_size: rows per scale, where there is more than one group.
        dtypes: what the product of level and scale is rounded to, in turn.

    Returns:
        The levels and scales, or the reason why the matrix is not ternary.
    """
    K, N = codes.shape
    if K == 0 or N == 0:
        return NotTernary(f"weight is empty, shape ({K}, {N})")
    if not np.isfinite(scale).all():
        return NotTernary("weight has a scale that is NaN or infinite")
    zero_point = np.broadcast_to(zero_point, scale.shape)
    if len(scale) > 1 and group_size < _MIN_GROUP_SIZE:
        if (scale != scale[:1]).any() or (zero_point != zero_point[:1]).any():
            every = "row" if group_size == 1 else f"{group_size} rows"
            return NotTernary(
                f"weight has one scale every {every} along K, expected one for the matrix, a "
                f"column, or a group of {_MIN_GROUP_SIZE} or more rows",
                has_row_scales=group_size == 1,
            )
        scale, zero_point = scale[:1], zero_point[:1]
    num_groups = len(scale)
    step = group_size if num_groups > 1 else K
    levels = np.empty((K, N), np.int8)
    magnitudes = np.empty((num_groups, N), np.float32)
    for group in range(num_groups):
        rows = slice(group * step, (group + 1) * step)
        zeros = np.broadcast_to(zero_point[group], (N,))
        sizes = _largest_levels(codes[rows], zeros)
        column = _fill_levels(codes[rows], zeros, sizes, levels[rows])
        if column is not None:
            return _misfit(codes[rows, column], float(zeros[column]), column)
        with np.errstate(over="ignore", under="ignore"):
            magnitudes[group] = sizes.astype(np.float32) * np.abs(scale[group])
            for dtype in dtypes:
                magnitudes[group] = magnitudes[group].astype(dtype).astype(np.float32)
        signs = np.where(magnitudes[group] > 0, np.sign(scale[group]), 0).astype(np.int8)
        if (signs != 1).any():
            levels[rows] *= signs
    used = magnitudes[magnitudes > 0]
    if not np.isfinite(used).all():
        return NotTernary("weight contains a weight that is infinite or too large for its type")
    if used.size and used.min() < SMALLEST_NORMAL:
        return NotTernary(f"weight scale {used.min():g} is a denormal float32")
    if num_groups > 1 and (equal := _equal_groups(magnitudes)) is not None:
        one = used.size == 0 or used.min() == used.max()
        merged = np.array(equal.max(), np.float32) if one else equal
        return TernaryWeight(levels, merged, 0, alphabet_of(levels), 0.0)
    magnitudes[magnitudes == 0] = 1
    found: NDArray[np.float32] = magnitudes
    if num_groups == 1:
        found = magnitudes[0]
        if scale.size == 1 and (used.size == 0 or used.min() == used.max()):
            found = np.array(used[0] if used.size else 1, np.float32)
    return TernaryWeight(levels, found, step if num_groups > 1 else 0, alphabet_of(levels), 0.0)


def _equal_groups(magnitudes: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """One magnitude a column, (N,), where all groups have it; groups of zeros have any."""
    largest: NDArray[np.float32] = magnitudes.max(axis=0)
    if ((magnitudes != largest) & (magnitudes != 0)).any():
        return None
    largest[largest == 0] = largest.max(initial=0) or 1
    return largest


def _largest_levels(codes: NDArray[Any], zeros: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest |code - zero point| of each column, (N,)."""
    above = codes.max(axis=0).astype(np.float64) - zeros
    below = zeros - codes.min(axis=0).astype(np.float64)
    largest: NDArray[np.float64] = np.maximum(above, below)
    return largest


def _fill_levels(
    codes: NDArray[Any],
    zeros: NDArray[np.float64],
    sizes: NDArray[np.float64],
    levels: NDArray[np.int8],
) -> int | None:
    """Write the signs of codes that are zero, or plus or minus the size; else give a column."""
    for rows, columns in tiles(codes):
        tile = codes[rows, columns]
        up = tile == zeros[columns] + sizes[columns]
        down = tile == zeros[columns] - sizes[columns]
        fits = up | down | (tile == zeros[columns])
        if not fits.all():
            return int(columns.start) + int((~fits).any(axis=0).argmax())
        np.subtract(up.view(np.int8), down.view(np.int8), out=levels[rows, columns])
    return None


def _misfit(codes: NDArray[Any], zero: float, column: int) -> NotTernary:
    values = np.unique(codes)
    if values.size > _MAX_LISTED_CODES:
        return NotTernary(
            f"weight has {values.size} different codes in column {column}, expected at most 3"
        )
    reason = f"weight has codes {_listed(values)}"
    if zero:
        reason += f" with zero point {zero:g}"
    reason += f" in column {column}"
    if zero:
        reason += f", which are levels {_listed(values.astype(np.float64) - zero)}"
    if _is_clipped(values.astype(np.float64) - zero):
        return NotTernary(
            f"{reason}: a ternary matrix that was quantized to a range with one more level below "
            "zero, so that its positive weights are too small; build the model in float32 or with "
            "2 bits instead, or from its checkpoint with 'onnx-ternary build'",
            final=True,
        )
    return NotTernary(f"{reason}; expected 0 and plus or minus one magnitude")


def _is_clipped(levels: NDArray[np.float64]) -> bool:
    """Whether levels are -8, 0 and 7, or -128, 0 and 127, as int4 and int8 quantizers do it."""
    if levels.size not in (2, 3) or (levels.size == 3 and levels[1] != 0):
        return False
    return any(levels[0] == -size and levels[-1] == size - 1 for size in (8, 128))


def _listed(values: NDArray[Any]) -> str:
    *rest, last = (f"{float(value):g}" for value in values)
    return f"{', '.join(rest)} and {last}" if rest else last
