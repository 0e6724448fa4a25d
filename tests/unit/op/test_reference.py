from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import Index, build_index
from onnx_ternary.reference import (
    float_error_bound,
    gamma,
    int8_error_bound,
    quantize_rows,
    ternary_indexed_matmul,
)
from onnx_ternary.schema import OpAttributes
from onnx_ternary.ternary import TernaryWeight
from tests.support.strategies import (
    FLOAT_DTYPES,
    activations,
    random_generators,
    random_levels,
    ternary_weights,
)

NO_BIAS = np.zeros((), np.float32)
INT8: dict[str, Any] = {
    "activation": "int8",
    "activation_rule": "absmax_division",
    "activation_epsilon": 1e-5,
    "activation_qmin": -128,
    "activation_qmax": 127,
}
FORMATS: dict[str, dict[str, Any]] = {
    "packed": {},
    "packed dense": {"storage": "dense"},
    "rsr": {"index_format": "rsr", "algorithm": "rsr"},
    "rsr++": {"index_format": "rsr", "algorithm": "rsr++"},
    "rsr base3": {"index_format": "rsr", "algorithm": "rsr", "storage": "base3"},
    "rsr++ base3": {"index_format": "rsr", "algorithm": "rsr++", "storage": "base3"},
}


def build(weight: TernaryWeight, format_name: str, **activation: Any) -> Index:
    options = dict(FORMATS[format_name])
    if weight.alphabet != "ternary" and options.get("storage") == "base3":
        del options["storage"]
    index = build_index(weight, native=False, **options)
    return dataclasses.replace(
        index, attributes=dataclasses.replace(index.attributes, **activation)
    )


def run(index: Index, x: NDArray[Any], bias: NDArray[np.float32] = NO_BIAS) -> NDArray[Any]:
    return ternary_indexed_matmul(x, index.codes, index.aux, index.scale, bias, index.attributes)


def draw_bias(rng: np.random.Generator, N: int) -> NDArray[np.float32]:
    return NO_BIAS if rng.random() < 0.3 else rng.standard_normal(N).astype(np.float32)


