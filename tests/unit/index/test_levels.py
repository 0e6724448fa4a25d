from __future__ import annotations

import re
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.index.levels import NotTernary, TernaryWeight, ternarize
from tests.support.strategies import random_generators, ternary_weights


def found(weight: NDArray[Any], **options: Any) -> TernaryWeight:
    result = ternarize(weight, **options)
    assert isinstance(result, TernaryWeight), result
    assert result.levels.dtype == np.int8
    assert result.levels.flags.c_contiguous
    assert result.scale.dtype == np.float32
    assert (result.scale > 0).all()
    return result


def reason(weight: NDArray[Any], **options: Any) -> str:
    result = ternarize(weight, **options)
    assert isinstance(result, NotTernary), result
    return result.reason


@given(
    weight=ternary_weights(group_sizes=(16, 32, 128)),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]),
    order=st.sampled_from(["C", "F", "strided"]),
)
def test_ternarize_gives_back_the_matrix(weight: TernaryWeight, dtype: Any, order: str) -> None:
    dense = weight.dense().astype(dtype)
    if order == "F":
        dense = np.asfortranarray(dense)
    elif order == "strided":
        dense = np.repeat(dense, 2, axis=1)[::-1, ::2][::-1]
    result = found(dense)
    np.testing.assert_array_equal(result.levels, weight.levels)
    np.testing.assert_array_equal(result.dense(), dense.astype(np.float32))
    assert result.max_relative_change == 0
    # Not finer than what the matrix was made with.
    assert result.scale.size <= weight.scale.size
    assert (result.group_size > 0) == (result.scale.ndim == 2)
    K, N = dense.shape
    if result.group_size:
        assert result.scale.shape == (-(-K // result.group_size), N)
        assert result.group_size >= weight.group_size


def test_per_tensor_scale() -> None:
    result = found(np.array([[0.5, 0], [-0.5, 0.5]], np.float32))
    assert result.scale.shape == ()
    assert result.scale == 0.5


def test_per_column_scale_with_a_column_of_zeros() -> None:
    result = found(np.array([[0.5, 0, 0.25], [-0.5, 0, 0.25]], np.float32))
    np.testing.assert_array_equal(result.scale, np.array([0.5, 1, 0.25], np.float32))
    assert result.group_size == 0


def test_per_tensor_scale_with_a_column_of_zeros() -> None:
    assert found(np.array([[0.5, 0], [-0.5, 0]], np.float32)).scale.shape == ()


def test_all_zero() -> None:
    result = found(np.zeros((3, 2), np.float32))
    assert result.scale.shape == ()
    assert result.scale == 1
    assert result.alphabet == "binary_01"


def test_negative_zero_is_zero() -> None:
    result = found(np.array([[-0.0, 1], [-1, 0]], np.float32))
    np.testing.assert_array_equal(result.levels, [[0, 1], [-1, 0]])


def test_per_group_scale_takes_the_largest_group_and_a_short_last_one() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(-1, 2, (150, 5)).astype(np.float32)
    levels[64:128, 2] = 0
    groups = np.arange(150) // 64
    scales = rng.uniform(1, 2, (3, 5)).astype(np.float32)
    result = found(levels * scales[groups])
    assert result.group_size == 64
    assert result.scale.shape == (3, 5)
    assert result.scale[1, 2] == 1
    assert "distinct magnitudes" in reason(levels * scales[groups], group_sizes=())


@pytest.mark.parametrize(
    ("weight", "alphabet"),
    [
        ([[1, -1], [1, 1]], "binary_pm"),
        ([[1, 1], [1, 1]], "binary_pm"),
        ([[-1, -1], [-1, -1]], "binary_pm"),
        ([[1, 0], [0, 1]], "binary_01"),
        ([[1, 0], [0, -1]], "ternary"),
        ([[0, 0], [0, -1]], "ternary"),
    ],
)
def test_alphabet(weight: list[list[int]], alphabet: str) -> None:
    assert found(np.array(weight, np.float32)).alphabet == alphabet


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (np.array([[1, 2], [1, 3]], np.float32), "weight has 2 distinct magnitudes in column 1"),
        (np.array([[1, -0.5], [0, 0.75]], np.float32), "asymmetric levels -0.5 and 0.75 in column"),
        (np.array([[-1], [-0.5], [0.5], [1]], np.float32), "2 distinct magnitudes in column 0"),
        (np.array([[1, np.nan]], np.float32), "contains NaN"),
        (np.array([[np.nan, np.inf]], np.float16), "weight contains NaN"),
        (np.array([[1, -np.inf]], ml_dtypes.bfloat16), "weight contains a weight that is infinite"),
        (np.array([[1e300]]), "weight contains a weight that is infinite or too large"),
        (np.array([[0.1]]), "weight is float64 and column 0 is not exact in float32"),
        (np.array([[1e-60, 1]]), "weight is float64 and column 0 is not exact in float32"),
        (np.array([[1e-40, 0]], np.float32), "weight scale 9.99995e-41 is a denormal float32"),
        (np.array([[1, 0]], np.int8), "weight has dtype int8, expected float16"),
        (np.zeros(3, np.float32), "weight has rank 1, expected 2"),
        (np.zeros((2, 3, 4), np.float32), "weight has rank 3, expected 2"),
        (np.zeros((0, 3), np.float32), "weight is empty, shape (0, 3)"),
        (np.zeros((3, 0), np.float32), "weight is empty, shape (3, 0)"),
    ],
)
def test_refused_with_a_reason(weight: NDArray[Any], expected: str) -> None:
    assert expected in reason(weight)


