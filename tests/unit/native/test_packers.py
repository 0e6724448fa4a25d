"""The C++ packers against the written format and the numpy packers."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import packed, rsr
from onnx_ternary.native import binding, packers
from onnx_ternary.schema import BLOCK_SIZES, Alphabet, OpAttributes, Storage
from tests.support.single_node import make_node, pack, pack_rsr
from tests.support.strategies import (
    LEVELS,
    PACKED_STORAGES,
    RSR_STORAGES,
    column_counts,
    for_each_of_many,
    packed_levels,
    random_levels,
    rsr_levels,
)

LONGEST = 2**63 - 1


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("storage", "alphabet"), PACKED_STORAGES)
@for_each_of_many
@given(data=st.data())
def test_packed(storage: Storage, alphabet: Alphabet, block_size: int, data: st.DataObject) -> None:
    columns = column_counts() | st.sampled_from([63, 64, 65, 130])
    levels, options = data.draw(packed_levels(storage, alphabet, block_size, columns))
    K, N = levels.shape
    codes = packed.pack(levels, **options)
    native = packers.pack(levels, **options)
    assert native.dtype == codes.dtype
    np.testing.assert_array_equal(native, codes)
    np.testing.assert_array_equal(packers.unpack(codes, K, N, **options), levels)


@pytest.mark.parametrize("storage", ["dense", "1bit"])
def test_every_byte_unpacks_alike(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    shape = packed.codes_shape(256, 40, storage=storage, block_size=128)
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    options: dict[str, Any] = {"storage": storage, "alphabet": "binary_01", "block_size": 128}
    np.testing.assert_array_equal(
        packers.unpack(codes, 256, 40, **options), packed.unpack(codes, 256, 40, **options)
    )


@pytest.mark.parametrize("group_size", [0, 1, 7, 64])
@pytest.mark.parametrize(("storage", "alphabet"), RSR_STORAGES)
@for_each_of_many
@given(data=st.data())
def test_rsr(storage: Storage, alphabet: Alphabet, group_size: int, data: st.DataObject) -> None:
    levels, options = data.draw(rsr_levels(storage, alphabet, group_size))
    for native, expected in zip(
        packers.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        assert native.dtype == expected.dtype
        np.testing.assert_array_equal(native, expected)


@pytest.mark.parametrize(("storage", "block_width"), [("planes", 16), ("base3", 10)])
def test_rsr_of_the_widest_patterns(storage: Storage, block_width: int) -> None:
    levels = random_levels(np.random.default_rng(0), 50, 20, "ternary")
    options: dict[str, Any] = {"storage": storage, "alphabet": "ternary"}
    options |= {"block_width": block_width, "group_size": 0}
    for native, expected in zip(
        packers.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        np.testing.assert_array_equal(native, expected)


@pytest.mark.parametrize("K", [65536, 65537])
def test_rsr_of_many_rows(K: int) -> None:
    levels = random_levels(np.random.default_rng(0), K, 3, "ternary")
    options: dict[str, Any] = {"storage": "planes", "alphabet": "ternary"}
    options |= {"block_width": 2, "group_size": 0}
    for native, expected in zip(
        packers.pack_rsr(levels, **options), rsr.pack(levels, **options), strict=True
    ):
        assert native.dtype == expected.dtype
        np.testing.assert_array_equal(native, expected)


def test_levels_of_any_memory_order() -> None:
    levels = np.asfortranarray(random_levels(np.random.default_rng(0), 130, 9, "ternary"))
    options: dict[str, Any] = {"storage": "2bit", "alphabet": "ternary", "block_size": 128}
    np.testing.assert_array_equal(packers.pack(levels, **options), packed.pack(levels, **options))


@pytest.mark.parametrize(("storage", "alphabet"), [*PACKED_STORAGES, *RSR_STORAGES])
def test_level_outside_the_alphabet_is_refused(storage: Storage, alphabet: Alphabet) -> None:
    outside = {-1, 0, 1, 2, -2, 127} - set(LEVELS[alphabet])
    for level in outside:
        levels = np.full((130, 70), LEVELS[alphabet][-1], np.int8)
        levels[129, 69] = level
        with pytest.raises(IndexFormatError, match=rf"levels\[129, 69\] = {level} "):
            if storage in ("planes", "base3"):
                packers.pack_rsr(
                    levels, storage=storage, alphabet=alphabet, block_width=3, group_size=0
                )
            else:
                packers.pack(levels, storage=storage, alphabet=alphabet, block_size=128)


SIZES = [(1, 1), (15, 3), (16, 4), (17, 5), (127, 7), (128, 64), (129, 65), (300, 70)]


@pytest.mark.parametrize(("K", "N"), SIZES)
@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize(
    ("storage", "alphabet"),
    [("2bit", "ternary"), ("2bit", "binary_pm"), ("dense", "ternary"), ("dense", "binary_01"),
     ("1bit", "binary_pm"), ("1bit", "binary_01")],
)  # fmt: skip
def test_pack_equals_the_written_format(
    rng: np.random.Generator, K: int, N: int, block_size: int, storage: Storage, alphabet: Alphabet
) -> None:
    attributes = OpAttributes(K, N, storage=storage, alphabet=alphabet, block_size=block_size)
    levels = make_node(rng, attributes).levels
    options: Any = {"storage": storage, "alphabet": alphabet, "block_size": block_size}
    codes = packers.pack(levels, **options)
    np.testing.assert_array_equal(codes, pack(levels, attributes))
    np.testing.assert_array_equal(packers.unpack(codes, K, N, **options), levels)


@pytest.mark.parametrize(("K", "N"), [(1, 1), (17, 5), (130, 66), (48, 130)])
@pytest.mark.parametrize("group_size", [0, 7, 48])
@pytest.mark.parametrize(
    ("storage", "alphabet", "block_width"),
    [("planes", "ternary", 4), ("planes", "binary_pm", 3), ("planes", "binary_01", 1),
     ("base3", "ternary", 3), ("planes", "ternary", 9)],
)  # fmt: skip
def test_pack_rsr_equals_the_written_format(
    rng: np.random.Generator,
    K: int,
    N: int,
    group_size: int,
    storage: Storage,
    alphabet: Alphabet,
    block_width: int,
) -> None:
    K = min(K, 17) if block_width == 9 else K  # 512 patterns in plain Python are slow
    attributes = OpAttributes(
        K,
        N,
        index_format="rsr",
        storage=storage,
        alphabet=alphabet,
        block_size=0,
        block_width=block_width,
        algorithm="rsr",
        group_size=group_size,
    )
    levels = make_node(rng, attributes).levels
    permutation, offsets = packers.pack_rsr(
        levels, storage=storage, alphabet=alphabet, block_width=block_width, group_size=group_size
    )
    expected_permutation, expected_offsets = pack_rsr(levels, attributes)
    assert permutation.dtype == np.uint16
    np.testing.assert_array_equal(permutation, expected_permutation)
    np.testing.assert_array_equal(offsets, expected_offsets)


def test_pack_rsr_long_matrix_uses_uint32() -> None:
    levels = np.ones((65537, 2), np.int8)
    permutation, offsets = packers.pack_rsr(
        levels, storage="planes", alphabet="binary_01", block_width=2, group_size=0
    )
    assert permutation.dtype == np.uint32
    np.testing.assert_array_equal(permutation.ravel(), np.arange(65537))
    np.testing.assert_array_equal(offsets.ravel(), [0, 0, 0, 0, 65537])


@pytest.mark.parametrize(
    ("level", "alphabet", "expected"),
    [(2, "ternary", "-1, 0 or 1"), (-128, "ternary", "-1, 0 or 1"), (127, "ternary", "-1, 0 or 1"),
     (0, "binary_pm", "-1 or 1"), (-1, "binary_01", "0 or 1")],
)  # fmt: skip
def test_pack_level_outside_the_alphabet_is_named(
    level: int, alphabet: Alphabet, expected: str
) -> None:
    levels = np.ones((200, 70), np.int8)
    levels[150, 66] = level
    message = rf"levels\[150, 66\] = {level} .*expected {expected}"
    with pytest.raises(IndexFormatError, match=message):
        packers.pack(levels, storage="2bit", alphabet=alphabet, block_size=128)
    with pytest.raises(IndexFormatError, match=message):
        packers.pack_rsr(levels, storage="planes", alphabet=alphabet, block_width=3, group_size=0)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [((4, 4), {"block_size": 24}, "block_size = 24"), ((4, 4), {"block_size": 0}, "block_size"),
     ((4, 4), {"storage": "planes"}, "not one of packed"), ((0, 4), {}, "K and N"),
     ((4, 4), {"storage": "3bit"}, "expected 2bit or dense"),
     ((4, 4), {"storage": "1bit"}, "binary alphabets"), ((4,), {}, "expected")],
)  # fmt: skip
def test_pack_wrong_arguments_are_refused(
    shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    arguments = {"storage": "2bit", "alphabet": "ternary", "block_size": 128, **options}
    with pytest.raises(IndexFormatError, match=message):
        packers.pack(np.ones(shape, np.int8), **arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("otn_pack", (LONGEST, 4, b"2bit", b"ternary", 128)),
     ("otn_pack", (4, LONGEST, b"dense", b"ternary", 128)),
     ("otn_pack_rsr", (LONGEST, 4, b"planes", b"ternary", 2, 0)),
     ("otn_pack_rsr", (4, LONGEST, b"planes", b"ternary", 2, 0)),
     ("otn_pack_rsr", (4, 4, b"planes", b"ternary", 2, LONGEST))],
)  # fmt: skip
def test_pack_sizes_that_overflow_are_refused(name: str, arguments: tuple[Any, ...]) -> None:
    memory, error = np.zeros(16, np.int8), ctypes.create_string_buffer(100)
    outputs = (memory.ctypes.data, 16)
    if name == "otn_pack_rsr":
        outputs = (memory.ctypes.data, 2, 16, memory.ctypes.data, 16)
    status = getattr(binding.library(), name)(
        memory.ctypes.data, *arguments, *outputs, error, len(error)
    )
    assert status == 1
    assert error.value


def test_unpack_takes_any_byte(rng: np.random.Generator) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 1, 4, 32)
    two_bit = packers.unpack(codes, 128, 8, storage="2bit", alphabet="ternary", block_size=128)
    assert set(np.unique(two_bit)) == {-1, 0, 1, 2}
    codes = rng.integers(0, 256, (2, 1, 4, 26)).astype(np.uint8)
    dense = packers.unpack(codes, 128, 8, storage="dense", alphabet="ternary", block_size=128)
    assert set(np.unique(dense)) == {-1, 0, 1}
    assert dense[26, 3] == int(codes[0, 0, 3, 0]) // 3 % 3 - 1
