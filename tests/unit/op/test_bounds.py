"""The bounds hold for every order of additions, and notice what is wrong."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.activations import quantize_rows
from onnx_ternary.op.bounds import float_error_bound, gamma, int8_error_bound
from onnx_ternary.schema import OpAttributes
from tests.support.products import INT8, NO_BIAS, build, exact_product, matrix, run
from tests.support.strategies import FLOAT_DTYPES

Product = Callable[[NDArray[np.float32], TernaryWeight, NDArray[np.float32]], NDArray[Any]]


def by_matmul(
    x: NDArray[np.float32], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[Any]:
    return x @ weight.dense() + bias


def one_after_another(
    x: NDArray[np.float32], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[Any]:
    terms = x[:, :, None] * weight.dense()
    return np.cumsum(terms, axis=1, dtype=np.float32)[:, -1] + bias


def backwards(
    x: NDArray[np.float32], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[Any]:
    terms = (x[:, :, None] * weight.dense())[:, ::-1]
    return np.cumsum(terms, axis=1, dtype=np.float32)[:, -1] + bias


def positive_minus_negative(
    x: NDArray[np.float32], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[Any]:
    """As W = P - Q, scales applied to the sums of each group."""
    K, N = weight.levels.shape
    rows = weight.group_size or K
    y = np.zeros((x.shape[0], N), np.float32)
    for g, start in enumerate(range(0, K, rows)):
        part, levels = x[:, start : start + rows], weight.levels[start : start + rows]
        plus = part @ (levels == 1).astype(np.float32)
        minus = part @ (levels == -1).astype(np.float32)
        y += (plus - minus) * (weight.scale[g] if weight.group_size else weight.scale)
    return y + bias


def fixed_point(
    x: NDArray[np.float32], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[Any]:
    """24-bit activations relative to the row's largest, exact sums."""
    absmax = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True)
    step = 2.0 ** (np.ceil(np.log2(absmax / 8355711)))
    rounded = np.rint(x / step) * step
    return (rounded @ weight.dense().astype(np.float64) + bias).astype(np.float32)


def bound_of(
    x: NDArray[Any], weight: TernaryWeight, bias: NDArray[np.float32], **options: Any
) -> NDArray[np.float64]:
    defaults: dict[str, Any] = {
        "addition_depth": weight.levels.shape[0],
        "fixed_point": False,
        "dtype": x.dtype,
    }
    return float_error_bound(
        x, weight.levels, weight.scale, weight.group_size, bias, **(defaults | options)
    )


def excess(
    y: NDArray[Any], x: NDArray[Any], weight: TernaryWeight, bias: Any, bound: NDArray[np.float64]
) -> float:
    """Largest error relative to the bound."""
    return float((np.abs(y.astype(np.float64) - exact_product(x, weight, bias)) / bound).max())


@pytest.mark.parametrize("scale_kind", ["tensor", "column", "group"])
@pytest.mark.parametrize(
    "product", [by_matmul, one_after_another, backwards, positive_minus_negative, fixed_point]
)
@pytest.mark.parametrize("magnitude", [1e-44, 1e-38, 1.0, 1e33])
def test_float_bound_accepts_any_order(product: Product, scale_kind: str, magnitude: float) -> None:
    rng = np.random.default_rng(2)
    for K in (1, 31, 300):
        weight = matrix(K, 6, scale_kind)
        x = (rng.standard_normal((3, K)) * magnitude).astype(np.float32)
        x[0, 0] = magnitude  # not a row of zeros
        x[1:, 0] = -magnitude
        for bias in (NO_BIAS, (rng.standard_normal(6) * magnitude).astype(np.float32)):
            fixed = product is fixed_point
            bound = bound_of(
                x, weight, bias, fixed_point=fixed, **({"addition_depth": 1} if fixed else {})
            )
            assert excess(product(x, weight, bias), x, weight, bias, bound) <= 1


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("scale_kind", ["tensor", "column", "group"])
def test_float_bound_rejects_a_wrong_weight(scale_kind: str, dtype: Any) -> None:
    """Any single weight, taken away, flipped or added."""
    weight = matrix(64, 3, scale_kind)
    x = np.random.default_rng(3).choice([-2.0, -1.0, 1.0, 2.0], (4, 64)).astype(dtype)
    bias = np.ones(3, np.float32)
    bound = bound_of(x, weight, bias)
    good = exact_product(x, weight, bias)
    for k in range(64):
        levels = weight.levels.copy()
        levels[k] = np.where(levels[k] == 1, -1, levels[k] + 1)
        wrong = exact_product(x, dataclasses.replace(weight, levels=levels), bias).astype(dtype)
        assert (np.abs(wrong.astype(np.float64) - good) > bound).all()


