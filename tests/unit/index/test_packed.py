"""The packed format: what the document says, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.index import build_index, decode_index, packed, validate_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.schema import BLOCK_SIZES, Alphabet, Storage
from tests.support.strategies import (
    PACKED_STORAGES,
    for_each_of_many,
    packed_levels,
    random_levels,
    ternary_weights,
)

NO_BIAS = np.zeros((), np.float32)


def code_of(
    levels: NDArray[np.int8], row: int, column: int, storage: Storage, block_size: int
) -> int:
    """The digit of one input, written as the document says it, padding included."""
    K, N = levels.shape
    inside = row < K and column < N
    if storage == "1bit":
        return int(inside and levels[row, column] == 1)
    return int(levels[row, column]) + 1 if inside else 1


def pack_by_the_document(
    levels: NDArray[np.int8], storage: Storage, block_size: int
) -> NDArray[np.uint8]:
    """docs/index_format.md section 2, one byte at a time."""
    K, N = levels.shape
    B = block_size
    size = {"2bit": B // 4, "dense": -(-B // 5), "1bit": B // 8}[storage]
    codes = np.zeros((-(-N // 4), -(-K // B), 4, size), np.uint8)
    for tile, b, c, i in np.ndindex(codes.shape):
        byte = 0
        for j in range({"2bit": 4, "dense": 5, "1bit": 8}[storage]):
            row_in_block = size * j + i
            row = B * b + row_in_block if row_in_block < B else K
            digit = code_of(levels, row, 4 * tile + c, storage, B)
            byte += digit * {"2bit": 4, "dense": 3, "1bit": 2}[storage] ** j
        codes[tile, b, c, i] = byte
    return codes


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("storage", "alphabet"), PACKED_STORAGES)
@for_each_of_many
@given(data=st.data())
def test_pack_and_unpack(
    storage: Storage, alphabet: Alphabet, block_size: int, data: st.DataObject
) -> None:
    levels, options = data.draw(packed_levels(storage, alphabet, block_size))
    K, N = levels.shape
    codes = packed.pack(levels, **options)
    assert codes.dtype == np.uint8
    assert codes.flags.c_contiguous
    assert codes.shape == packed.codes_shape(K, N, storage=storage, block_size=block_size)
    result = packed.unpack(codes, K, N, **options)
    assert result.dtype == np.int8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, levels)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("storage", "alphabet"), PACKED_STORAGES)
def test_pack_is_what_the_document_says(
    storage: Storage, alphabet: Alphabet, block_size: int
) -> None:
    rng = np.random.default_rng(0)
    for K, N in [(1, 1), (block_size, 4), (block_size + 1, 5)]:
        levels = random_levels(rng, K, N, alphabet)
        codes = packed.pack(levels, storage=storage, alphabet=alphabet, block_size=block_size)
        np.testing.assert_array_equal(codes, pack_by_the_document(levels, storage, block_size))


def test_dense_bytes_stay_in_base_3_and_cost_little() -> None:
    levels = np.ones((256, 8), np.int8)
    codes = packed.pack(levels, storage="dense", alphabet="ternary", block_size=128)
    assert codes.max() == 242
    assert codes.nbytes * 8 / levels.size == 1.625


def test_every_byte_unpacks() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(2, 1, 4, 32)
    for storage, size in (("2bit", 128), ("dense", 160), ("1bit", 256)):
        levels = packed.unpack(
            every, size, 8, storage=storage, alphabet="binary_01", block_size=size
        )
        assert levels.min() >= -1
        assert levels.max() <= 2


@given(weight=ternary_weights())
def test_build_decode_validate(weight: TernaryWeight) -> None:
    index = build_index(weight, native=False)
    attributes = index.attributes
    assert attributes.storage == ("2bit" if weight.alphabet == "ternary" else "1bit")
    assert attributes.group_size % attributes.block_size == 0
    assert index.nbytes == index.codes.nbytes + 4 + weight.scale.nbytes
    validate_index(attributes, index.codes, index.aux, index.scale, NO_BIAS)
    np.testing.assert_array_equal(decode_index(attributes, index.codes, index.aux), weight.levels)
