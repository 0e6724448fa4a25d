"""The operators' nodes in a model: their attributes, their tensors and their integrity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary._walk import graphs_in, nodes_in
from onnx_ternary.errors import IndexFormatError, ModelError
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.schema import (
    DOMAIN,
    GATHER_INPUT_NAMES,
    GATHER_TYPE,
    INPUT_NAMES,
    OP_TYPE,
    OP_TYPES,
    OpAttributes,
)

AXES_KEY = "onnx_ternary.axes"
"""Metadata of a Reshape beside the op: lengths of the axes that are one axis of the op."""
CHANGE_KEY = "onnx_ternary.changed"
"""Metadata of a node: the largest change of its weight by conversion, relative to the scale."""
DIGEST_KEY = "onnx_ternary.sha256"
"""Node metadata: SHA-256 of the constant inputs' dtypes, shapes and bytes (`index_digest`)."""
ROWS_KEY = "onnx_ternary.rows"
"""Metadata of the Mul in front of a product that brings in the scale of its weight's rows."""
METADATA_VERSION = "onnx_ternary.version"
"""Model metadata: the version that converted the model."""
METADATA_OPTIONS = "onnx_ternary.options"
"""Model metadata: the options it was converted with, as JSON."""


def local_functions(model: ir.Model) -> Iterator[ir.Function]:
    """The functions a model carries, the operators' own bodies not among them."""
    for function in model.functions.values():
        if not is_own(function.domain, function.name):
            yield function


def is_own(domain: str, op_type: str) -> bool:
    """Whether a node, or a function by its name, is one of this package's operators."""
    return domain == DOMAIN and op_type in OP_TYPES


def op_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every `TernaryIndexedMatMul` node of the main graph, its subgraphs and local functions."""
    return (node for node in own_nodes(model) if node.op_type == OP_TYPE)


def gather_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every `TernaryIndexedGather` node, in the same places."""
    return (node for node in own_nodes(model) if node.op_type == GATHER_TYPE)


def own_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of both operators, in graph order."""
    for graph in (model.graph, *(each.graph for each in local_functions(model))):
        for node in nodes_in(graph):
            if is_own(node.domain, node.op_type):
                yield node


def owning_functions(model: ir.Model) -> dict[int, ir.Function]:
    """The local function each graph inside one belongs to, by the graph's id."""
    return {
        id(graph): function for function in local_functions(model) for graph in graphs_in(function)
    }


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer, or of a Constant node, which functions have instead."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        return value.const_value
    attr = producer.attributes.get("value")
    if (producer.domain, producer.op_type) != ("", "Constant") or attr is None:
        return None
    return None if attr.is_ref() or attr.type != ir.AttributeType.TENSOR else attr.as_tensor()


def node_label(node: ir.Node) -> str:
    """What reports and messages call a node: its name, or its output's where it has none."""
    return node.name or (node.outputs[0].name if node.outputs else "") or node.op_type


def read_attributes(node: ir.Node) -> OpAttributes:
    """The attributes of a node of either operator.

    Raises:
        IndexFormatError: if one is unknown, missing, of another type or out of range.
    """
    values = {name: attr.value for name, attr in node.attributes.items()}
    return OpAttributes.read(values, node_label(node), node.op_type)


def index_tensors(node: ir.Node) -> tuple[NDArray[Any], ...]:
    """Codes, aux, scale and bias of a product; codes and scale of a gather.

    Raises:
        IndexFormatError: if one is missing or not a constant.
        ModelError: if its data cannot be read.
    """
    is_gather = node.op_type == GATHER_TYPE
    names = GATHER_INPUT_NAMES if is_gather else INPUT_NAMES
    if len(node.inputs) != len(names):
        raise IndexFormatError(
            f"{node.op_type} '{node_label(node)}': {len(node.inputs)} inputs, expected "
            f"{len(names)}; convert the model again with 'onnx-ternary optimize'."
        )
    arrays = []
    constants = zip(names, node.inputs, strict=True)
    for name, value in [*constants][1 : -1 if is_gather else None]:
        tensor = constant_tensor(value)
        if tensor is None:
            raise IndexFormatError(
                f"{node.op_type} '{node_label(node)}': input {name} is not an initializer; convert "
                "the model again with 'onnx-ternary optimize'."
            )
        try:
            arrays.append(tensor.numpy())
        except (OSError, ValueError, TypeError) as error:
            raise ModelError(f"Tensor '{tensor.name}' cannot be read: {error}") from error
    return tuple(arrays)


def product_tensors(codes: NDArray[Any], scale: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """What a product of a gather's index has as codes, aux, scale and bias."""
    return codes, np.zeros(1, np.uint32), scale, np.zeros((), np.float32)


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


def check_digest(node: ir.Node) -> None:
    """Compare a node's tensors with the digest it was converted with, if it has one.

    Raises:
        IndexFormatError: if they differ, and as `index_tensors`.
    """
    expected = node.metadata_props.get(DIGEST_KEY)
    if expected is not None and expected != index_digest(node):
        raise IndexFormatError(
            f"{node.op_type} '{node_label(node)}': its tensors are not the ones it was converted "
            "with (their digest differs); convert the model again with 'onnx-ternary optimize'."
        )


def check_indices(model: ir.Model) -> tuple[str, ...]:
    """Check every index a model carries, code by code and against its digest.

    Returns:
        The names of the nodes checked.

    Raises:
        IndexFormatError: naming every damaged node and what is wrong with it.
        ModelError: if a tensor's data cannot be read.
    """
    checked, damaged = [], []
    for node in own_nodes(model):
        name = node_label(node)
        checked.append(name)
        try:
            attributes = read_attributes(node)
            tensors = index_tensors(node)
            if node.op_type == GATHER_TYPE:
                tensors = product_tensors(*tensors)
            codes, aux, scale, bias = tensors
            validate_index(attributes, codes, aux, scale, bias, node=name)
            decode_index(attributes, codes, aux, node=name)
            check_digest(node)
        except IndexFormatError as error:
            damaged.append(str(error))
    if damaged:
        raise IndexFormatError(" ".join(damaged))
    return tuple(checked)
