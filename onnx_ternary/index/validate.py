"""Checking the tensors of an index against docs/index_format.md."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import packed, rsr
from onnx_ternary.schema import (
    OP_TYPE,
    OpAttributes,
)


def validate_index(
    attributes: OpAttributes,
    codes: NDArray[Any],
    aux: NDArray[np.uint32],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    node: str = "",
) -> None:
    """Check the constant inputs of a node, as the op does when a session is made.

    Packed codes are not looked into: every byte is safe, and `decode_index` finds unused ones.

    Raises:
        IndexFormatError: naming the node, what was found and what was expected.
    """
    validate_tensors(attributes, codes, aux, node)
    _validate_scale(attributes, scale, node)
    _validate_bias(attributes, bias, node)


def index_error(node: str, what: str, found: object, expected: str) -> IndexFormatError:
    """The error for a tensor of a node that is not what its attributes ask for."""
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
        raise index_error(node, f"{what} dtype", array.dtype, expected)


def _require_shape(
    array: NDArray[Any], what: str, shapes: tuple[tuple[int, ...], ...], node: str
) -> None:
    if array.shape not in shapes:
        raise index_error(node, f"{what} shape", array.shape, " or ".join(map(str, shapes)))


def validate_tensors(
    attributes: OpAttributes, codes: NDArray[Any], aux: NDArray[np.uint32], node: str
) -> None:
    """Check codes and aux of a node, as `validate_index` does.

    Raises:
        IndexFormatError: naming the node, what was found and what was expected.
    """
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
        raise index_error(node, f"permutation{list(position)}", rows[position], expected)


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
        raise index_error(node, f"segment_offsets{list(position)}", offsets[position], expected)


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
        raise index_error(node, f"scale{subscript}", found, "a finite number of at least 0")


def _validate_bias(attributes: OpAttributes, bias: NDArray[np.float32], node: str) -> None:
    _require_dtype(bias, "bias", (np.float32,), node)
    _require_shape(bias, "bias", ((), (attributes.N,)), node)
    if bias.shape == () and bias != 0:
        raise index_error(node, "bias", f"{bias:g}", "0, or one value per column")
