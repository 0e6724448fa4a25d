"""The function body a converted model carries, so that it runs without the library too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
from onnx_ternary.schema import GATHER_TYPE, OpAttributes

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
    if scale is None or bias is None:
        return None
    ranks = stored_array(scale).ndim, stored_array(bias).ndim
    return _variant_of(read_attributes(node), _dtype(node.outputs[0], x, opset), ranks, opset)


def _dtype(output: ir.Value, x: ir.Value | None, opset: int) -> ir.DataType | None:
    # Functions of older models do not tell types, and from opset 15 on a body needs none.
    dtype = output.dtype or (None if x is None else x.dtype)
    return ir.DataType.FLOAT if dtype is None and opset >= CAST_LIKE_OPSET else dtype


def _variant_of(
    attributes: OpAttributes, dtype: ir.DataType | None, ranks: tuple[int, int], opset: int
) -> BodyVariant | None:
    if dtype is None:
        return None
    return BodyVariant.of(
        attributes, x_dtype=int(dtype), scale_rank=ranks[0], bias_rank=ranks[1], opset=opset
    )


class SharedBody:
    """Whether the nodes a model has so far can share a body.

    Products inside local functions depend on it: ONNX Runtime finds the types of the op there
    through its body only. They come last, so that products of the main graph decide.

    Args:
        editor: of the model; nodes converted before count.
        options: `storage`; where it is open, `unify_storage` sees to one storage for all.
    """

    def __init__(self, editor: ModelEditor, options: OptimizeOptions) -> None:
        self._opset = editor.opset
        self._ir_version = max(editor.model.ir_version, MIN_IR_VERSION)
        self._one_storage = options.storage is None
        self._variants: dict[BodyVariant | None, None] = {}
        self._answers: dict[frozenset[BodyVariant | None], str] = {}
        for node in op_nodes(editor.model):
            self._variants[self._open(_variant(node, self._opset))] = None

    def refusal(
        self, attributes: OpAttributes, x: ir.Value, output: ir.Value, ranks: tuple[int, int]
    ) -> str:
        """Why there would be no body with one node more; empty if there would be one.

        Args:
            attributes: of the node.
            x: its activations.
            output: its result.
            ranks: of its scale and its bias.
        """
        dtype = _dtype(output, x, self._opset)
        variant = self._open(_variant_of(attributes, dtype, ranks, self._opset))
        variants = {**self._variants, variant: None}
        key = frozenset(variants)
        if key not in self._answers:
            self._answers[key] = self._reason(list(variants))
        return self._answers[key]

    def add(
        self, attributes: OpAttributes, x: ir.Value, output: ir.Value, ranks: tuple[int, int]
    ) -> None:
        """Count a node; see `refusal`."""
        dtype = _dtype(output, x, self._opset)
        self._variants[self._open(_variant_of(attributes, dtype, ranks, self._opset))] = None

    def _reason(self, variants: Sequence[BodyVariant | None]) -> str:
        known = [each for each in variants if each is not None]
        if len(known) < len(variants):
            return "the type of a product's result is unknown"
        made = make_function_body(known, self._opset, self._ir_version)
        return made.reason if isinstance(made, NoBody) else ""

    def _open(self, variant: BodyVariant | None) -> BodyVariant | None:
        """The variant with the storage that all will have."""
        if variant is None or not self._one_storage:
            return variant
        if variant.storage == "1bit":
            return replace(variant, storage="2bit", alphabet="ternary")
        return replace(variant, alphabet="ternary") if variant.storage == "planes" else variant
