"""Packing and unpacking of index tensors in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.native.binding import call
from onnx_ternary.schema import Alphabet, OpAttributes, Storage


def _levels(levels: NDArray[np.int8]) -> NDArray[np.int8]:
    if levels.ndim != 2 or levels.dtype != np.int8:
        raise IndexFormatError(
            f"levels have shape {levels.shape} and dtype {levels.dtype}, expected (K, N) int8."
        )
    return np.ascontiguousarray(levels)


def _block_bytes(storage: Storage, block_size: int) -> int:
    return {"2bit": block_size // 4, "dense": -(-block_size // 5), "1bit": block_size // 8}.get(
        storage, 0
    )


def _codes_shape(
    num_rows: int, num_columns: int, storage: Storage, block_size: int
) -> tuple[int, int, int, int]:
    num_blocks = -(-num_rows // block_size) if block_size > 0 else 0
    return (-(-num_columns // 4), num_blocks, 4, _block_bytes(storage, block_size))


def pack(
    levels: NDArray[np.int8], *, storage: Storage, alphabet: Alphabet, block_size: int
) -> NDArray[np.uint8]:
    """Pack levels as docs/index_format.md section 2 says.

    Args:
        levels: (K, N) int8 in {-1, 0, 1}.
        storage: 2bit, dense or 1bit.
        alphabet: which levels may occur.
        block_size: 16, 32, 64 or 128.

    Returns:
        codes (ceil(N / 4), ceil(K / block_size), 4, block_bytes) uint8.

    Raises:
        IndexFormatError: for a level outside the alphabet or sizes the format does not allow.
    """
    source = _levels(levels)
    num_rows, num_columns = source.shape
    codes = np.empty(_codes_shape(num_rows, num_columns, storage, block_size), np.uint8)
    call(
        "otn_pack",
        IndexFormatError,
        source.ctypes.data,
        num_rows,
        num_columns,
        storage.encode(),
        alphabet.encode(),
        block_size,
        codes.ctypes.data,
        codes.nbytes,
    )
    return codes


def unpack(
    codes: NDArray[np.uint8],
    K: int,
    N: int,
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_size: int,
) -> NDArray[np.int8]:
    """The levels (K, N) int8 of packed codes; the unused 2-bit code 3 gives 2.

    Raises:
        IndexFormatError: for sizes that do not fit K and N.
    """
    if codes.dtype != np.uint8:
        raise IndexFormatError(f"codes dtype = {codes.dtype}, expected uint8.")
    if K < 1 or N < 1:
        raise IndexFormatError(f"K = {K} and N = {N}, expected at least 1.")
    shape = _codes_shape(K, N, storage, block_size)
    if codes.shape != shape:
        raise IndexFormatError(f"codes shape = {codes.shape}, expected {shape}.")
    source = np.ascontiguousarray(codes)
    levels = np.empty((K, N), np.int8)
    call(
        "otn_unpack",
        IndexFormatError,
        source.ctypes.data,
        source.nbytes,
        K,
        N,
        storage.encode(),
        alphabet.encode(),
        block_size,
        levels.ctypes.data,
    )
    return levels


def pack_rsr(
    levels: NDArray[np.int8],
    *,
    storage: Storage,
    alphabet: Alphabet,
    block_width: int,
    group_size: int,
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """The `rsr` index of levels, docs/index_format.md section 3.

    Args:
        levels: (K, N) int8 in {-1, 0, 1}.
        storage: planes or base3.
        alphabet: which levels may occur.
        block_width: columns per block, 1..16 for planes and 1..10 for base3.
        group_size: rows per scale group; 0 for one group.

    Returns:
        permutation (num_planes, num_blocks, K) uint16, or uint32 where K > 65536, and
        segment_offsets (num_planes, num_blocks, num_groups, num_patterns + 1) uint32.

    Raises:
        IndexFormatError: for a level outside the alphabet or sizes the format does not allow.
    """
    source = _levels(levels)
    num_rows, num_columns = source.shape
    # Checks the sizes before memory is asked for.
    attributes = OpAttributes(
        K=num_rows,
        N=num_columns,
        index_format="rsr",
        storage=storage,
        alphabet=alphabet,
        block_size=0,
        block_width=block_width,
        algorithm="rsr++",
        group_size=group_size,
    )
    num_blocks = -(-num_columns // block_width)
    permutation = np.empty(
        (attributes.num_planes, num_blocks, num_rows), np.uint16 if num_rows <= 65536 else np.uint32
    )
    segment_offsets = np.empty(
        (attributes.num_planes, num_blocks, attributes.num_groups, attributes.num_patterns + 1),
        np.uint32,
    )
    call(
        "otn_pack_rsr",
        IndexFormatError,
        source.ctypes.data,
        num_rows,
        num_columns,
        storage.encode(),
        alphabet.encode(),
        block_width,
        group_size,
        permutation.ctypes.data,
        permutation.itemsize,
        permutation.nbytes,
        segment_offsets.ctypes.data,
        segment_offsets.nbytes,
    )
    return permutation, segment_offsets
