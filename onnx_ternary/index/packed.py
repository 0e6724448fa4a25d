"""The `packed` index format, docs/index_format.md section 2.

`pack` and `unpack` are the executable specification; those of `native` do the same in C++.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.schema import Alphabet, Storage

COLUMN_TILE = 4
# Digits of one byte, and their base.
_FIELDS = {"2bit": 4, "dense": 5, "1bit": 8}
_BASE = {"2bit": 4, "dense": 3, "1bit": 2}


def block_bytes(storage: Storage, block_size: int) -> int:
    """Bytes of one block of one column."""
    return -(-block_size // _FIELDS[storage])


def codes_shape(K: int, N: int, *, storage: Storage, block_size: int) -> tuple[int, int, int, int]:
    """Shape of `codes`: (column tiles, blocks, columns in a tile, bytes of a block)."""
    tiles, blocks = -(-N // COLUMN_TILE), -(-K // block_size)
    return tiles, blocks, COLUMN_TILE, block_bytes(storage, block_size)


def pack(
    levels: NDArray[np.int8], *, storage: Storage, alphabet: Alphabet, block_size: int
) -> NDArray[np.uint8]:
    """Pack levels (K, N) int8 in {-1, 0, 1}, all of the alphabet, into `codes`.

    Returns:
        uint8 of `codes_shape`.
    """
    K, N = levels.shape
    tiles, blocks, _, num_bytes = codes_shape(K, N, storage=storage, block_size=block_size)
    # A digit is level + 1, level 0 in padding; in `1bit`, whether the level is 1.
    padding = 0 if storage == "1bit" else 1
    rows = np.full((blocks * block_size, tiles * COLUMN_TILE), padding, np.uint8)
    rows[:K, :N] = levels == 1 if storage == "1bit" else levels + 1
    fields = _FIELDS[storage]
    digits = np.full((blocks, fields * num_bytes, tiles * COLUMN_TILE), padding, np.uint8)
    digits[:, :block_size] = rows.reshape(blocks, block_size, -1)
    by_field = digits.reshape(blocks, fields, num_bytes, tiles, COLUMN_TILE)
    places = _place_values(storage)[:, None, None, None]
    codes: NDArray[np.uint8] = np.sum(by_field * places, axis=1, dtype=np.uint8)
    return np.ascontiguousarray(np.transpose(codes, (2, 0, 3, 1)))


def unpack(
    codes: NDArray[np.uint8],
    K: int,
    N: int,
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_size: int,
) -> NDArray[np.int8]:
    """The levels (K, N) int8 of `codes`; the unused code 3 of `2bit` gives 2."""
    tiles, blocks, _, num_bytes = codes_shape(K, N, storage=storage, block_size=block_size)
    columns_last = np.transpose(codes.reshape(tiles, blocks, COLUMN_TILE, num_bytes), (1, 3, 0, 2))
    places = _place_values(storage)[:, None, None, None]
    digits = columns_last[:, None] // places % _BASE[storage]
    digits = digits.reshape(blocks, -1, tiles, COLUMN_TILE)[:, :block_size]
    digits = digits.reshape(blocks * block_size, tiles * COLUMN_TILE)[:K, :N]
    levels: NDArray[np.int8] = digits.astype(np.int8, order="C")
    if storage != "1bit":
        levels -= np.int8(1)
    elif alphabet == "binary_pm":
        levels = levels * np.int8(2) - np.int8(1)
    return levels


def _place_values(storage: Storage) -> NDArray[np.uint8]:
    """What the digit of field j of a byte is multiplied by."""
    return np.power(_BASE[storage], np.arange(_FIELDS[storage])).astype(np.uint8)
