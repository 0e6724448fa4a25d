"""Indices of weights, and what decodes to no level of theirs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import Index, build_index, decode_index, validate_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import layer
from tests.support.indices import simple_weight
from tests.support.strategies import ternary_weights

NO_BIAS = np.zeros((), np.float32)


@pytest.mark.parametrize(
    ("group_size", "block_size"), [(0, 128), (16, 16), (48, 16), (64, 64), (128, 128), (256, 128)]
)
def test_block_size_follows_the_group_size(group_size: int, block_size: int) -> None:
    index = build_index(simple_weight(300, 5, group_size), native=False)
    assert index.attributes.block_size == block_size


def test_group_size_without_a_block_is_refused() -> None:
    with pytest.raises(IndexFormatError, match="group_size = 20, expected a multiple of 16"):
        build_index(simple_weight(300, 5, 20), native=False)


@pytest.mark.parametrize("options", [{"block_width": 4}, {"algorithm": "rsr"}, {"storage": "1bit"}])
def test_build_refuses_what_the_format_does_not_allow(options: dict[str, Any]) -> None:
    with pytest.raises(IndexFormatError):
        build_index(simple_weight(9, 9, 0), native=False, **options)


@pytest.fixture
def index() -> Index:
    return build_index(simple_weight(130, 5, 0), native=False)


def test_code_3_is_memory_safe_but_does_not_decode(index: Index) -> None:
    codes = index.codes.copy()
    codes[0, 0, 1, 0] = 0xFF
    validate_index(index.attributes, codes, index.aux, index.scale, NO_BIAS)
    with pytest.raises(
        IndexFormatError, match=r"level of row 0, column 1 = code 3, expected -1 or"
    ):
        decode_index(index.attributes, codes, index.aux)


def test_level_outside_the_alphabet_does_not_decode(index: Index) -> None:
    attributes = dataclasses.replace(index.attributes, alphabet="binary_pm")
    with pytest.raises(IndexFormatError, match="= 0, expected -1 or 1"):
        decode_index(attributes, index.codes, index.aux)


@given(weight=ternary_weights(), index_format=st.sampled_from(["packed", "rsr"]))
def test_build_index_is_the_same(weight: TernaryWeight, index_format: Any) -> None:
    native = build_index(weight, index_format=index_format)
    expected = build_index(weight, index_format=index_format, native=False)
    assert native.attributes == expected.attributes
    for name in ("codes", "aux", "scale"):
        np.testing.assert_array_equal(getattr(native, name), getattr(expected, name))
    layer.validate(native.attributes, native.codes, native.aux, native.scale, NO_BIAS)