def matrix(
    K: int, N: int, scale_kind: str = "column", alphabet: Any = "ternary", seed: int = 0
) -> TernaryWeight:
    rng = np.random.default_rng(seed)
    levels = random_levels(rng, K, N, alphabet)
    group_size = 32 if scale_kind == "group" else 0
    shape = {"tensor": (), "column": (N,), "group": (-(-K // 32), N)}[scale_kind]
    scale = np.asarray(rng.uniform(0.5, 2, shape), np.float32)
    return TernaryWeight(levels, scale, group_size, alphabet, 0.0)


def exact_product(
    x: NDArray[Any], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[np.float64]:
    """With correctly rounded sums, one element at a time."""
    K, N = weight.levels.shape
    rows = x.reshape(-1, K).astype(np.float64)
    dense = weight.dense().astype(np.float64)
    full_bias = np.broadcast_to(bias, (N,)).astype(np.float64)
    sums = [[math.fsum([*(row * dense[:, n]), full_bias[n]]) for n in range(N)] for row in rows]
    return np.array(sums, np.float64).reshape(*x.shape[:-1], N)


# float -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", FORMATS)
@given(data=st.data(), rng=random_generators())
def test_float_product(format_name: str, data: st.DataObject, rng: np.random.Generator) -> None:
    weight = data.draw(ternary_weights())
    x = data.draw(activations(weight.levels.shape[0]))
    bias = draw_bias(rng, weight.levels.shape[1])
    y = run(build(weight, format_name), x, bias)
    assert y.dtype == x.dtype
    assert y.shape == (*x.shape[:-1], weight.levels.shape[1])
    exact = exact_product(x, weight, bias)
    unit = {2: 2.0**-11, 4: 2.0**-24}[x.dtype.itemsize]
    if x.dtype == ml_dtypes.bfloat16:
        unit = 2.0**-8
    # One rounding to x's dtype; float64 sums may be off where terms cancel.
    tolerance = np.abs(exact) * unit * 1.001 + 1e-10 * np.abs(weight.scale).max() + 2.0**-25
    assert (np.abs(y.astype(np.float64) - exact) <= tolerance).all()


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("alphabet", ["ternary", "binary_pm", "binary_01"])
def test_integer_activations_are_exact(format_name: str, alphabet: str) -> None:
    weight = matrix(200, 13, "tensor", alphabet)
    weight = dataclasses.replace(weight, scale=np.array(0.5, np.float32))
    x = np.random.default_rng(1).integers(-1000, 1000, (4, 200)).astype(np.float32)
    expected = x.astype(np.int64) @ weight.levels.astype(np.int64)
    np.testing.assert_array_equal(run(build(weight, format_name), x), expected * 0.5)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("scale_kind", ["tensor", "column", "group"])
def test_rows_that_are_not_finite_follow_matmul(format_name: str, scale_kind: str) -> None:
    weight = matrix(100, 9, scale_kind)
    x = np.random.default_rng(1).standard_normal((5, 100)).astype(np.float32)
    x[1, 3] = np.inf
    x[2, [3, 40]] = np.inf, -np.inf
    x[3, 99] = np.nan
    y = run(build(weight, format_name), x)
    with np.errstate(invalid="ignore"):
        expected = (x[:, :, None] * weight.dense()[None]).sum(axis=1)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
    infinite = np.isinf(expected)
    assert infinite[1].any()
    np.testing.assert_array_equal(y[infinite], expected[infinite])
    assert np.isfinite(y[[0, 4]]).all()


def test_large_rows_do_not_overflow_on_the_way() -> None:
    weight = TernaryWeight(
        np.array([[1], [1], [-1], [-1]], np.int8), np.ones((), np.float32), 0, "binary_pm", 0.0
    )
    x = np.full((1, 4), 3e38, np.float32)
    for format_name in FORMATS:
        assert run(build(weight, format_name), x) == 0


def test_wrong_x_is_refused() -> None:
    index = build(matrix(10, 3), "packed")
    for x in (np.zeros((2, 9), np.float32), np.float32(1).reshape(())):
        with pytest.raises(ValueError, match=r"expected \(..., 10\)"):
            run(index, x)
    with pytest.raises(ValueError, match="dtype is float64"):
        run(index, np.zeros((2, 10)))


def test_broken_index_is_refused() -> None:
    index = build(matrix(10, 3), "rsr")
    index.codes[0, 0, 0] = 11
    with pytest.raises(IndexFormatError):
        run(index, np.zeros((1, 10), np.float32))


# int8 ------------------------------------------------------------------------------------------


def to_float32(value: Fraction) -> Fraction:
    """Rounds a positive number to 24 bits, half to even."""
    exponent = math.floor(math.log2(value))
    while Fraction(2) ** exponent > value:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= value:
        exponent += 1
    unit = Fraction(2) ** (exponent - 23)
    return round(value / unit) * unit  # Python rounds half to even


@pytest.mark.parametrize("rule", ["absmax_division", "absmax_reciprocal"])
@given(rng=random_generators(), magnitude=st.sampled_from([1e-4, 1.0, 1000.0]))
def test_quantization_rule_in_exact_arithmetic(
    rule: str, rng: np.random.Generator, magnitude: float
) -> None:
    attributes = OpAttributes(K=7, N=1, **(INT8 | {"activation_rule": rule}))
    x = (rng.standard_normal((2, 7)) * magnitude).astype(np.float32)
    q, s = quantize_rows(x, attributes)
    for row, row_q, row_s in zip(x, q, s, strict=True):
        absmax = max(Fraction(float(np.float32(1e-5))), *(abs(Fraction(float(v))) for v in row))
        if rule == "absmax_division":
            scale = to_float32(127 / absmax)
        else:
            scale = to_float32(to_float32(1 / absmax) * 127)
        assert Fraction(float(row_s)) == scale
        for value, level in zip(row, row_q, strict=True):
            exact = Fraction(float(value)) * scale
            product = to_float32(abs(exact)) if exact else Fraction(0)
            rounded = round(product) if exact > 0 else -round(product)
            assert level == min(127, max(-128, rounded))


def test_quantization_rounds_half_to_even_and_clips() -> None:
    attributes = OpAttributes(K=6, N=1, **(INT8 | {"activation_qmin": -3, "activation_qmax": 4}))
    # s = 1: what is rounded is x itself.
    x = np.array([[4, 0.5, 1.5, 2.5, -2.5, -4]], np.float32)
    q, s = quantize_rows(x, attributes)
    assert s == 1
    np.testing.assert_array_equal(q, [[4, 0, 2, 2, -2, -3]])


def test_rules_differ_in_the_last_bit() -> None:
    """The reason why both exist: the same row, another s."""
    x = np.linspace(0.5, 3, 50, dtype=np.float32)[:, None]
    division = OpAttributes(K=1, N=1, **INT8)
    reciprocal = dataclasses.replace(division, activation_rule="absmax_reciprocal")
    assert (quantize_rows(x, division)[1] != quantize_rows(x, reciprocal)[1]).any()


def test_quantization_of_special_rows() -> None:
    attributes = OpAttributes(K=2, N=1, **INT8)
    x = np.array([[0, 0], [1e-7, 0], [np.nan, 1], [np.inf, 1], [3.4e38, -3.4e38]], np.float32)
    for rule in ("absmax_division", "absmax_reciprocal"):
        q, s = quantize_rows(x, dataclasses.replace(attributes, activation_rule=rule))
        np.testing.assert_array_equal(q, [[0, 0], [1, 0], [0, 0], [0, 0], [127, -127]])
        np.testing.assert_array_equal(np.isnan(s), [False, False, True, True, False])
        np.testing.assert_allclose(s[0], 127 / np.float32(1e-5), rtol=1e-6)
    assert quantize_rows(np.zeros((0, 2), np.float32), attributes)[0].shape == (0, 2)


@pytest.mark.parametrize("format_name", FORMATS)
@given(data=st.data(), rng=random_generators())
def test_int8_product(format_name: str, data: st.DataObject, rng: np.random.Generator) -> None:
    weight = data.draw(ternary_weights(group_sizes=()))
    x = data.draw(activations(weight.levels.shape[0]))
    bias = draw_bias(rng, weight.levels.shape[1])
    index = build(weight, format_name, **INT8)
    q, s = quantize_rows(x.reshape(-1, x.shape[-1]).astype(np.float32), index.attributes)
    sums = q.astype(np.int64) @ weight.levels.astype(np.int64)
    expected = sums.astype(np.float32) / s[:, None] * weight.scale + bias
    y = run(index, x, bias)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(
        y, expected.astype(x.dtype).reshape(*x.shape[:-1], weight.levels.shape[1])
    )


@pytest.mark.parametrize("format_name", FORMATS)
def test_int8_rows_that_are_not_finite_give_nan(format_name: str) -> None:
    x = np.ones((3, 40), np.float32)
    x[0, 3] = np.inf
    x[2, 3] = np.nan
    y = run(build(matrix(40, 5, "group"), format_name, **INT8), x)
    assert np.isnan(y[[0, 2]]).all()
    assert np.isfinite(y[1]).all()


# bounds ----------------------------------------------------------------------------------------

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
    monkeypatch.setattr("onnx_ternary.reference._COLUMNS_ELEMENTS", 200)
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
