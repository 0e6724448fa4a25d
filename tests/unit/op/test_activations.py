"""The rules by which the op rounds its activations, in exact arithmetic."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.op.activations import quantize_rows
from onnx_ternary.schema import OpAttributes
from tests.support.products import INT8
from tests.support.strategies import random_generators


def to_float32(value: Fraction) -> Fraction:
    """Round a positive number to 24 bits, half to even."""
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
