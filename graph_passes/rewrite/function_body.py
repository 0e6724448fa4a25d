"""The function body a converted model carries, so that it runs without the library too."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx import FunctionProto

from onnx_ternary.op.body_nodes import CAST_LIKE_OPSET, MIN_IR_VERSION, NoBody
from onnx_ternary.op.function_body import BodyVariant, make_function_body
from onnx_ternary.op.gather import GatherVariant, make_gather_body
from onnx_ternary.op.nodes import (
    gather_nodes,
    is_own,
    node_label,
    op_nodes,
    read_attributes,
)
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.schema import GATHER_TYPE

from .model_editor import (
    ModelEditor,
    stored_array,
    stored_tensor,
)


def attach_body(editor: ModelEditor, options: OptimizeOptions) -> str:
    """Replace the bodies of both operators; return why there are none, or nothing."""
    functions = editor.model.functions
    for key in [key for key in functions if is_own(*key[:2])]:
        del functions[key]
    if not options.function_body:
        return "not asked for"
    ir_version = max(editor.model.ir_version, MIN_IR_VERSION)
    bodies = [body_of(list(op_nodes(editor.model)), editor.opset, ir_version)]
    if gathers := list(gather_nodes(editor.model)):
        bodies.append(body_of(gathers, editor.opset, ir_version))
    for body in bodies:
        if isinstance(body, NoBody):
            return body.reason
    # Every onnxruntime the library supports reads it.
    editor.model.ir_version = ir_version
    for body in bodies:
        assert not isinstance(body, NoBody)
        function = ir.serde.deserialize_function(body)
        functions[function.identifier()] = function
    return ""


def body_of(nodes: Sequence[ir.Node], opset: int, ir_version: int) -> FunctionProto | NoBody:
    """The function body all nodes of one operator share, or why there is none.

    Raises:
        IndexFormatError: if an attribute is none of the operator's.
    """
    if nodes and nodes[0].op_type == GATHER_TYPE:
        gathers = [_gather_variant(node, opset) for node in nodes]
        return make_gather_body(gathers, opset, ir_version)
    variants: list[BodyVariant] = []
    for node in nodes:
        variant = _variant(node, opset)
        if variant is None:
            return NoBody(f"the type of the output of '{node_label(node)}' is unknown")
        variants.append(variant)
    return make_function_body(variants, opset, ir_version)


def _gather_variant(node: ir.Node, opset: int) -> GatherVariant:
    like = stored_tensor(node.inputs[-1])
    return GatherVariant.of(read_attributes(node), y_dtype=int(like.dtype), opset=opset)


def _variant(node: ir.Node, opset: int) -> BodyVariant | None:
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
