"""The operators a model comes with, as the report shows them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.op.nodes import constant_tensor, node_label, own_nodes, read_attributes
from onnx_ternary.reports.report import StoredIndex


def stored_indices(model: ir.Model) -> Iterator[StoredIndex]:
    """What every node of the operators says of itself, by its sizes alone.

    A damaged one has a name and nothing else; `check_indices` says what is wrong with it.
    """
    for node in own_nodes(model):
        name = node_label(node)
        # Not the bias of a product, nor what gives a gather its type.
        tensors = [constant_tensor(value) for value in node.inputs[1:-1]]
        try:
            attributes = read_attributes(node)
        except IndexFormatError:
            yield StoredIndex(name, node.op_type)
            continue
        known = [tensor for tensor in tensors if tensor is not None]
        rank = len(known[-1].shape.numpy()) if known and len(known) == len(tensors) else 0
        kinds = ("tensor", "column", f"group of {attributes.group_size}")
        yield StoredIndex(
            name,
            node.op_type,
            attributes.K,
            attributes.N,
            attributes.index_format,
            attributes.storage,
            attributes.alphabet,
            kinds[min(rank, 2)],
            sum(int(tensor.nbytes) for tensor in known),
        )
