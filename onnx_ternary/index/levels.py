"""Which float matrices are ternary or binary, and their levels and scales.

A weight matrix W of shape (K, N) is ternary when every element is 0 or plus or minus one magnitude:
one for the matrix, one per column, or one per column and group of consecutive rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_K, MAX_N, Alphabet

# Elements looked at in one step: the temporaries of a step stay in the second-level cache.
_TILE_ELEMENTS = 1 << 17
_FIRST_COLUMNS = 1024
NEARLY = 16
"""Roundings in a weight's type by which it may miss its levels and be called ternary but for them.
"""
SMALLEST_NORMAL = np.finfo(np.float32).tiny
_DTYPES = tuple(map(np.dtype, (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)))


@dataclass(frozen=True, slots=True)
class TernaryWeight:
    """A matrix W = levels * scale.

    Attributes:
        levels: (K, N) int8 in {-1, 0, 1}, C-contiguous.
        scale: float32, () for the matrix, (N,) for the columns or (num_groups, N) for groups of
            `group_size` rows; finite and positive, 1.0 where all levels are 0.
        group_size: rows per scale group; 0 unless `scale` is (num_groups, N).
        alphabet: "binary_pm" if no level is 0, else "binary_01" if none is -1, else "ternary".
        max_relative_change: largest ``|levels * scale - w| / scale``; 0.0 for an exact match.
        row_scale: float32 (K,), in (0, 1], where row i of W is row i of levels * scale times
            ``row_scale[i]`` (rows.py); else None.
    """

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    group_size: int
    alphabet: Alphabet
    max_relative_change: float
    row_scale: NDArray[np.float32] | None = None

    def dense(self) -> NDArray[np.float32]:
        """The (K, N) float32 matrix levels * scale; rounded only where rows have scales."""
        scale = self.scale
        if self.group_size:
            scale = np.repeat(scale, self.group_size, axis=0)[: self.levels.shape[0]]
        product = np.multiply(self.levels, scale, dtype=np.float32)
        return product if self.row_scale is None else product * self.row_scale[:, None]


@dataclass(frozen=True, slots=True)
class NotTernary:
    """Why a matrix is not ternary.

    Attributes:
        reason: a clause: "weight contains NaN".
        final: whether a tolerance must not make it ternary, because its magnitudes are wrong.
        has_row_scales: whether it is stored with scales for rows, so that rows.py may take it.
    """

    reason: str
    final: bool = False
    has_row_scales: bool = False


@dataclass(frozen=True, slots=True)
class _Match:
    """Levels (K, N) and scales (num_groups, N) of a matrix found ternary."""

    levels: NDArray[np.int8]
    scale: NDArray[np.float32]
    change: float = 0.0


@dataclass(frozen=True, slots=True)
class _Misfit:
    """A column that is not ternary, and by how much it misses where a tolerance was given."""

    column: int
    change: float = 0.0


def ternarize(
    weight: NDArray[Any],
    *,
    tolerance: float = 0.0,
    group_sizes: Sequence[int] = (16, 32, 64, 128, 256),
) -> TernaryWeight | NotTernary:
    """Find the levels and scales of a ternary or binary weight matrix.

    The coarsest scales that fit are taken: one for the matrix, then one per column, then per group,
    the largest group size first. Exact matches go before matches within the tolerance. Magnitudes
    of float16 and bfloat16 weights are compared in their own dtype, so scales rounded to it fit.

    Args:
        weight: (K, N) float16, bfloat16, float32 or float64, any memory order.
        tolerance: how far a weight may lie from 0 or from plus or minus the scale, relative to the
            scale, which is then the mean magnitude of the nonzero weights.
        group_sizes: rows per scale group that are tried.

    Returns:
        The levels and scales, or the reason why the matrix is not ternary.

    Raises:
        ValueError: if `tolerance` is not in [0, 1/3) (a larger one cannot tell 0 from the scale) or
            a group size is not positive.
    """
    if not 0 <= tolerance < 1 / 3:
        raise ValueError(f"tolerance is {tolerance}, expected from 0 to below 1/3")
    if any(size < 1 for size in group_sizes):
        raise ValueError(f"group_sizes is {tuple(group_sizes)}, expected positive sizes")
    refusal = _refuse_form(weight)
    if refusal is not None:
        return refusal
    if tolerance == 0 and (plain := _misfit_in_first_rows(weight, min(group_sizes, default=1))):
        return NotTernary(_misfit_reason(weight, plain, tolerance) + _hint(weight, group_sizes))
    magnitudes = _column_magnitudes(weight)
    if not np.isfinite(magnitudes).all():
        if np.isnan(magnitudes).any():
            return NotTernary("weight contains NaN")
        return NotTernary("weight contains a weight that is infinite or too large for float32")

    K = weight.shape[0]
    sizes = sorted({size for size in group_sizes if size < K}, reverse=True)
    misfit = found = _match_exactly(weight, K, magnitudes)
    group_size = K
    for size in sizes:
        if isinstance(found, _Match):
            break
        found, group_size = _match_exactly(weight, size), size
    if tolerance > 0 and isinstance(found, _Misfit):
        misfit = found = _match_nearly(weight, K, tolerance, whole=True)
        group_size = K
        for size in (K, *sizes):
            if isinstance(found, _Match):
                break
            found, group_size = _match_nearly(weight, size, tolerance, whole=False), size
            misfit = found if size == K else misfit
    if isinstance(found, _Match):
        return _finish(found, 0 if group_size == K else group_size)
    assert isinstance(misfit, _Misfit)
    hint = "" if tolerance else _hint(weight, group_sizes)
    return NotTernary(_misfit_reason(weight, misfit, tolerance) + hint)


def _hint(weight: NDArray[Any], group_sizes: Sequence[int]) -> str:
    """The smallest tolerance that takes a weight which rounding alone keeps from being ternary."""
    most = NEARLY * unit(weight.dtype)
    K = weight.shape[0]
    if not _nearly_in_first_rows(weight, min(group_sizes, default=K), most):
        return ""
    if not np.isfinite(_column_magnitudes(weight)).all():
        return ""
    sizes = [K, *(size for size in group_sizes if size < K)]
    matches = [_match_nearly(weight, K, most, whole=True)]
    matches += [_match_nearly(weight, size, most, whole=False) for size in sizes]
    changes = [match.change for match in matches if isinstance(match, _Match)]
    if not changes:
        return ""
    named = min(changes)
    digits = 1 - math.floor(math.log10(named))
    named = math.ceil(named * 10**digits) / 10**digits
    return f"; rounding apart it is ternary: --tolerance {named:.2g} takes it"


def _nearly_in_first_rows(weight: NDArray[Any], num_rows: int, most: float) -> bool:
    """Whether rows that every scale group has together hold 0 and one magnitude, or nearly."""
    size = np.abs(_float32(weight[:num_rows, :_FIRST_COLUMNS]))
    largest = size.max(axis=0)
    if not np.isfinite(largest).all():
        return False
    nonzero = size > largest * np.float32(0.5)
    distance = np.where(nonzero, largest - size, size)
    return bool((distance <= 2 * most * largest).all())


def _misfit_in_first_rows(weight: NDArray[Any], num_rows: int) -> _Misfit | None:
    """A column with two magnitudes in rows that every scale group has together.

    Most float matrices show it at once, and need not be read any further.
    """
    with np.errstate(over="ignore"):
        size = np.abs(_float32(weight[:num_rows, :_FIRST_COLUMNS]))
    if not np.isfinite(size).all():
        return None
    misfits = ((size != 0) & (size != size.max(axis=0))).any(axis=0)
    return _Misfit(int(misfits.argmax())) if misfits.any() else None


def _refuse_form(weight: NDArray[Any]) -> NotTernary | None:
    if weight.dtype not in _DTYPES:
        return NotTernary(
            f"weight has dtype {weight.dtype}, expected float16, bfloat16, float32 or float64"
        )
    if weight.ndim != 2:
        return NotTernary(f"weight has rank {weight.ndim}, expected 2")
    K, N = weight.shape
    if K == 0 or N == 0:
        return NotTernary(f"weight is empty, shape ({K}, {N})")
    if K > MAX_K or N > MAX_N:
        return NotTernary(f"weight is too large, shape ({K}, {N})")
    return None


def tiles(weight: NDArray[Any]) -> Iterator[tuple[slice, slice]]:
    """Cut a matrix across its slowest axis, so that a tile is one piece of memory."""
    K, N = weight.shape
    if abs(weight.strides[0]) >= abs(weight.strides[1]):
        step = max(1, _TILE_ELEMENTS // N)
        for start in range(0, K, step):
            yield slice(start, start + step), slice(0, N)
    else:
        step = max(1, _TILE_ELEMENTS // K)
        for start in range(0, N, step):
            yield slice(0, K), slice(start, start + step)


def _float32(tile: NDArray[Any]) -> NDArray[np.float32]:
    return tile.astype(np.float32, order="K", copy=False)


def _column_magnitudes(weight: NDArray[Any]) -> NDArray[np.float32]:
    """Largest magnitude of each column, (N,); NaN or inf where the column holds one."""
    magnitudes = np.zeros(weight.shape[1], np.float32)
    with np.errstate(over="ignore"):
        for rows, columns in tiles(weight):
            largest = np.abs(_float32(weight[rows, columns])).max(axis=0)
            np.maximum(magnitudes[columns], largest, out=magnitudes[columns])
    return magnitudes


def _row_groups(K: int, group_size: int) -> Iterator[tuple[int, slice]]:
    for group, start in enumerate(range(0, K, group_size)):
        yield group, slice(start, start + group_size)


def _match_exactly(
    weight: NDArray[Any], group_size: int, magnitudes: NDArray[np.float32] | None = None
) -> _Match | _Misfit:
    K, N = weight.shape
    levels = np.empty((K, N), np.int8)
    scale = np.empty((-(-K // group_size), N), np.float32)
    for group, rows in _row_groups(K, group_size):
        block = weight[rows]
        scale[group] = _column_magnitudes(block) if magnitudes is None else magnitudes
        # A magnitude no element has: a column of zeros then needs no case of its own.
        expected = np.where(scale[group] == 0, np.float32(1), scale[group])
        misfit = _fill_levels(block, expected, levels[rows])
        if misfit is not None:
            return misfit
    return _Match(levels, scale)


def _fill_levels(
    weight: NDArray[Any], magnitudes: NDArray[np.float32], levels: NDArray[np.int8]
) -> _Misfit | None:
    """Write the signs of `weight`, whose elements are 0 or the magnitude of their column."""
    for rows, columns in tiles(weight):
        original = weight[rows, columns]
        tile = _float32(original)
        size = np.abs(tile)
        misfits = (size == magnitudes[columns]) != (size != 0)
        if original.dtype == np.float64:
            misfits |= tile != original
        if misfits.any():
            return _Misfit(columns.start + int(misfits.any(axis=0).argmax()))
        np.subtract((tile > 0).view(np.int8), (tile < 0).view(np.int8), out=levels[rows, columns])
    return None


def _match_nearly(
    weight: NDArray[Any], group_size: int, tolerance: float, *, whole: bool
) -> _Match | _Misfit:
    """Match within the tolerance; `whole` takes one scale for all columns."""
    K, N = weight.shape
    levels = np.empty((K, N), np.int8)
    scale = np.empty((-(-K // group_size), N), np.float32)
    change = 0.0
    for group, rows in _row_groups(K, group_size):
        block = weight[rows]
        magnitudes = _column_magnitudes(block)
        if whole:
            magnitudes[:] = magnitudes.max()
        # Between 0 and the scale: a nonzero weight is at least (1 - tolerance) / (1 + tolerance),
        # more than half, of the largest one.
        threshold = magnitudes * np.float32(0.5)
        scale[group] = _mean_magnitudes(block, threshold, whole)
        changes = _fill_nearest(block, threshold, scale[group], levels[rows])
        change = max(change, float(changes.max()))
        if change > tolerance:
            return _Misfit(int(changes.argmax()), change)
    return _Match(levels, scale, change)


def _mean_magnitudes(
    weight: NDArray[Any], threshold: NDArray[np.float32], whole: bool
) -> NDArray[np.float32]:
    """Mean magnitude, a column or `whole`, of the elements above the threshold; 0 of none."""
    sums = np.zeros(weight.shape[1], np.float64)
    counts = np.zeros(weight.shape[1], np.int64)
    for rows, columns in tiles(weight):
        size = np.abs(_float32(weight[rows, columns]))
        nonzero = size > threshold[columns]
        sums[columns] += np.sum(size, axis=0, dtype=np.float64, where=nonzero)
        counts[columns] += np.count_nonzero(nonzero, axis=0)
    if whole:
        sums[:], counts[:] = sums.sum(), counts.sum()
    means: NDArray[np.float32] = (sums / np.maximum(counts, 1)).astype(np.float32)
    return means


def _fill_nearest(
    weight: NDArray[Any],
    threshold: NDArray[np.float32],
    scale: NDArray[np.float32],
    levels: NDArray[np.int8],
) -> NDArray[np.float64]:
    """Write the nearest levels; return each column's largest change relative to its scale."""
    changes = np.zeros(weight.shape[1], np.float64)
    for rows, columns in tiles(weight):
        original = weight[rows, columns]
        tile = _float32(original)
        size = np.abs(tile)
        nonzero = size > threshold[columns]
        np.subtract(
            (nonzero & (tile > 0)).view(np.int8),
            (nonzero & (tile < 0)).view(np.int8),
            out=levels[rows, columns],
        )
        change = np.abs(np.abs(original) - np.where(nonzero, scale[columns], np.float32(0)))
        np.maximum(changes[columns], change.max(axis=0), out=changes[columns])
    relative: NDArray[np.float64] = changes / np.where(scale == 0, np.float32(1), scale)
    return relative


