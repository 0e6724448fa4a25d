"""Hypothesis strategies: weights of every alphabet and scale kind, odd shapes, activations."""

from __future__ import annotations

from typing import Any, get_args

import ml_dtypes
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.schema import BLOCK_SIZES, Alphabet, Storage

LEVELS: dict[Alphabet, tuple[int, ...]] = {
    "ternary": (-1, 0, 1),
    "binary_pm": (-1, 1),
    "binary_01": (0, 1),
}
ALPHABETS: tuple[Alphabet, ...] = get_args(Alphabet)
PACKED_STORAGES: tuple[tuple[Storage, Alphabet], ...] = (
    *(("2bit", alphabet) for alphabet in ALPHABETS),
    *(("dense", alphabet) for alphabet in ALPHABETS),
    ("1bit", "binary_pm"),
    ("1bit", "binary_01"),
)
RSR_STORAGES: tuple[tuple[Storage, Alphabet], ...] = (
    *(("planes", alphabet) for alphabet in ALPHABETS),
    ("base3", "ternary"),
)
# A property that is tried for every storage and size has that many times the examples.
for_each_of_many = settings(max_examples=40)
FLOAT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16)))


def row_counts(block_size: int = 128) -> st.SearchStrategy[int]:
    """K around 1, a block less one, a block and a block and one, and anything up to three."""
    edges = (1, 2, max(1, block_size - 1), block_size, block_size + 1, 2 * block_size + 3)
    return st.sampled_from(edges) | st.integers(1, 3 * block_size)


def column_counts() -> st.SearchStrategy[int]:
    """N around 1 and around a tile of four columns."""
    return st.sampled_from((1, 3, 4, 5)) | st.integers(1, 20)


def random_generators() -> st.SearchStrategy[np.random.Generator]:
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def random_levels(rng: np.random.Generator, K: int, N: int, alphabet: Alphabet) -> NDArray[np.int8]:
    """Levels (K, N); half of the larger matrices have a constant column."""
    levels = rng.choice(np.array(LEVELS[alphabet], np.int8), (K, N))
    if rng.random() < 0.5:
        levels[:, rng.integers(N)] = rng.choice(LEVELS[alphabet])
    return levels


@st.composite
def levels(
    draw: st.DrawFn, alphabet: Alphabet = "ternary", block_size: int = 128
) -> NDArray[np.int8]:
    return random_levels(
        draw(random_generators()), draw(row_counts(block_size)), draw(column_counts()), alphabet
    )


@st.composite
def packed_levels(
    draw: st.DrawFn,
    storage: Storage,
    alphabet: Alphabet,
    block_size: int,
    columns: st.SearchStrategy[int] | None = None,
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Levels (K, N) and the options `pack` and `unpack` take them with."""
    shape = draw(row_counts(block_size)), draw(column_counts() if columns is None else columns)
    matrix = random_levels(draw(random_generators()), *shape, alphabet)
    return matrix, {"storage": storage, "alphabet": alphabet, "block_size": block_size}


@st.composite
def rsr_levels(
    draw: st.DrawFn, storage: Storage, alphabet: Alphabet, group_size: int
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Levels (K, N) and the options `pack_rsr` takes them with."""
    shape = draw(row_counts(group_size or 30)), draw(column_counts())
    matrix = random_levels(draw(random_generators()), *shape, alphabet)
    return matrix, {
        "storage": storage,
        "alphabet": alphabet,
        "block_width": draw(st.integers(1, 6)),
        "group_size": group_size,
    }


@st.composite
def ternary_weights(
    draw: st.DrawFn,
    alphabets: tuple[Alphabet, ...] = ALPHABETS,
    group_sizes: tuple[int, ...] = (16, 32, 48, 64, 128),
) -> TernaryWeight:
    """Weights with scales per tensor, per column or per group, of several magnitudes."""
    alphabet = draw(st.sampled_from(alphabets))
    group_size = draw(st.sampled_from((0, 0, *group_sizes)))
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    matrix = draw(levels(alphabet, group_size or block_size))
    K, N = matrix.shape
    shapes = [(-(-K // group_size), N)] if group_size else [(), (N,)]
    shape: tuple[int, ...] = draw(st.sampled_from(shapes))
    rng = draw(random_generators())
    magnitude = 10.0 ** draw(st.sampled_from((-3, 0, 2)))
    scale = (rng.uniform(0.5, 2, shape) * magnitude).astype(np.float32)
    return TernaryWeight(matrix, np.asarray(scale), group_size, alphabet, 0.0)


@st.composite
def activations(
    draw: st.DrawFn, K: int, dtypes: tuple[np.dtype[Any], ...] = FLOAT_DTYPES
) -> NDArray[Any]:
    """Ordinary activations (..., K), also without leading dimensions and without rows."""
    leading = draw(st.sampled_from([(), (1,), (3,), (2, 2), (0,), (1, 0, 2)]))
    rng = draw(random_generators())
    return rng.standard_normal((*leading, K)).astype(draw(st.sampled_from(dtypes)))
