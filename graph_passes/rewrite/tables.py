"""Gathers of tables that have an index already, because a product multiplies by them.

The table is left in the graph by the product's replacement, for the gather's sake; afterwards
nothing uses it, and one packed copy serves both.

A gather is replaced where its table is sure to be the product's weight: it resolves to the same
constant, or it comes from the same tensor and packs to the same codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.body_nodes import ATTRIBUTE_REFERENCE_OPSET
from onnx_ternary.op.nodes import node_label
from onnx_ternary.reports.report import Rewrite
from onnx_ternary.schema import DOMAIN, GATHER_TYPE, OpAttributes

from ..constants.constant import Constant
from ..match import Context, Table
from .model_editor import ModelEditor, operator_attributes, stored_array


@dataclasses.dataclass(slots=True)
class HeldIndex:
    """An index that is in the graph, without its scale.

    Attributes:
        attributes: of the first product that has it.
        codes: the value that holds the codes.
        aux: the same of segment offsets.
        nbytes: of both.
        first_user: the first product's name.
        weight: what it was made from.
        scale: the weight's own scale, without the factors a product absorbed.
        group_size: rows per scale; 0 where there are no groups.
        max_relative_change: of a weight.
    """

    attributes: OpAttributes
    codes: ir.Value
    aux: ir.Value
    nbytes: int
    first_user: str
    weight: Constant
    scale: NDArray[np.float32]
    group_size: int
    max_relative_change: float


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The index of a gather's table.

    Attributes:
        stored: the index.
        scale: the scale of the table.
        group_size: rows per scale; 0 where there are no groups.
        max_relative_change: of a weight.
    """

    stored: HeldIndex
    scale: NDArray[np.float32]
    group_size: int
    max_relative_change: float


def index_of(
    table: Table, indices: Mapping[tuple[int, int], Sequence[HeldIndex]], context: Context
) -> Found | None:
    """The index a product of the gather's own graph has of the same table.

    Args:
        table: what a gather reads.
        indices: by the ids of the graph they are in and of the value they came from.
        context: of the conversion.
    """
    weight = table.weight
    found = indices.get((id(table.node.graph), id(weight.root)), [])
    for stored in found:
        if stored.weight.key == weight.key:
            return Found(stored, stored.scale, stored.group_size, stored.max_relative_change)
    for stored in found:
        if stored.weight.shape != weight.shape or stored.attributes.index_format != "packed":
            continue
        levels = context.ternarize(weight)
        if not isinstance(levels, TernaryWeight) or levels.row_scale is not None:
            continue
        if _packs_alike(levels, stored):
            group_size = levels.group_size
            return Found(stored, levels.scale, group_size, levels.max_relative_change)
    return None


def _packs_alike(levels: TernaryWeight, stored: HeldIndex) -> bool:
    try:
        index = build_index(levels, storage=stored.attributes.storage)
    except IndexFormatError:
        return False
    old, new = stored.attributes, index.attributes
    if (old.alphabet, old.block_size) != (new.alphabet, new.block_size):
        return False
    return np.array_equal(index.codes, stored_array(stored.codes))


def refusal(editor: ModelEditor, found: Found, *, with_body: bool) -> str:
    """Why a gather stays although a product has an index of its table; empty if it may go."""
    if found.stored.attributes.index_format != "packed":
        return "rows of an rsr index cannot be read one by one"
    if found.group_size % found.stored.attributes.block_size:
        return "its scales are finer than the blocks of the product's index"
    if with_body and editor.opset < ATTRIBUTE_REFERENCE_OPSET:
        return (
            f"at opset {editor.opset} {GATHER_TYPE} has no function body, which begins at "
            f"{ATTRIBUTE_REFERENCE_OPSET}"
        )
    return ""


def replace(editor: ModelEditor, table: Table, found: Found, where: str) -> tuple[Rewrite, ir.Node]:
    """Put a `TernaryIndexedGather` in a gather's place; the report's row, and the node."""
    old, weight, stored = table.node, table.weight, found.stored
    graph, output = old.graph, old.outputs[0]
    assert isinstance(graph, ir.Graph)
    attributes = OpAttributes.read(
        stored.attributes.to_gather_dict() | {"group_size": found.group_size}, "", GATHER_TYPE
    )
    scale = editor.shared_constant(old, stored.weight, "scale", found.scale)
    zero = np.zeros((), weight.dtype.numpy())
    like = editor.shared_constant(old, weight, f"like_{weight.dtype.name.lower()}", zero)
    shape = table.indices.shape
    node = ir.Node(
        DOMAIN,
        GATHER_TYPE,
        [table.indices, stored.codes, scale, like],
        operator_attributes(attributes.to_gather_dict()),
        outputs=[
            ir.Value(
                name=output.name,
                shape=output.shape or (None if shape is None else ir.Shape([*shape, attributes.K])),
                type=output.type or ir.TensorType(weight.dtype),
                doc_string=output.doc_string,
                metadata_props=dict(output.metadata_props),
            )
        ],
        name=old.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    graph.insert_before(old, node)
    output.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    operands = [value for at, value in enumerate(old.inputs) if value is not None and at != 1]
    graph.remove(old, safe=True)
    for value in operands:
        editor.prune(value)
    row = report_row(
        old,
        weight,
        attributes,
        found.scale,
        pattern=old.op_type,
        graph=where,
        input=table.indices.name or "",
        output=output.name or "",
        bytes_after=stored.nbytes + found.scale.nbytes,
        shares_index_with=stored.first_user,
        max_relative_change=found.max_relative_change,
    )
    return row, node


def report_row(
    old: ir.Node,
    weight: Constant,
    attributes: OpAttributes,
    scale: NDArray[np.float32],
    **others: Any,
) -> Rewrite:
    """The report's row of a replaced node.

    Args:
        old: the node.
        weight: its constant operand.
        attributes: of the node in its place.
        scale: (), (N,) or (num_groups, N).
        others: what these do not tell.
    """
    return Rewrite(
        node=node_label(old),
        op_type=old.op_type,
        weight=weight.name,
        K=attributes.K,
        N=attributes.N,
        dtype=weight.dtype.name.lower(),
        index_format=attributes.index_format,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        scale=("tensor", "column", f"group of {attributes.group_size}")[scale.ndim],
        activation=attributes.activation,
        bytes_before=weight.stored_bytes,
        **others,
    )
