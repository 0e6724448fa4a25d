"""`TernaryIndexedMatMul` nodes of a model: their attributes, their tensors and their integrity."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.schema import DOMAIN, INPUT_NAMES, OP_TYPE, OpAttributes

DIGEST_KEY = "onnx_ternary.sha256"
"""Node metadata: SHA-256 of the constant inputs' dtypes, shapes and bytes (`index_digest`)."""


def op_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every `TernaryIndexedMatMul` node of the main graph and its subgraphs."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == DOMAIN and node.op_type == OP_TYPE:
            yield node


def read_attributes(node: ir.Node) -> OpAttributes:
    """The attributes of a `TernaryIndexedMatMul` node.

    Raises:
        IndexFormatError: if one is unknown, missing or out of range.
    """
    values: dict[str, Any] = {name: attr.value for name, attr in node.attributes.items()}
    names = {each.name for each in dataclasses.fields(OpAttributes)}
    if values.keys() != names:
        wrong = ", ".join(sorted(values.keys() ^ names))
        raise IndexFormatError(
            f"{OP_TYPE} '{node.name}': unknown or missing attributes ({wrong}); convert the model "
            "again with 'onnx-ternary optimize'."
        )
    return OpAttributes(**values)


def index_tensors(node: ir.Node) -> tuple[NDArray[Any], ...]:
    """Codes, aux, scale and bias of a node.

    Raises:
        IndexFormatError: if one is not a constant.
    """
    arrays = []
    for name, value in zip(INPUT_NAMES[1:], node.inputs[1:], strict=True):
        if value is None or value.const_value is None:
            raise IndexFormatError(
                f"{OP_TYPE} '{node.name}': input {name} is not an initializer; convert the model "
                "again with 'onnx-ternary optimize'."
            )
        arrays.append(value.const_value.numpy())
    return tuple(arrays)


def index_digest(node: ir.Node) -> str:
    """SHA-256, in hex, of a node's constant inputs.

    Raises:
        IndexFormatError: as `index_tensors`.
    """
    digest = hashlib.sha256()
    for array in index_tensors(node):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_indices(model: ir.Model) -> tuple[str, ...]:
    """Check every index a model carries, code by code and against its digest.

    Returns:
        The names of the nodes checked.

    Raises:
        IndexFormatError: naming every damaged node and what is wrong with it.
    """
    checked, damaged = [], []
    for node in op_nodes(model):
        checked.append(node.name or "")
        try:
            attributes = read_attributes(node)
            codes, aux, scale, bias = index_tensors(node)
            validate_index(attributes, codes, aux, scale, bias, node=node.name or "")
            decode_index(attributes, codes, aux, node=node.name or "")
        except IndexFormatError as error:
            damaged.append(str(error))
            continue
        expected = node.metadata_props.get(DIGEST_KEY)
        if expected is not None and expected != index_digest(node):
            damaged.append(
                f"{OP_TYPE} '{node.name}': its tensors are not the ones it was converted with "
                "(their digest differs); convert the model again with 'onnx-ternary optimize'."
            )
    if damaged:
        raise IndexFormatError("\n".join(damaged))
    return tuple(checked)
