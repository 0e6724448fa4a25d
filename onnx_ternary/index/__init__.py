"""Index formats: building, decoding and checking the tensors of a weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import packed, rsr
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import binding
from onnx_ternary.schema import (
    BLOCK_SIZES,
    OP_TYPE,
    Algorithm,
    IndexFormat,
    OpAttributes,
    Storage,
)

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
        weight: what `ternarize` returned.
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
        pack = binding.pack if native else packed.pack
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
    pack_rsr = binding.pack_rsr if native else rsr.pack
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
    allowed = {"ternary": (-1, 0, 1), "binary_pm": (-1, 1), "binary_01": (0, 1)}[
        attributes.alphabet
    ]
    in_range = levels.min() >= allowed[0] and levels.max() <= 1
    if not in_range or (0 not in allowed and not levels.all()):
        row, column = map(int, np.argwhere(~np.isin(levels, allowed))[0])
        level = int(levels[row, column])
        found = "code 3" if level == 2 else str(level)
        what = f"level of row {row}, column {column}"
        raise _error(node, what, found, " or ".join(map(str, allowed)))
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


def _require_dtype(
    array: NDArray[Any], what: str, dtypes: tuple[type[Any], ...], node: str
) -> None:
    if array.dtype not in dtypes:
        expected = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise _error(node, f"{what} dtype", array.dtype, expected)


def _require_shape(
    array: NDArray[Any], what: str, shapes: tuple[tuple[int, ...], ...], node: str
) -> None:
    if array.shape not in shapes:
        raise _error(node, f"{what} shape", array.shape, " or ".join(map(str, shapes)))


def _validate_tensors(
    attributes: OpAttributes, codes: NDArray[Any], aux: NDArray[np.uint32], node: str
) -> None:
    K = attributes.K
    _require_dtype(aux, "aux", (np.uint32,), node)
    if attributes.index_format == "packed":
        shape = packed.codes_shape(
            K, attributes.N, storage=attributes.storage, block_size=attributes.block_size
        )
        _require_dtype(codes, "codes", (np.uint8,), node)
        _require_shape(codes, "codes", (shape,), node)
        _require_shape(aux, "aux", ((1,),), node)
        return
    num_planes, num_groups = attributes.num_planes, attributes.num_groups
    num_blocks = -(-attributes.N // attributes.block_width)
    offsets_shape = (num_planes, num_blocks, num_groups, attributes.num_patterns + 1)
    dtypes = (np.uint16, np.uint32) if rsr.permutation_dtype(K) is np.uint16 else (np.uint32,)
    _require_dtype(codes, "codes", dtypes, node)
    _require_shape(codes, "codes", ((num_planes, num_blocks, K),), node)
    _require_shape(aux, "aux", (offsets_shape,), node)
    _validate_permutation(attributes, codes, node)
    _validate_offsets(attributes, aux, node)


def _validate_permutation(attributes: OpAttributes, permutation: NDArray[Any], node: str) -> None:
    K, group_rows = attributes.K, attributes.group_size or attributes.K
    rows = permutation.astype(np.int64)
    begins = np.arange(K) // group_rows * group_rows
    ends = np.minimum(begins + group_rows, K)
    wrong = (rows < begins) | (rows >= ends)
    if not wrong.any():
        # Equal rows are neighbors after a stable sort; the later of two is the wrong one.
        order = np.argsort(rows, axis=-1, kind="stable")
        ordered = np.take_along_axis(rows, order, axis=-1)
        repeated = np.zeros(rows.shape, bool)
        repeated[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
        np.put_along_axis(wrong, order, repeated, axis=-1)
    if wrong.any():
        position = tuple(map(int, np.argwhere(wrong)[0]))
        expected = f"each row from {begins[position[-1]]} to {ends[position[-1]] - 1} once"
        raise _error(node, f"permutation{list(position)}", rows[position], expected)


def _validate_offsets(attributes: OpAttributes, aux: NDArray[np.uint32], node: str) -> None:
    group_rows = attributes.group_size or attributes.K
    offsets = aux.astype(np.int64)
    begins = np.arange(attributes.num_groups)[:, None] * group_rows
    ends = np.minimum(begins + group_rows, attributes.K)
    smallest = np.broadcast_to(begins, offsets.shape).copy()
    smallest[..., 1:] = np.maximum(smallest[..., 1:], offsets[..., :-1])
    smallest[..., -1:] = ends
    largest = np.broadcast_to(ends, offsets.shape).copy()
    largest[..., :1] = begins
    wrong = (offsets < smallest) | (offsets > largest)
    if wrong.any():
        position = tuple(map(int, np.argwhere(wrong)[0]))
        low, high = smallest[position], largest[position]
        expected = str(low) if low == high else f"from {low} to {high}"
        raise _error(node, f"segment_offsets{list(position)}", offsets[position], expected)


def _validate_scale(attributes: OpAttributes, scale: NDArray[np.float32], node: str) -> None:
    _require_dtype(scale, "scale", (np.float32,), node)
    N = attributes.N
    shapes: tuple[tuple[int, ...], ...] = ((), (N,))
    if attributes.group_size:
        shapes = ((attributes.num_groups, N),)
    _require_shape(scale, "scale", shapes, node)
    wrong = ~(np.isfinite(scale) & (scale >= 0))
    if wrong.any():
        position = tuple(map(int, np.argwhere(wrong)[0]))
        subscript = str(list(position)) if position else ""
        found = f"{scale[position]:g}"
        raise _error(node, f"scale{subscript}", found, "a finite number of at least 0")


def _validate_bias(attributes: OpAttributes, bias: NDArray[np.float32], node: str) -> None:
    _require_dtype(bias, "bias", (np.float32,), node)
    _require_shape(bias, "bias", ((), (attributes.N,)), node)
    if bias.shape == () and bias != 0:
        raise _error(node, "bias", f"{bias:g}", "0, or one value a column")
