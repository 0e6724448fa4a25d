"""The op in numpy, in every format."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.activations import quantize_rows
from tests.support.products import FORMATS, INT8, build, draw_bias, exact_product, matrix, run
from tests.support.strategies import activations, random_generators, ternary_weights


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
