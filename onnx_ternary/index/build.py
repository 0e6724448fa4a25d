"""Building the tensors of an index from a weight matrix, and decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import packed, rsr
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.index.validate import (
    index_error,
    validate_tensors,
)
from onnx_ternary.native import packers
from onnx_ternary.schema import (
    BLOCK_SIZES,
    OP_TYPE,
    Algorithm,
    IndexFormat,
    OpAttributes,
    Storage,
)


@dataclass(frozen=True, slots=True)
class Index:
    """A weight matrix as the inputs and attributes of a `TernaryIndexedMatMul` node.

    Attributes:
        attributes: with activation "float"; `dataclasses.replace` sets another rule.
        codes: uint8 codes of `packed`; the uint16 or uint32 permutation of `rsr`.
        aux: uint32, one zero for `packed`, the segment offsets of `rsr`.
        scale: float32, (), (N,) or (num_groups, N).
    """

    attributes: OpAttributes
    codes: NDArray[Any]
    aux: NDArray[np.uint32]
    scale: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.codes.nbytes + self.aux.nbytes + self.scale.nbytes


def build_index(
    weight: TernaryWeight,
    *,
    index_format: IndexFormat = "packed",
    storage: Storage | None = None,
    block_width: int | None = None,
    algorithm: Algorithm | None = None,
    native: bool = True,
) -> Index:
    """Build the index of a ternary or binary matrix.

    Args:
        weight: what `ternarize` returned.
        index_format: "packed" or "rsr".
        storage: None takes "1bit" for binary and "2bit" for ternary weights, "planes" for `rsr`.
        block_width: columns per block of `rsr`; None takes the optimum of the paper's cost model.
        algorithm: "rsr" or "rsr++" for `rsr`; None takes "rsr++".
        native: whether to pack in C++; the numpy packers are its specification, and much slower.

    Raises:
        IndexFormatError: if the format does not allow the combination.
    """
    K, N = weight.levels.shape
    group_size = weight.group_size
    if index_format == "packed":
        if storage is None:
            storage = "2bit" if weight.alphabet == "ternary" else "1bit"
        attributes = OpAttributes(
            K=K,
            N=N,
            storage=storage,
            alphabet=weight.alphabet,
            block_size=_block_size(group_size),
            block_width=block_width or 0,
            algorithm=algorithm or "auto",
            group_size=group_size,
        )
        pack = packers.pack if native else packed.pack
        codes: NDArray[Any] = pack(
            weight.levels,
            storage=storage,
            alphabet=weight.alphabet,
            block_size=attributes.block_size,
        )
        return Index(attributes, codes, np.zeros(1, np.uint32), weight.scale)
    storage = storage or "planes"
    algorithm = algorithm or "rsr++"
    if block_width is None and storage in ("planes", "base3"):
        block_width = rsr.optimal_block_width(K, N, storage, algorithm, group_size=group_size)
    attributes = OpAttributes(
        K=K,
        N=N,
        index_format=index_format,
        storage=storage,
        alphabet=weight.alphabet,
        block_size=0,
        block_width=block_width or 0,
        algorithm=algorithm,
        group_size=group_size,
    )
    pack_rsr = packers.pack_rsr if native else rsr.pack
    permutation, segment_offsets = pack_rsr(
        weight.levels,
        storage=storage,
        alphabet=weight.alphabet,
        block_width=attributes.block_width,
        group_size=group_size,
    )
    return Index(attributes, permutation, segment_offsets, weight.scale)


def decode_index(
    attributes: OpAttributes, codes: NDArray[Any], aux: NDArray[np.uint32], *, node: str = ""
) -> NDArray[np.int8]:
    """The levels (K, N) int8 of an index.

    Raises:
        IndexFormatError: if the tensors break the format, or hold a level outside the alphabet.
    """
    validate_tensors(attributes, codes, aux, node)
    levels = _unpack(attributes, codes, aux)
    allowed = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}[
        attributes.alphabet
    ]
    in_range = levels.min() >= allowed[0] and levels.max() <= 1
    if not in_range or (0 not in allowed and not levels.all()):
        row, column = map(int, np.argwhere(~np.isin(levels, allowed))[0])
        level = int(levels[row, column])
        found = "code 3" if level == 2 else str(level)
        what = f"level of row {row}, column {column}"
        raise index_error(node, what, found, " or ".join(map(str, allowed)))
    return levels


def _unpack(
    attributes: OpAttributes, codes: NDArray[Any], aux: NDArray[np.uint32]
) -> NDArray[np.int8]:
    K, N, alphabet = attributes.K, attributes.N, attributes.alphabet
    if attributes.index_format == "packed":
        return packed.unpack(
            codes,
            K,
            N,
            storage=attributes.storage,
            alphabet=alphabet,
            block_size=attributes.block_size,
        )
    return rsr.unpack(
        codes,
        aux,
        K,
        N,
        storage=attributes.storage,
        alphabet=alphabet,
        block_width=attributes.block_width,
        group_size=attributes.group_size,
    )


def _block_size(group_size: int) -> int:
    """The largest block that does not mix scale groups."""
    for size in reversed(BLOCK_SIZES):
        if group_size % size == 0:
            return size
    raise IndexFormatError(
        f"{OP_TYPE}: attribute group_size = {group_size}, expected a multiple of "
        f"{BLOCK_SIZES[0]} for packed; take index_format rsr."
    )