def _finish(match: _Match, group_size: int) -> TernaryWeight | NotTernary:
    levels, scale = match.levels, match.scale
    used = scale[scale > 0]
    if used.size and used.min() < SMALLEST_NORMAL:
        return NotTernary(f"weight scale {used.min():g} is a denormal float32")
    if group_size:
        scale = np.where(scale == 0, np.float32(1), scale)
    elif used.size == 0 or used.min() == used.max():
        scale = np.array(used[0] if used.size else 1, np.float32)
    else:
        scale = np.where(scale[0] == 0, np.float32(1), scale[0])
    return TernaryWeight(levels, scale, group_size, alphabet_of(levels), match.change)


def unit(dtype: np.dtype[Any]) -> float:
    """The unit roundoff of a float type: the largest relative error of one rounding."""
    finfo = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call] # as ml_dtypes has it
    return float(finfo.eps) / 2


def largest_change(weight: NDArray[Any], found: TernaryWeight) -> float:
    """Largest ``|levels * scale - w| / scale`` of a matrix and one of its shape; inf for NaN.

    Args:
        weight: (K, N).
        found: the levels and scales it is compared with.
    """
    largest = 0.0
    for rows, columns in tiles(weight):
        if found.group_size:
            scale = found.scale[
                np.arange(rows.start, min(rows.stop, len(weight))) // found.group_size
            ]
            scale = scale[:, columns]
        else:
            scale = found.scale[columns] if found.scale.ndim else found.scale
        with np.errstate(invalid="ignore"):
            wanted = found.levels[rows, columns] * scale.astype(np.float64)
            change = np.abs(wanted - weight[rows, columns].astype(np.float64)) / scale
        largest = max(largest, float(np.where(np.isnan(change), np.inf, change).max(initial=0)))
    return largest


def alphabet_of(levels: NDArray[np.int8]) -> Alphabet:
    """The smallest alphabet that holds all levels."""
    if np.count_nonzero(levels) == levels.size:
        return "binary_pm"
    return "binary_01" if levels.min() >= 0 else "ternary"


def _misfit_reason(weight: NDArray[Any], misfit: _Misfit, tolerance: float) -> str:
    column = weight[:, misfit.column]
    if tolerance > 0:
        return (
            f"weights of column {misfit.column} lie {misfit.change:.3g} of their scale from the "
            f"nearest ternary ones, more than the tolerance {tolerance:g}"
        )
    if not np.array_equal(column, _float32(column)):
        return f"weight is float64 and column {misfit.column} is not exact in float32"
    values = np.unique(_float32(column))
    values = values[values != 0]
    magnitudes = np.unique(np.abs(values))
    if values.size == 2 and values[0] < 0 < values[1]:
        return (
            f"weight has asymmetric levels {values[0]:g} and {values[1]:g} in column "
            f"{misfit.column}, expected one magnitude"
        )
    return f"weight has {magnitudes.size} distinct magnitudes in column {misfit.column}, expected 1"
