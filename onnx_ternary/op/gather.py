"""What `TernaryIndexedGather` computes, in numpy and as standard operators.

The table (N, K) is the transpose of the weight a product shares with it: row n of the table is
column n of the index (docs/op_spec.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.index.packed import COLUMN_TILE
from onnx_ternary.op.body_nodes import (
    ATTRIBUTE_REFERENCE_OPSET,
    CAST_LIKE_OPSET,
    BodyNodes,
    NoBody,
    early_refusal,
)
from onnx_ternary.schema import (
    DOMAIN,
    GATHER_ATTRIBUTES,
    GATHER_INPUT_NAMES,
    GATHER_TYPE,
    Alphabet,
    OpAttributes,
    Storage,
)


def ternary_indexed_gather(
    indices: NDArray[Any],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    dtype: np.dtype[Any],
    attributes: OpAttributes,
) -> NDArray[Any]:
    """Rows of the table: level times scale, exact in float32, rounded once to the type.

    Args:
        indices: integers of any shape, from -N to N - 1.
        codes: index tensor, docs/index_format.md section 2.
        scale: (), (N,) or (num_groups, N).
        dtype: of the result, float32, float16 or bfloat16.
        attributes: of the node.

    Returns:
        The shape of the indices with K behind it.

    Raises:
        IndexFormatError: if the constant inputs are not valid.
        IndexError: if an index is out of range.
    """
    N = attributes.N
    aux = np.zeros(1, np.uint32)
    validate_index(attributes, codes, aux, scale, np.zeros((), np.float32))
    if indices.size and (indices.min() < -N or indices.max() >= N):
        raise IndexError(
            f"indices from {indices.min()} to {indices.max()}, expected {-N} to {N - 1}"
        )
    wanted, place = np.unique(np.where(indices < 0, indices + N, indices), return_inverse=True)
    tiles, position = np.unique(wanted // COLUMN_TILE, return_inverse=True)
    if not tiles.size:
        return np.zeros((*indices.shape, attributes.K), dtype)
    read = OpAttributes.read(
        attributes.to_gather_dict() | {"N": COLUMN_TILE * tiles.size}, "", GATHER_TYPE
    )
    # Padding of 1bit is no level 0, but no padding is asked for.
    columns = position * COLUMN_TILE + wanted % COLUMN_TILE
    levels = _levels(read, codes[tiles], aux)[:, columns]
    scales = scale if scale.ndim == 0 else scale[..., wanted]
    if attributes.group_size:
        scales = np.repeat(scales, attributes.group_size, axis=0)[: attributes.K]
    rows = (levels * scales).T.astype(dtype)
    found: NDArray[Any] = rows[place.reshape(indices.shape)]
    return found


def _levels(
    attributes: OpAttributes, codes: NDArray[np.uint8], aux: NDArray[np.uint32]
) -> NDArray[np.int8]:
    """Levels of whole tiles; padding columns may hold what their alphabet has not."""
    if attributes.storage != "1bit":
        attributes = OpAttributes.read(
            attributes.to_gather_dict() | {"alphabet": "ternary"}, "", GATHER_TYPE
        )
    return decode_index(attributes, codes, aux)


@dataclass(frozen=True, slots=True)
class GatherVariant:
    """What a body depends on and cannot read from the node.

    Attributes:
        storage: of the index.
        alphabet: where the storage decodes alphabets apart; `ternary` else.
        y_dtype: an onnx.TensorProto type below opset 15; 0 from there on.
    """

    storage: Storage
    alphabet: Alphabet
    y_dtype: int

    @classmethod
    def of(cls, attributes: OpAttributes, *, y_dtype: int, opset: int) -> GatherVariant:
        """The variant of one node of a model of this opset."""
        splits_alphabets = attributes.storage == "1bit"
        return cls(
            attributes.storage,
            attributes.alphabet if splits_alphabets else "ternary",
            0 if opset >= CAST_LIKE_OPSET else y_dtype,
        )


def make_gather_body(
    variants: Sequence[GatherVariant], opset: int, ir_version: int
) -> FunctionProto | NoBody:
    """Build the function for a model whose `TernaryIndexedGather` nodes have these variants.

    The rows asked for are gathered as codes and decoded when the model runs: the table takes no
    more memory than its index, twice, without the library too.

    Args:
        variants: one per node, in any order, with repetitions; made for the same opset.
        opset: the ai.onnx opset the model imports.
        ir_version: the model's IR version, as it will be saved.

    Returns:
        The function, or why there is none.
    """
    refusal = early_refusal(
        GATHER_TYPE, len(variants), opset, ir_version, ATTRIBUTE_REFERENCE_OPSET
    )
    if refusal is not None:
        return refusal
    distinct = dict.fromkeys(variants)
    if len(distinct) > 1:
        return NoBody(
            f"{GATHER_TYPE} nodes would need {len(distinct)} functions under one name; convert "
            "with one storage for all"
        )
    nodes = BodyNodes(opset)
    _rows(nodes, next(iter(distinct)))
    return helper.make_function(
        DOMAIN,
        GATHER_TYPE,
        list(GATHER_INPUT_NAMES),
        ["Y"],
        nodes.protos,
        [helper.make_opsetid("", opset)],
        attributes=list(GATHER_ATTRIBUTES),
        doc_string="Rows of a ternary table in standard operators; onnx-ternary's library reads "
        "them from the index a product shares.",
    )


def _rows(nodes: BodyNodes, variant: GatherVariant) -> None:
    """Y from the indices: Reshape takes a dimension 0 of the indices from where it stands."""
    num_rows, K = nodes.integer("N", 0), nodes.integer("K", 0)
    block_size = nodes.integer("block_size", 0)
    # `like` is a scalar, whose shape adds nothing; a tool must not take it for unused.
    leading = nodes("Concat", nodes("Shape", "indices"), nodes("Shape", "like"), axis=0)
    codes_shape = nodes("Shape", "codes")
    num_blocks = nodes.entry(codes_shape, 1)
    # (tiles, blocks, 4, bytes) -> (N, 1, blocks, 1, bytes) -> (..., 1, blocks, fields, bytes)
    codes = nodes("Transpose", "codes", perm=[0, 2, 1, 3])
    codes = nodes.reshape(nodes.reshape(codes, [0, 0, 0, 1, -1]), [-1, 1, 0, 0, 0])
    codes = nodes("Gather", nodes.first(codes, num_rows, [0]), "indices", axis=0)
    codes, num_fields = _fields(nodes, variant, codes)
    block = nodes("Mul", nodes.entry(codes_shape, 3), nodes.constant([num_fields], np.int64))
    codes = nodes("Reshape", codes, nodes("Concat", leading, num_blocks, block, axis=0))
    codes = nodes.first(codes, block_size, [-1])
    padded = nodes("Mul", num_blocks, block_size)
    codes = nodes("Reshape", codes, nodes("Concat", leading, padded, axis=0))
    levels = nodes.cast(nodes.first(codes, K, [-1]), TensorProto.FLOAT)
    if variant.alphabet == "binary_pm":
        levels = nodes("Add", levels, levels)
    if variant.alphabet != "binary_01":
        levels = nodes("Sub", levels, nodes.constant(1, np.float32))
    values = nodes("Mul", levels, _scales(nodes, leading, num_rows, K))
    if variant.y_dtype:
        nodes("Cast", values, output="Y", to=variant.y_dtype)
    else:
        nodes("CastLike", values, "like", output="Y")


def _fields(nodes: BodyNodes, variant: GatherVariant, codes: str) -> tuple[str, int]:
    """The fields of every byte along the axis in front of the bytes, and how many there are."""
    if variant.storage == "dense":
        digits = nodes.constant([[3**d] for d in range(5)], np.int32)
        codes = nodes("Div", nodes.cast(codes, TensorProto.INT32), digits)
        return nodes("Mod", codes, nodes.constant(3, np.int32)), 5
    bits = 2 if variant.storage == "2bit" else 1
    shifts = nodes.constant([[shift] for shift in range(0, 8, bits)], np.uint8)
    codes = nodes("BitShift", codes, shifts, direction="RIGHT")
    return nodes("Mod", codes, nodes.constant(1 << bits, np.uint8)), 8 // bits


def _scales(nodes: BodyNodes, leading: str, num_rows: str, K: str) -> str:
    """The scale of every element of Y: one scale, or one per column, is one group of all rows."""
    group_size = nodes.integer("group_size", 0)
    is_grouped = nodes.cast(group_size, TensorProto.BOOL)
    group_size = nodes("Where", is_grouped, group_size, K)
    one = nodes.constant([1], np.int64)
    scale = nodes("Expand", "scale", nodes("Concat", one, num_rows, axis=0))
    scale = nodes.reshape(nodes("Transpose", scale, perm=[1, 0]), [0, 0, 1])
    num_groups = nodes.entry(nodes("Shape", scale), 1)
    scale = nodes("Expand", nodes("Gather", scale, "indices", axis=0), group_size)
    padded = nodes("Mul", num_groups, group_size)
    scale = nodes("Reshape", scale, nodes("Concat", leading, padded, axis=0))
    return nodes.first(scale, K, [-1])
