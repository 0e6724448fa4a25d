"""Index formats: building, decoding and checking the tensors of a weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import packed, rsr
from onnx_ternary.schema import (
    BLOCK_SIZES,
    OP_TYPE,
    Algorithm,
    IndexFormat,
    OpAttributes,
    Storage,
)
from onnx_ternary.ternary import TernaryWeight

__all__ = ["Index", "build_index", "decode_index", "validate_index"]


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
    """Builds the index of a ternary or binary matrix.

    Args:
        weight: what `ternarise` returned.
        index_format: "packed" or "rsr".
        storage: None takes "1bit" for binary and "2bit" for ternary weights, "planes" for `rsr`.
        block_width: columns a block of `rsr`; None takes the optimum of the paper's cost model.
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
        pack = packed.pack_native if native else packed.pack
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
    pack_rsr = rsr.pack_native if native else rsr.pack
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
    _validate_tensors(attributes, codes, aux, node)
    levels = _unpack(attributes, codes, aux)
    allowed = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}
    alphabet = allowed[attributes.alphabet]
    wrong = ~np.isin(levels, alphabet)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        found = int(levels[row, column])
        raise _error(
            node,
            f"level of row {row}, column {column}",
            "code 3" if found == 2 else str(found),
            " or ".join(map(str, alphabet)),
        )
    return levels


def validate_index(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    node: str = "",
) -> None:
    """Checks the constant inputs of a node, as the op does when a session is made.

    Packed codes are not looked into: every byte is safe, and `decode_index` finds unused ones.

    Raises:
        IndexFormatError: naming the node, what was found and what was expected.
    """
    _validate_tensors(attributes, codes, aux, node)
    _validate_scale(attributes, scale, node)
    _validate_bias(attributes, bias, node)


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


def _error(node: str, what: str, found: object, expected: str) -> IndexFormatError:
    name = f" '{node}'" if node else ""
    return IndexFormatError(
        f"{OP_TYPE}{name}: {what} = {found}, expected {expected}; "
        "convert the model again with 'onnx-ternary optimize'."
    )


def _shape_text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _require_array(
    array: NDArray[Any], what: str, dtype: type[Any], shape: tuple[int, ...], node: str
) -> None:
    if array.dtype != dtype:
        raise _error(node, f"element type of {what}", array.dtype, np.dtype(dtype).name)
    if array.shape != shape:
        raise _error(node, f"shape of {what}", _shape_text(array.shape), _shape_text(shape))


def _validate_tensors(
    attributes: OpAttributes, codes: NDArray[Any], aux: NDArray[np.uint32], node: str
) -> None:
    if attributes.index_format == "packed":
        shape = packed.codes_shape(
            attributes.K,
            attributes.N,
            storage=attributes.storage,
            block_size=attributes.block_size,
        )
        _require_array(codes, "codes", np.uint8, shape, node)
        _require_array(aux, "aux", np.uint32, (1,), node)
        if aux[0] != 0:
            raise _error(node, "aux[0]", aux[0], "0")
        return
    K, num_groups, num_planes = attributes.K, attributes.num_groups, attributes.num_planes
    num_blocks = -(-attributes.N // attributes.block_width)
    permutation_shape = (num_planes, num_blocks, K)
    offsets_shape = (num_planes, num_blocks, num_groups, attributes.num_patterns + 1)
    _require_array(codes, "codes", rsr.permutation_dtype(K), permutation_shape, node)
    _require_array(aux, "aux", np.uint32, offsets_shape, node)
    _validate_offsets(attributes, aux, node)
    _validate_permutation(attributes, codes, node)


def _validate_offsets(attributes: OpAttributes, aux: NDArray[np.uint32], node: str) -> None:
    group_rows = attributes.group_size or attributes.K
    starts = np.arange(attributes.num_groups) * group_rows
    ends = np.minimum(starts + group_rows, attributes.K)
    for position, bounds, end in ((0, starts, "first"), (-1, ends, "last")):
        wrong = aux[..., position] != bounds
        if wrong.any():
            plane, block, group = np.argwhere(wrong)[0]
            what = f"{end} segment offset of plane {plane}, block {block}, group {group}"
            raise _error(node, what, aux[plane, block, group, position], str(bounds[group]))
    falls = aux[..., 1:] < aux[..., :-1]
    if falls.any():
        plane, block, group, pattern = np.argwhere(falls)[0]
        what = f"segment_offsets[{plane}, {block}, {group}, {pattern + 1}]"
        previous = aux[plane, block, group, pattern]
        found = aux[plane, block, group, pattern + 1]
        raise _error(node, what, found, f"at least the one before, {previous}")


def _validate_permutation(attributes: OpAttributes, permutation: NDArray[Any], node: str) -> None:
    K = attributes.K
    group_rows = attributes.group_size or K
    rows = permutation.astype(np.int64)
    groups = np.arange(K) // group_rows
    wrong = (rows >= K) | (rows // group_rows != groups)
    if wrong.any():
        plane, block, position = np.argwhere(wrong)[0]
        start = groups[position] * group_rows
        raise _error(
            node,
            f"permutation[{plane}, {block}, {position}]",
            rows[plane, block, position],
            f"a row from {start} to {min(K, start + group_rows) - 1}",
        )
    repeated = np.diff(np.sort(rows, axis=-1), axis=-1) == 0
    if repeated.any():
        plane, block, position = np.argwhere(repeated)[0]
        row = np.sort(rows[plane, block])[position]
        what = f"row {row} in the permutation of plane {plane}, block {block}"
        raise _error(node, what, "repeated", "every row once")


def _validate_scale(attributes: OpAttributes, scale: NDArray[np.float32], node: str) -> None:
    if attributes.group_size:
        _require_array(scale, "scale", np.float32, (attributes.num_groups, attributes.N), node)
    elif scale.shape != ():
        _require_array(scale, "scale", np.float32, (attributes.N,), node)
    else:
        _require_array(scale, "scale", np.float32, (), node)
    wrong = ~(np.isfinite(scale) & (scale >= 0))
    if wrong.any():
        position = tuple(map(int, np.argwhere(wrong)[0]))
        subscript = "[" + ", ".join(map(str, position)) + "]" if position else ""
        raise _error(node, f"scale{subscript}", scale[position], "finite and not negative")


def _validate_bias(attributes: OpAttributes, bias: NDArray[np.float32], node: str) -> None:
    if bias.shape == ():
        _require_array(bias, "bias", np.float32, (), node)
        if bias != 0:
            raise _error(node, "scalar bias", bias, "0, or a bias of shape (N,)")
        return
    _require_array(bias, "bias", np.float32, (attributes.N,), node)
