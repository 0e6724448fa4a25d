"""The function body a converted model carries, so that it runs without the library too."""

from __future__ import annotations

import onnx_ir as ir

from onnx_ternary.op.function_body import (
    CAST_LIKE_OPSET,
    MIN_IR_VERSION,
    BodyVariant,
    NoBody,
    make_function_body,
)
from onnx_ternary.op.nodes import (
    node_label,
    op_nodes,
    read_attributes,
)
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import DOMAIN, OP_TYPE

from .model_editor import (
    ModelEditor,
    stored_array,
)


def attach_body(editor: ModelEditor, options: OptimizeOptions) -> str:
    """Replace the model's bodies of the op; return why there are none, or nothing."""
    functions = editor.model.functions
    for key in [key for key in functions if key[:2] == (DOMAIN, OP_TYPE)]:
        del functions[key]
    if not options.function_body:
        return "not asked for"
    variants: list[BodyVariant] = []
    for node in op_nodes(editor.model):
        variant = variant_of(node, editor.opset)
        if variant is None:
            return f"the type of the output of '{node_label(node)}' is unknown"
        variants.append(variant)
    ir_version = max(editor.model.ir_version, MIN_IR_VERSION)
    body = make_function_body(variants, editor.opset, ir_version)
    if isinstance(body, NoBody):
        return body.reason
    # Every onnxruntime the library supports reads it.
    editor.model.ir_version = ir_version
    function = ir.serde.deserialize_function(body)
    functions[function.identifier()] = function
    return ""


def variant_of(node: ir.Node, opset: int) -> BodyVariant | None:
    """What a body for a node depends on; None where the type of its output is unknown.

    Raises:
        IndexFormatError: if an attribute is none of the op's.
    """
    x, _, _, scale, bias = node.inputs
    output = node.outputs[0]
    # Functions of older models do not tell types, and from opset 15 on a body needs none.
    dtype = output.dtype or (None if x is None else x.dtype)
    if dtype is None and opset >= CAST_LIKE_OPSET:
        dtype = ir.DataType.FLOAT
    if dtype is None or scale is None or bias is None:
        return None
    return BodyVariant.of(
        read_attributes(node),
        x_dtype=int(dtype),
        scale_rank=stored_array(scale).ndim,
        bias_rank=stored_array(bias).ndim,
        opset=opset,
    )