@given(weight=ternary_weights(group_sizes=()), rng=random_generators(), fortran=st.booleans())
def test_one_changed_weight_is_refused(
    weight: TernaryWeight, rng: np.random.Generator, fortran: bool
) -> None:
    dense = weight.dense()
    if np.count_nonzero(dense[:, 0]) < 2:
        return
    row = rng.choice(np.flatnonzero(dense[:, 0]))
    dense[row, 0] = np.nextafter(dense[row, 0], np.float32(9e9))
    dense = np.asfortranarray(dense) if fortran else dense
    assert "in column 0" in reason(dense, group_sizes=())


def test_change_in_a_late_tile_is_found() -> None:
    weight = np.ones((3000, 300), np.float32)
    weight[2999, 299] = 2
    expected = "weight has 2 distinct magnitudes in column 299, expected 1"
    assert reason(weight) == expected
    assert reason(np.asfortranarray(weight)) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("kind", ["tensor", "column", "group"])
def test_tolerance(kind: str, dtype: Any) -> None:
    rng = np.random.default_rng(1)
    K, N = 256, 9
    levels = rng.integers(-1, 2, (K, N))
    shape = {"tensor": (1, 1), "column": (1, N), "group": (K // 64, N)}[kind]
    scales = rng.uniform(1, 4, shape)
    full = np.broadcast_to(np.repeat(scales, K // shape[0], axis=0), (K, N))
    weight = ((levels + rng.uniform(-0.05, 0.05, (K, N))) * full).astype(dtype)
    assert isinstance(ternarize(weight), NotTernary)
    result = found(weight, tolerance=0.08)
    np.testing.assert_array_equal(result.levels, levels)
    assert result.scale.ndim == {"tensor": 0, "column": 1, "group": 2}[kind]
    assert result.group_size == (64 if kind == "group" else 0)
    change = np.abs(result.dense() - weight.astype(np.float64)) / np.abs(full)
    assert 0.04 < result.max_relative_change < 0.08
    np.testing.assert_allclose(result.max_relative_change, change.max(), rtol=0.02)
    text = reason(weight, tolerance=0.02)
    assert text.startswith("weights of column ")
    assert "of their scale from the nearest" in text


def test_tolerance_takes_the_mean_of_the_nonzero_magnitudes() -> None:
    weight = np.array([[0.9], [-1.1], [1.0], [1.2], [0.05]], np.float32)
    result = found(weight, tolerance=0.2)
    np.testing.assert_allclose(result.scale, 1.05, rtol=1e-6)
    np.testing.assert_allclose(result.max_relative_change, 0.15 / 1.05, rtol=1e-5)


def test_tolerance_prefers_an_exact_match() -> None:
    weight = np.array([[1.0, 1.01], [-1.0, 0]], np.float32)
    result = found(weight, tolerance=0.1)
    assert result.scale.shape == (2,)
    assert result.max_relative_change == 0


@pytest.mark.parametrize("tolerance", [-0.1, 0.5, float("nan")])
def test_tolerance_out_of_range(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance is"):
        ternarize(np.ones((1, 1), np.float32), tolerance=tolerance)


def test_group_sizes_out_of_range() -> None:
    with pytest.raises(ValueError, match="expected positive sizes"):
        ternarize(np.ones((1, 1), np.float32), group_sizes=(0,))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_small(order: str) -> None:
    rng = np.random.default_rng(0)
    weight = np.asarray(rng.integers(-1, 2, (2048, 2048)).astype(np.float32), order=order)  # type: ignore[call-overload]  # order is a literal
    ternarize(weight)
    tracemalloc.start()
    ternarize(weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weight.size + 8 * 2**20  # the levels and a few tiles


def nearly(dtype: Any, kind: str, roundings: float, seed: int) -> NDArray[Any]:
    """A ternary matrix whose elements are off by up to so many roundings of its type."""
    rng = np.random.default_rng(seed)
    scale = {
        "matrix": np.array(0.0173),
        "column": rng.uniform(0.01, 0.05, (1, 40)),
        "group": np.repeat(rng.uniform(0.01, 0.05, (4, 40)), 64, axis=0),
    }[kind]
    weight = (rng.integers(-1, 2, (256, 40)) * scale).astype(dtype).astype(np.float64)
    off = roundings * float(ml_dtypes.finfo(dtype).eps) / 2
    noisy: NDArray[Any] = (weight * (1 + rng.uniform(-off, off, weight.shape))).astype(dtype)
    return noisy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["matrix", "column", "group"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_smallest_tolerance_is_named(dtype: Any, kind: str, seed: int) -> None:
    weight = nearly(dtype, kind, 4, seed)
    found = ternarize(weight)
    assert isinstance(found, NotTernary)
    named = re.search(r"; rounding apart it is ternary: --tolerance (\S+) takes it$", found.reason)
    assert named, found.reason
    tolerance = float(named[1])
    taken = ternarize(weight, tolerance=tolerance)
    assert isinstance(taken, TernaryWeight)
    assert isinstance(ternarize(weight, tolerance=0.85 * tolerance), NotTernary)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_no_tolerance_is_named_beyond_rounding(dtype: Any) -> None:
    weight = nearly(dtype, "matrix", 0, 0)
    weight[200, 3] = 0.0087
    for wrong in (weight, nearly(dtype, "column", 64, 0)):
        found = ternarize(wrong)
        assert isinstance(found, NotTernary)
        assert "tolerance" not in found.reason
