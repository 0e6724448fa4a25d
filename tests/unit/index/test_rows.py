"""Matrices with a scale per row besides: which are taken, and how far the factors are off."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.index.levels import TernaryWeight, unit
from onnx_ternary.index.rows import ternarize_rows

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def gained(dtype: Any, *, columns: bool, seed: int, K: int = 96, N: int = 40) -> NDArray[Any]:
    """One rounding of gain * scale * level, with rows and columns of zeros."""
    rng = np.random.default_rng(seed)
    levels = rng.choice([-1.0, 0.0, 1.0], (K, N))
    levels[[2, 17]], levels[:, 5] = 0, 0
    scale = rng.uniform(0.5, 2, N) if columns else np.array(0.7)
    gains = rng.uniform(0.3, 3, K) * rng.choice([-1, 1], K)
    return (gains[:, None] * (levels * scale)).astype(dtype)


def found(weight: NDArray[Any]) -> TernaryWeight:
    result = ternarize_rows(weight)
    assert result is not None
    assert result.row_scale is not None
    assert result.row_scale.dtype == result.scale.dtype == np.float32
    return result


def largest_change(weight: NDArray[Any], result: TernaryWeight) -> float:
    assert result.row_scale is not None
    scale = result.row_scale.astype(float)[:, None] * np.broadcast_to(result.scale, weight.shape[1])
    return float((np.abs(scale * result.levels - weight.astype(float)) / scale).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_one_magnitude_per_row_is_exact(dtype: Any, seed: int) -> None:
    weight = gained(dtype, columns=False, seed=seed)
    result = found(weight)
    np.testing.assert_array_equal(result.levels, np.sign(weight.astype(float)))
    np.testing.assert_array_equal(result.dense(), weight.astype(np.float32))
    assert result.max_relative_change == 0 == largest_change(weight, result)
    assert result.scale.shape == ()
    assert np.frexp(result.scale)[0] == 0.5  # a power of two


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(8))
def test_change_stays_below_the_bound(dtype: Any, seed: int) -> None:
    weight = gained(dtype, columns=True, seed=seed)
    result = found(weight)
    np.testing.assert_array_equal(result.levels, np.sign(weight.astype(float)))
    # Half the spread of the quotients, a rounding of r, and one of c to float32; second order.
    u = unit(np.dtype(dtype))
    assert 0 < result.max_relative_change <= (2 * u + u + 2.0**-24) * (1 + 8 * u)
    assert result.max_relative_change == pytest.approx(largest_change(weight, result), rel=1e-9)
    assert result.scale.shape == (40,)


@pytest.mark.parametrize("columns", [False, True])
def test_factors_are_fixed(columns: bool) -> None:
    weight = gained(np.float32, columns=columns, seed=3)
    result = found(weight)
    assert result.row_scale is not None
    assert 0.5 <= result.row_scale[np.abs(weight).max(axis=1) > 0].max() < 1
    assert (result.row_scale > 0).all()
    np.testing.assert_array_equal(result.row_scale[[2, 17]], 1)
    # Multiplied by a power of two, the matrix has the same r; stored otherwise, the same factors.
    twice, turned = found(weight * np.float32(8)), found(np.asfortranarray(weight))
    assert twice.row_scale is not None
    np.testing.assert_array_equal(twice.row_scale, result.row_scale)
    used = np.broadcast_to(weight.any(axis=0), result.scale.shape) if columns else ...
    np.testing.assert_array_equal(twice.scale[used] / 8, result.scale[used])
    for name in ("row_scale", "scale", "levels"):
        np.testing.assert_array_equal(getattr(turned, name), getattr(result, name))


def test_rows_reached_through_others() -> None:
    """No row has all columns, and two blocks of the matrix share no row and no column."""
    weight = np.zeros((48, 48), np.float32)
    weight[:24, :24] = gained(np.float32, columns=True, seed=5, K=24, N=24)
    weight[24:, 24:] = gained(np.float32, columns=True, seed=6, K=24, N=24)
    weight[:12, :8] = weight[12:24, 16:24] = 0
    result = found(weight)
    np.testing.assert_array_equal(result.levels, np.sign(weight))
    assert result.max_relative_change <= 8 * 2.0**-24


def one_off(weight: NDArray[Any]) -> NDArray[Any]:
    row, column = np.argwhere(weight)[-1]
    weight[row, column] *= 1.01
    return weight


def with_value(value: float) -> NDArray[Any]:
    weight = gained(np.float32, columns=True, seed=0)
    weight[-1, -1] = value
    return weight


RNG = np.random.default_rng(0)
ALIKE = gained(np.float32, columns=True, seed=1)
MISSES = {
    "floats": RNG.standard_normal((96, 40)).astype(np.float32),
    "one weight off": one_off(gained(np.float32, columns=True, seed=0)),
    "one weight off behind the sample": one_off(
        gained(np.float32, columns=True, seed=0, K=300, N=1200)
    ),
    "one column": RNG.random((96, 1), np.float32),
    "one row": RNG.random((1, 96), np.float32),
    "diagonal": np.diag(RNG.random(96, np.float32)),
    "zeros": np.zeros((8, 8), np.float32),
    "not a number": with_value(np.nan),
    "infinite": with_value(np.inf),
    "denormal": gained(np.float32, columns=True, seed=0) * np.float32(1e-40),
    # Ternary but for rounding: the user has to say so.
    "rows alike": np.sign(ALIKE)
    * np.nextafter(np.float32(1), np.float32(2), dtype=np.float32)
    ** np.arange(96, dtype=np.float32)[:, None].clip(0, 3),
}


@pytest.mark.parametrize("name", MISSES)
def test_other_matrices_are_not_taken(name: str) -> None:
    assert ternarize_rows(MISSES[name]) is None
