"""What the pass takes for granted: attributes of their operators' types, and nodes with results."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnx_ternary._walk import nodes_in
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.cycles import DOMAINS_OF_OPERATORS
from onnx_ternary.op.nodes import local_functions, node_label

_OPERATORS = frozenset(
    {"BipolarQuant", "Cast", "Clip", "Conv", "DequantizeLinear", "Einsum", "FusedGemm"}
    | {
        "FusedMatMul",
        "Gemm",
        "IntQuant",
        "MatMulNBits",
        "Quant",
        "QuantizeLinear",
        "ReduceMax",
        "Transpose",
    }
    | {"TransposeMatMul"}
)
_TYPES: Mapping[ir.AttributeType, frozenset[str]] = {
    ir.AttributeType.FLOAT: frozenset(
        {"activation_alpha", "activation_beta", "activation_gamma", "alpha", "beta", "max", "min"}
    ),
    ir.AttributeType.INT: frozenset(
        {"K", "N", "accuracy_level", "axis", "bits", "block_size", "group", "keepdims", "narrow"}
        | {"output_dtype", "signed", "to", "transA", "transB", "transBatchA", "transBatchB"}
        | {"weight_prepacked"}
    ),
    ir.AttributeType.INTS: frozenset({"axes", "dilations", "kernel_shape", "pads", "perm"})
    | {"strides"},
    ir.AttributeType.STRING: frozenset({"activation", "equation", "rounding_mode"}),
}
_EXPECTED = {name: kind for kind, names in _TYPES.items() for name in names}


def check_attributes(model: ir.Model) -> None:
    """Look at the types of all attributes the pass may read, and for results.

    Raises:
        ModelError: naming the node and the attribute.
    """
    for graph in (model.graph, *(each.graph for each in local_functions(model))):
        for node in nodes_in(graph):
            reason = _wrong(node) if node.op_type in _OPERATORS else ""
            if node.domain in DOMAINS_OF_OPERATORS and not node.outputs:
                reason = "has no result"
            if reason:
                raise ModelError(
                    f"The model is not valid ONNX: {node.op_type} '{node_label(node)}' {reason}."
                )


def _wrong(node: ir.Node) -> str:
    if node.op_type == "Cast" and "to" not in node.attributes:
        return "has no attribute 'to'"
    for name, attr in node.attributes.items():
        expected = _EXPECTED.get(name)
        if attr.is_ref() or expected is None:
            continue
        if attr.type != expected:
            return f"has attribute '{name}' of type {attr.type.name}, expected {expected.name}"
        if expected == ir.AttributeType.STRING and not isinstance(attr.value, str):
            return f"has attribute '{name}' = {attr.value!r}, which is not UTF-8"
        if name in ("output_dtype", "to") and attr.value not in [*ir.DataType]:
            return f"has attribute '{name}' = {attr.value}, which is no type of a tensor"
    return ""