def test_float_bound_rejects_eight_bit_activations() -> None:
    weight = matrix(300, 40)
    x = np.random.default_rng(3).standard_normal((5, 300)).astype(np.float32)
    quantized = run(build(weight, "packed", **INT8), x)
    for fixed in (False, True):
        bound = bound_of(x, weight, NO_BIAS, fixed_point=fixed)
        error = np.abs(quantized - exact_product(x, weight, NO_BIAS))
        assert np.median(error / bound) > 20


def test_float_bound_rejects_a_missing_bias_and_a_wrong_scale() -> None:
    weight = matrix(300, 40)
    x = np.random.default_rng(3).standard_normal((5, 300)).astype(np.float32)
    bias = np.full(40, 0.01, np.float32)
    bound = bound_of(x, weight, bias)
    assert (np.abs(by_matmul(x, weight, NO_BIAS) - exact_product(x, weight, bias)) > bound).all()
    other = dataclasses.replace(weight, scale=weight.scale * np.float32(1.01))
    assert excess(by_matmul(x, other, bias), x, weight, bias, bound) > 1


def test_float_bound_is_tight_within_reason() -> None:
    """Terms that are all just too small to be added use nearly all of gamma(K + 4)."""
    K = 1000
    weight = TernaryWeight(np.ones((K, 1), np.int8), np.ones((), np.float32), 0, "binary_pm", 0.0)
    x = np.full((1, K), 0.99 * 2.0**-24, np.float32)
    x[0, 0] = 1
    y = one_after_another(x, weight, NO_BIAS)
    assert 0.9 < excess(y, x, weight, NO_BIAS, bound_of(x, weight, NO_BIAS)) <= 1
    x = np.ones((1, K), np.float32)
    # Integer sums are exact, so fixed point needs a few roundings and its own term only.
    fixed = bound_of(x, weight, NO_BIAS, addition_depth=1, fixed_point=True)
    assert fixed < exact_product(x, weight, NO_BIAS) * (2.0**-22.99 + 5.1 * 2.0**-24)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_float_bound_covers_rounding_to_small_dtypes(dtype: Any) -> None:
    unit = 2.0**-11 if dtype is np.float16 else 2.0**-8
    for magnitude in (1e-6, 1e-3, 1.0):
        weight = matrix(300, 40)
        x = (np.random.default_rng(4).standard_normal((5, 300)) * magnitude).astype(dtype)
        y = by_matmul(x.astype(np.float32), weight, NO_BIAS).astype(dtype)
        bound = bound_of(x, weight, NO_BIAS)
        exact = exact_product(x, weight, NO_BIAS)
        assert 0.5 < excess(y, x, weight, NO_BIAS, bound) <= 1
        float32_bound = bound_of(x, weight, NO_BIAS, dtype=np.float32)
        assert (bound <= 1.01 * float32_bound + np.maximum(np.abs(exact) * unit, 2.0**-25)).all()


def test_float_bound_of_results_that_overflow() -> None:
    weight = TernaryWeight(np.ones((300, 4), np.int8), np.ones((), np.float32), 0, "binary_pm", 0.0)
    x = np.full((1, 300), 6e4, np.float16)
    assert np.isinf(bound_of(x, weight, NO_BIAS)).all()
    assert np.isfinite(bound_of(x, weight, NO_BIAS, dtype=np.float32)).all()


