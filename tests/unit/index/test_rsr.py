"""The RSR format: permutations, offsets and the optimal block width."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_ternary.index import build_index, decode_index, rsr, validate_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.schema import Algorithm, Alphabet, Storage
from tests.support.strategies import (
    RSR_STORAGES,
    for_each_of_many,
    random_levels,
    rsr_levels,
    ternary_weights,
)

NO_BIAS = np.zeros((), np.float32)


@pytest.mark.parametrize("group_size", [0, 1, 7, 64])
@pytest.mark.parametrize(("storage", "alphabet"), RSR_STORAGES)
@for_each_of_many
@given(data=st.data())
def test_pack_and_unpack(
    storage: Storage, alphabet: Alphabet, group_size: int, data: st.DataObject
) -> None:
    levels, options = data.draw(rsr_levels(storage, alphabet, group_size))
    (K, N), block_width = levels.shape, options["block_width"]
    permutation, offsets = rsr.pack(levels, **options)
    num_planes = 2 if (storage, alphabet) == ("planes", "ternary") else 1
    num_blocks = -(-N // block_width)
    num_groups = -(-K // group_size) if group_size else 1
    num_patterns = (3 if storage == "base3" else 2) ** block_width
    assert permutation.shape == (num_planes, num_blocks, K)
    assert permutation.dtype == np.uint16
    assert offsets.shape == (num_planes, num_blocks, num_groups, num_patterns + 1)
    assert offsets.dtype == np.uint32
    result = rsr.unpack(permutation, offsets, K, N, **options)
    assert result.dtype == np.int8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, levels)


def test_rows_are_sorted_by_pattern_and_stably() -> None:
    levels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]], np.int8)
    permutation, offsets = rsr.pack(levels, storage="planes", alphabet="binary_01", block_width=2)
    # Patterns of columns 0 and 1: 2, 0, 2, 1; of column 2 and one of padding: 2, 0, 0, 2.
    assert permutation.tolist() == [[[1, 3, 0, 2], [1, 2, 0, 3]]]
    assert offsets.tolist() == [[[[0, 1, 2, 4, 4]], [[0, 2, 2, 4, 4]]]]


def test_widest_patterns() -> None:
    rng = np.random.default_rng(0)
    for storage, width in (("planes", 16), ("base3", 10)):
        levels = random_levels(rng, 40, width + 1, "ternary")
        options: dict[str, Any] = {
            "storage": storage,
            "alphabet": "ternary",
            "block_width": width,
            "group_size": 0,
        }
        np.testing.assert_array_equal(
            rsr.unpack(*rsr.pack(levels, **options), 40, width + 1, **options), levels
        )


@pytest.mark.parametrize(("K", "dtype"), [(65536, np.uint16), (65537, np.uint32)])
def test_permutation_dtype(K: int, dtype: Any) -> None:
    levels = random_levels(np.random.default_rng(0), K, 2, "binary_01")
    options: dict[str, Any] = {"storage": "planes", "alphabet": "binary_01", "block_width": 2}
    permutation, offsets = rsr.pack(levels, **options)
    assert permutation.dtype == dtype
    np.testing.assert_array_equal(rsr.unpack(permutation, offsets, K, 2, **options), levels)


@given(
    weight=ternary_weights(group_sizes=(5, 16, 64)),
    storage=st.sampled_from(["planes", "base3", None]),
    block_width=st.sampled_from([None, 1, 3]),
    algorithm=st.sampled_from([None, "rsr", "rsr++"]),
)
def test_build_decode_validate(
    weight: TernaryWeight,
    storage: Storage | None,
    block_width: int | None,
    algorithm: Algorithm | None,
) -> None:
    if weight.alphabet != "ternary":
        storage = None
    index = build_index(
        weight,
        index_format="rsr",
        storage=storage,
        block_width=block_width,
        algorithm=algorithm,
        native=False,
    )
    attributes = index.attributes
    assert attributes.storage == (storage or "planes")
    assert attributes.algorithm == (algorithm or "rsr++")
    if block_width:
        assert attributes.block_width == block_width
    validate_index(attributes, index.codes, index.aux, index.scale, NO_BIAS)
    np.testing.assert_array_equal(decode_index(attributes, index.codes, index.aux), weight.levels)


@pytest.mark.parametrize("algorithm", ["rsr", "rsr++"])
@pytest.mark.parametrize("storage", ["planes", "base3"])
@given(K=st.integers(1, 20000), N=st.integers(1, 20000), groups=st.sampled_from([0, 16, 128]))
def test_optimal_block_width_is_the_cheapest(
    storage: Storage, algorithm: Algorithm, K: int, N: int, groups: int
) -> None:
    """Additions counted by walking through one block's product, not by a formula."""

    def cost(width: int) -> int:
        patterns = 1
        for _ in range(width):
            patterns *= 3 if storage == "base3" else 2
        blocks = len(range(0, N, width))
        products = len(range(0, K, groups)) if groups else 1
        return blocks * (K + products * patterns * (width if algorithm == "rsr" else 1))

    widths = range(1, 11 if storage == "base3" else 17)
    best = rsr.optimal_block_width(K, N, storage, algorithm, group_size=groups)
    assert best in widths
    assert all(
        cost(best) < cost(width) if width < best else cost(best) <= cost(width) for width in widths
    )


def test_optimal_block_width_of_the_paper() -> None:
    # log2(n) - log2(log2(n)) for RSR and log2(n) for RSR++, to within the whole blocks.
    assert abs(rsr.optimal_block_width(2**14, 2**14, "planes", "rsr") - 9) <= 1
    assert abs(rsr.optimal_block_width(2**14, 2**14, "planes", "rsr++") - 11) <= 1
    assert rsr.optimal_block_width(2**23, 2**23, "planes", "rsr++") == 16
