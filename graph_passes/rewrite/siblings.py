"""Products that share an input, as one call with the output split; optional, after rewriting.

    TernaryIndexedMatMul(X, W1), TernaryIndexedMatMul(X, W2)
      =>   TernaryIndexedMatMul(X, [W1 W2]) -> Split

1. Packed products of one graph with the same X (query, key and value; gate and up), equal in every
   attribute but N. Their columns are laid side by side, so each must end on a full column tile.
2. Scales become one per column, which multiplies the same sum by the same number: results are equal
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
from onnx_ternary.op.nodes import (
    CHANGE_KEY,
    check_digest,
    index_tensors,
    node_label,
    op_nodes,
    read_attributes,
)
from onnx_ternary.schema import DOMAIN, INPUT_NAMES, OP_TYPE, OpAttributes

from .model_editor import ModelEditor, op_attributes, output_shape

_FIRST_OPSET_WITH_SPLIT_INPUT = 13


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


def side_by_side(nodes: Sequence[ir.Node]) -> Fused:
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


def _metadata(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """The first product's, with the largest change of a weight of all."""
    metadata = dict(nodes[0].metadata_props)
    changes = [each.metadata_props.get(CHANGE_KEY, "") for each in nodes]
    if known := [each for each in changes if each]:
        metadata[CHANGE_KEY] = max(known, key=float)
    return metadata


def fuse(editor: ModelEditor, nodes: Sequence[ir.Node]) -> ir.Node:
    """Put one product and a Split in the place of several."""
    first, x = nodes[0], nodes[0].inputs[0]
    graph = first.graph
    assert isinstance(graph, ir.Graph) and x is not None
    for node in nodes:
        check_digest(node)  # of earlier conversions
    fused = side_by_side(nodes)
    name = node_label(first)
    arrays: dict[str, NDArray[Any]] = {"codes": fused.codes, "scale": fused.scale}
    if fused.bias.ndim:
        arrays["bias"] = fused.bias
    inputs = list(first.inputs)
    for role, array in arrays.items():
        inputs[INPUT_NAMES.index(role)] = editor.add_constant(first, f"{name}.fused.{role}", array)
    outputs = [node.outputs[0] for node in nodes]
    product = ir.Node(
        DOMAIN,
        OP_TYPE,
        inputs,
        outputs=[
            ir.Value(
                name=editor.value_name(f"{name}.fused"),
                shape=output_shape(x.shape, fused.attributes.N),
                type=outputs[0].type,
            )
        ],
        attributes=op_attributes(fused.attributes),
        name=first.name,
        metadata_props=_metadata(nodes),
    )
    lengths = [read_attributes(node).N for node in nodes]
    operands, attributes = [product.outputs[0]], [ir.AttrInt64("axis", -1)]
    if editor.opset < _FIRST_OPSET_WITH_SPLIT_INPUT:
        attributes.append(ir.AttrInt64s("split", lengths))
    else:
        sizes = np.array(lengths, np.int64)
        operands.append(editor.add_constant(first, f"{name}.fused.split", sizes))
    split = ir.Node(
        "",
        "Split",
        operands,
        outputs=[ir.Value(name=each.name, shape=each.shape, type=each.type) for each in outputs],
        attributes=attributes,
        name=editor.node_name(f"{name}.split"),
    )
    # Not ``first``, whose columns lie first: others may be used ahead of it.
    earliest = next(node for node in graph if node in nodes)
    graph.insert_before(earliest, [product, split])
    for old, new in zip(outputs, split.outputs, strict=True):
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    unused = [value for node in nodes for value in node.inputs[1:] if value is not None]
    graph.remove(nodes, safe=True)
    for value in unused:
        editor.prune(value)
    return product