def test_float_bound_of_rows_that_are_not_finite() -> None:
    x = np.ones((2, 3, 64), np.float32)
    x[0, 1, 5] = np.inf
    bound = bound_of(x, matrix(64, 4), NO_BIAS)
    assert bound.shape == (2, 3, 4)
    expected = np.zeros((2, 3, 4), bool)
    expected[0, 1] = True
    np.testing.assert_array_equal(np.isnan(bound), expected)


def test_bounds_refuse_another_dtype() -> None:
    x = np.ones((1, 64), np.float32)
    with pytest.raises(ValueError, match="dtype is float64"):
        bound_of(x, matrix(64, 4), NO_BIAS, dtype=np.float64)


def test_columns_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(100, 9, "group")
    x = np.random.default_rng(6).standard_normal((3, 100)).astype(np.float32)
    index = build(weight, "packed", **INT8)
    options: Any = (weight.levels, weight.scale, weight.group_size, NO_BIAS, index.attributes)

    def results() -> list[NDArray[Any]]:
        return [run(index, x), bound_of(x, weight, NO_BIAS), int8_error_bound(x, *options, x.dtype)]

    expected = results()
    monkeypatch.setattr("onnx_ternary.op.bounds._COLUMNS_ELEMENTS", 200)
    for found, whole in zip(results(), expected, strict=True):
        np.testing.assert_allclose(found, whole, rtol=1e-12)


def test_gamma() -> None:
    assert gamma(1) == pytest.approx(2.0**-24, rel=1e-6)
    assert gamma(100) > 100 * 2.0**-24
    assert gamma(2**24) == math.inf


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("scale_kind", ["tensor", "column", "group"])
@pytest.mark.parametrize("magnitude", [1e-6, 1.0, 100.0])
def test_int8_bound(scale_kind: str, dtype: Any, magnitude: float) -> None:
    rng = np.random.default_rng(5)
    weight = matrix(300, 40, scale_kind)
    x = (rng.standard_normal((5, 300)) * magnitude).astype(dtype)
    bias = (rng.standard_normal(40) * magnitude).astype(np.float32)
    index = build(weight, "packed", **INT8)
    attributes = index.attributes
    bound = int8_error_bound(
        x, weight.levels, weight.scale, weight.group_size, bias, attributes, dtype
    )
    q, s = quantize_rows(x.astype(np.float32), attributes)
    dequantized = q / s[:, None].astype(np.float64)
    exact = exact_product(dequantized, weight, bias)
    y = run(index, x, bias)
    assert (np.abs(y.astype(np.float64) - exact) <= bound).all()
    # Multiplying by 1 / s, scales joined first.
    inverse = np.float32(1) / s
    if scale_kind != "group":
        sums = (q.astype(np.int64) @ weight.levels.astype(np.int64)).astype(np.float32)
        other = (sums * (inverse[:, None] * weight.scale) + bias).astype(dtype)
        assert (np.abs(other.astype(np.float64) - exact) <= bound).all()
    # One weight off by one level is out of bounds wherever its activation is not 0.
    levels = weight.levels.copy()
    k = int(np.abs(q).min(axis=0).argmax())
    levels[k] = np.where(levels[k] == 1, 0, levels[k] + 1)
    wrong = exact_product(dequantized, dataclasses.replace(weight, levels=levels), bias)
    if dtype == np.float32:
        assert (np.abs(wrong - exact) > bound).all()
    # Tight: a few units in the last place.
    if dtype == np.float32 and scale_kind != "group":
        size = np.abs(exact - bias) + np.abs(bias)
        assert (bound <= size * 6 * 2.0**-24).all()


def test_int8_bound_of_rows_that_are_not_finite() -> None:
    x = np.ones((2, 64), np.float32)
    x[0, 5] = np.nan
    weight = matrix(64, 4)
    attributes = OpAttributes(K=64, N=4, **INT8)
    bound = int8_error_bound(x, weight.levels, weight.scale, 0, NO_BIAS, attributes, np.float32)
    assert np.isnan(bound[0]).all()
    assert np.isfinite(bound[1]).all()
