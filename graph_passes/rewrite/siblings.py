"""Products that share an input, as one call with the output split; optional, after rewriting.

    TernaryIndexedMatMul(X, W1), TernaryIndexedMatMul(X, W2)
      =>   TernaryIndexedMatMul(X, [W1 W2]) -> Split

1. Packed products of one graph with the same X (query, key and value; gate and up), equal in every
   attribute but N. Their columns are laid side by side, so each must end on a full column tile.
2. Scales become one a column, which multiplies the same sum by the same number: results are equal
   bit for bit. Biases are all numbers, or all absent: adding zero would turn -0 into 0.
3. An index that another product uses too stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.index.packed import COLUMN_TILE
from onnx_ternary.op.nodes import index_tensors, op_nodes, read_attributes
from onnx_ternary.schema import OpAttributes


@dataclass(frozen=True, slots=True)
class Fused:
    """The constant inputs of the one product that takes the place of several."""

    attributes: OpAttributes
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def groups(model: ir.Model) -> list[tuple[ir.Node, ...]]:
    """Products that can run as one call (cases 1 to 3), two or more a group, in column order."""
    found: dict[Hashable, list[ir.Node]] = {}
    for node in op_nodes(model):
        attributes = read_attributes(node)
        codes, bias = node.inputs[1], node.inputs[4]
        assert codes is not None and bias is not None
        if not codes.is_initializer():  # in a local function
            continue
        if attributes.index_format == "packed" and len(codes.uses()) == 1:
            kind = dataclasses.replace(attributes, N=1)
            has_bias = bias.shape is not None and len(bias.shape) > 0
            found.setdefault((id(node.graph), id(node.inputs[0]), kind, has_bias), []).append(node)
    return [tuple(group) for nodes in found.values() for group in _whole_tiles(nodes)]


def _whole_tiles(nodes: Sequence[ir.Node]) -> list[list[ir.Node]]:
    """At most one product whose last tile is not full, and that one last."""
    full = [node for node in nodes if read_attributes(node).N % COLUMN_TILE == 0]
    others = [node for node in nodes if read_attributes(node).N % COLUMN_TILE]
    group = full + others[:1]
    return [group] if len(group) > 1 else []


def fuse(nodes: Sequence[ir.Node]) -> Fused:
    """The tensors of a group, side by side.

    Raises:
        ModelError: if a tensor cannot be read.
    """
    attributes = [read_attributes(node) for node in nodes]
    tensors: list[tuple[NDArray[Any], ...]] = [index_tensors(node) for node in nodes]
    scales = [
        scale if scale.ndim == 2 else np.broadcast_to(scale, (each.N,))
        for each, (_, _, scale, _) in zip(attributes, tensors, strict=True)
    ]
    biases = [bias for _, _, _, bias in tensors]
    return Fused(
        dataclasses.replace(attributes[0], N=sum(each.N for each in attributes)),
        np.concatenate([codes for codes, _, _, _ in tensors]),
        np.concatenate(scales, axis=-1),
        np.concatenate(biases) if biases[0].ndim else biases[0],
    )
