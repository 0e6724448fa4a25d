"""Matrices with a scale per row besides: |W[i, j]| = r[i] * c[j] but for rounding.

A normalization's gain, or any other factor per input, that was folded into the weights behind it
leaves such matrices: X @ W is then (X * r) @ (levels * c).

1. Factors are found from the magnitudes alone. The row with most nonzero weights is the reference:
   it gives the columns it reaches, these give rows, these give more columns, and so on. Rows that
   are still out of reach get a reference of their own.
2. A factor is the middle of the quotients it has to fit, so that it is off by half their spread.
   Where W is within one rounding (u) of r[i] * c[j], quotients by the reference row's magnitudes
   spread by 4 u, so the change of a weight is at most 2 u; rounding r to the weight's type and c to
   float32 adds a rounding each. It is 0 where every row has one magnitude, and c is then a power
   of two.
3. The factors are only fixed up to one number, which is chosen so that answers do not depend on it:
   c of the reference's first column is a power of two, and the largest r lies in [1/2, 1), so that
   X * r never overflows. Rows of zeros have r = 1.
4. A matrix is taken if no weight changes by more than `NEARLY` roundings; if it has at least twice
   as many nonzero weights as factors, because any matrix of one row, one column or one weight per
   row is such a product; and if the r of rows with two weights or more differ by more than
   rounding: where they do not, the matrix is ternary but for rounding or single weights, and the
   user has to allow the change (`ternarize` names it).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.index.levels import (
    NEARLY,
    SMALLEST_NORMAL,
    TernaryWeight,
    alphabet_of,
    tiles,
    unit,
)

_FIRST_ROWS, _FIRST_COLUMNS = 32, 1024
# Every round reads the matrix twice; a dense one takes two.
_MAX_ROUNDS = 8
_WEIGHTS_PER_FACTOR = 2

_Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


def ternarize_rows(weight: NDArray[Any]) -> TernaryWeight | None:
    """Find levels, scales and a scale per row of a matrix that is not ternary.

    Args:
        weight: (K, N) float16, bfloat16 or float32, any memory order.

    Returns:
        The levels, with ``row_scale`` in the precision of the weight's type; None where the matrix
        is no such product.
    """
    most = NEARLY * unit(weight.dtype)
    if _factors(weight[:_FIRST_ROWS, :_FIRST_COLUMNS], most) is None:
        return None
    factors = _factors(weight, most)
    if factors is None:
        return None
    row_scale, columns = factors
    used = np.count_nonzero(row_scale) + np.count_nonzero(columns)
    counts = np.count_nonzero(weight, axis=1)
    telling = row_scale[counts > 1]
    alike = telling.max(initial=0) * (1 - 4 * most) <= telling.min(initial=np.inf)
    if alike or counts.sum() < _WEIGHTS_PER_FACTOR * used:
        return None
    row_scale, columns = _normalized(weight, row_scale, columns)
    row_scale = row_scale.astype(weight.dtype).astype(np.float64)
    columns = _middles(weight, row_scale, by_row=False)[0].astype(np.float32).astype(np.float64)
    smallest = min(row_scale[row_scale > 0].min(), columns[columns > 0].min())
    if smallest < SMALLEST_NORMAL or not np.isfinite(columns).all():
        return None
    found = _levels(weight, row_scale, columns)
    return found if found.max_relative_change <= most else None


def _factors(weight: NDArray[Any], most: float) -> _Factors | None:
    """Row and column factors, 0 where all weights are; None where a quotient is off by ``most``."""
    K, N = weight.shape
    counts = np.zeros(K, np.int64)
    for rows, columns in tiles(weight):
        tile = weight[rows, columns].astype(np.float32, copy=False)
        if not np.isfinite(tile).all():
            return None
        counts[rows] += np.count_nonzero(tile, axis=1)
    row_scale, column_scale = np.zeros(K), np.zeros(N)
    for _ in range(_MAX_ROUNDS):
        open_rows = (counts > 0) & (row_scale == 0)
        if not open_rows.any():
            return row_scale, column_scale
        reached = _middles(weight, column_scale, by_row=True)[0] > 0
        if not (open_rows & reached).any():
            reference = int(np.where(open_rows, counts, 0).argmax())
            magnitudes = np.abs(weight[reference].astype(np.float64))
            magnitudes /= magnitudes[magnitudes > 0][0]
            column_scale = np.where(magnitudes > 0, magnitudes, column_scale)
        row_scale, spread = _middles(weight, column_scale, by_row=True)
        if spread > 4 * most:
            return None
        column_scale, spread = _middles(weight, row_scale, by_row=False)
        if spread > 4 * most:
            return None
    return None


def _middles(
    weight: NDArray[Any], others: NDArray[np.float64], *, by_row: bool
) -> tuple[NDArray[np.float64], float]:
    """The factor of each row, or column, that fits the other ones best.

    Returns:
        The factors, 0 where no weight meets a known one, and the largest relative spread of the
        quotients a factor is the middle of.
    """
    axis = 1 if by_row else 0
    lowest = np.full(weight.shape[1 - axis], np.inf)
    highest = np.zeros(weight.shape[1 - axis])
    for rows, columns in tiles(weight):
        size = np.abs(weight[rows, columns].astype(np.float64))
        known = others[None, columns] if by_row else others[rows, None]
        meets = (size > 0) & (known > 0)
        quotients = np.divide(size, known, out=np.zeros_like(size), where=meets)
        own = rows if by_row else columns
        least = np.min(quotients, axis=axis, initial=np.inf, where=meets)
        lowest[own] = np.minimum(lowest[own], least)
        highest[own] = np.maximum(highest[own], quotients.max(axis=axis))
    found = highest > 0
    lowest[~found] = 0
    middles = (lowest + highest) / 2
    spreads = np.divide(highest - lowest, middles, out=np.zeros_like(middles), where=found)
    return middles, float(spreads.max(initial=0))


def _normalized(
    weight: NDArray[Any], row_scale: NDArray[np.float64], columns: NDArray[np.float64]
) -> _Factors:
    """The factors as case 3 says it; rows of zeros have 1."""
    counts = np.count_nonzero(weight, axis=1)
    first = columns[np.flatnonzero(weight[int(counts.argmax())])[0]]
    row_scale, columns = row_scale * first, columns / first
    exponent = np.frexp(row_scale.max())[1]
    row_scale = np.ldexp(row_scale, -exponent)
    return np.where(row_scale == 0, 1.0, row_scale), np.ldexp(columns, exponent)


def _levels(
    weight: NDArray[Any], row_scale: NDArray[np.float64], columns: NDArray[np.float64]
) -> TernaryWeight:
    levels = np.sign(weight).astype(np.int8, order="C")
    change = 0.0
    for rows, part in tiles(weight):
        size = np.abs(weight[rows, part].astype(np.float64))
        wanted = row_scale[rows, None] * columns[None, part]
        off = np.where(size > 0, np.abs(size - wanted), 0)
        relative = np.divide(off, wanted, out=np.zeros_like(off), where=size > 0)
        change = max(change, float(relative.max(initial=0)))
    used = columns[columns > 0]
    scale = np.where(columns == 0, 1.0, columns) if used.min() < used.max() else used[0]
    return replace(
        TernaryWeight(levels, np.asarray(scale, np.float32), 0, alphabet_of(levels), change),
        row_scale=row_scale.astype(np.float32),
    )
