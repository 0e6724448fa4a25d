"""The `rsr` index format, docs/index_format.md section 3 (arXiv 2411.06360, sections 3 and 4).

`pack` and `unpack` are the executable specification; `pack_rsr` of `native` does the
same in C++.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.schema import MAX_BLOCK_WIDTH, Algorithm, Alphabet, Storage


def base(storage: Storage) -> int:
    """Digits a column of a pattern can have."""
    return 3 if storage == "base3" else 2


def permutation_dtype(K: int) -> type[np.uint16] | type[np.uint32]:
    """The integer type of a permutation of K rows."""
    return np.uint16 if K <= 65536 else np.uint32


def pack(
    levels: NDArray[np.int8],
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_width: int,
    group_size: int = 0,
) -> tuple[NDArray[np.uint16] | NDArray[np.uint32], NDArray[np.uint32]]:
    """Sort the rows of each column block by pattern.

    Args:
        levels: (K, N) int8 in {-1, 0, 1}, all of the alphabet.
        storage: "planes" or "base3".
        alphabet: which levels occur.
        block_width: columns per block.
        group_size: rows per scale group; 0 for one group of all rows.

    Returns:
        The permutation (num_planes, num_blocks, K) uint16 or uint32, and the segment offsets
        (num_planes, num_blocks, num_groups, num_patterns + 1) uint32.
    """
    K = levels.shape[0]
    group_rows = group_size or K
    num_groups = -(-K // group_rows)
    num_patterns = base(storage) ** block_width
    patterns = _patterns(_digits(levels, storage, alphabet), base(storage), block_width)

    # Sorting by (group, pattern), stably, sorts the rows within each group.
    groups = np.arange(K) // group_rows
    keys = groups * num_patterns + patterns
    permutation = _as_permutation(np.argsort(keys, axis=-1, kind="stable"))

    num_planes, num_blocks, _ = patterns.shape
    segments_a_block = num_groups * num_patterns
    block = np.arange(num_planes * num_blocks).reshape(num_planes, num_blocks, 1)
    lengths = np.bincount(
        (block * segments_a_block + keys).ravel(),
        minlength=num_planes * num_blocks * segments_a_block,
    ).reshape(num_planes, num_blocks, num_groups, num_patterns)
    offsets: NDArray[np.uint32] = np.zeros(
        (num_planes, num_blocks, num_groups, num_patterns + 1), np.uint32
    )
    offsets[..., 1:] = np.cumsum(lengths, axis=-1)
    offsets += (np.arange(num_groups, dtype=np.uint32) * np.uint32(group_rows))[:, None]
    return permutation, offsets


def unpack(
    permutation: NDArray[np.uint16] | NDArray[np.uint32],
    segment_offsets: NDArray[np.uint32],
    K: int,
    N: int,
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_width: int,
    group_size: int = 0,
) -> NDArray[np.int8]:
    """The levels (K, N) int8 of a valid index (`validate_index` tells)."""
    num_planes, num_blocks, num_groups, num_patterns = segment_offsets.shape
    num_patterns -= 1
    offsets = segment_offsets.astype(np.int64)
    lengths: NDArray[np.int64] = offsets[..., 1:] - offsets[..., :-1]
    all_patterns = np.tile(np.arange(num_patterns), num_planes * num_blocks * num_groups)
    in_order = np.repeat(all_patterns, lengths.ravel()).reshape(num_planes, num_blocks, K)
    patterns = np.empty_like(in_order)
    np.put_along_axis(patterns, permutation.astype(np.int64), in_order, axis=-1)

    places = _place_values(base(storage), block_width)
    digits = patterns[..., None] // places % base(storage)
    by_row = np.transpose(digits, (0, 2, 1, 3)).reshape(num_planes, K, num_blocks * block_width)
    planes: NDArray[np.int8] = by_row[:, :, :N].astype(np.int8, order="C")
    levels: NDArray[np.int8] = planes[0]
    if storage == "base3":
        levels -= np.int8(1)
    elif alphabet == "ternary":
        levels -= planes[1]
    elif alphabet == "binary_pm":
        levels = levels * np.int8(2) - np.int8(1)
    return levels


def optimal_block_width(
    K: int, N: int, storage: Storage, algorithm: Algorithm, *, group_size: int = 0
) -> int:
    """The block width of the least additions by the paper's cost model.

    The paper counts, for each of N / k column blocks of width k, n additions of segmented sums and
    k 2^k (RSR, section 4.2) or 2^k (RSR++, section 4.3) of the block product. Here n is K, the
    blocks are counted whole, base 3 has 3^k patterns, and with scales per group every group has a
    block product of its own.

    Returns:
        The cheapest width within the format's limits, the smallest of equals.
    """
    num_groups = -(-K // group_size) if group_size else 1

    def cost(width: int) -> int:
        product = int(base(storage) ** width) * (width if algorithm == "rsr" else 1)
        return -(-N // width) * (K + num_groups * product)

    return min(range(1, MAX_BLOCK_WIDTH[storage] + 1), key=cost)


def _as_permutation(rows: NDArray[np.int64]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    if permutation_dtype(rows.shape[-1]) is np.uint16:
        return rows.astype(np.uint16)
    return rows.astype(np.uint32)


def _digits(levels: NDArray[np.int8], storage: Storage, alphabet: Alphabet) -> NDArray[np.int8]:
    """Digits (num_planes, K, N) of the levels."""
    digits: NDArray[np.int8]
    if storage == "base3":
        digits = (levels + 1)[None]
    elif alphabet == "ternary":
        digits = np.stack([levels == 1, levels == -1])
    else:
        digits = (levels == 1)[None]
    return digits.astype(np.int8)


def _patterns(digits: NDArray[np.int8], base: int, block_width: int) -> NDArray[np.int64]:
    """Patterns (num_planes, num_blocks, K) of the digits (num_planes, K, N)."""
    num_planes, K, N = digits.shape
    num_blocks = -(-N // block_width)
    level_zero = 1 if base == 3 else 0
    padded = np.full((num_planes, K, num_blocks * block_width), level_zero, np.int8)
    padded[:, :, :N] = digits
    blocks = padded.reshape(num_planes, K, num_blocks, block_width)
    patterns = blocks @ _place_values(base, block_width)
    return np.ascontiguousarray(np.transpose(patterns, (0, 2, 1)))


def _place_values(base: int, block_width: int) -> NDArray[np.int64]:
    """The first column of a block is the most significant digit."""
    places: NDArray[np.int64] = np.int64(base) ** np.arange(block_width - 1, -1, -1)
    return places
