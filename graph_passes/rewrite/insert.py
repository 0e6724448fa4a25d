"""The nodes that take a product's place, and the value behind them.

[Transpose ->] TernaryIndexedMatMul [-> (Mul ->) Add] [-> Transpose] [-> activation]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_ternary.op.nodes import node_label
from onnx_ternary.schema import DOMAIN, OP_TYPE, OpAttributes

from ..match import Addend, Elementwise, TernaryMatMul
from .model_editor import ModelEditor, op_attributes, output_shape, permuted_shape


def insert(
    editor: ModelEditor,
    match: TernaryMatMul,
    inputs: list[ir.Value],
    attributes: OpAttributes,
) -> ir.Node:
    """Put the new nodes in front of a product, and let everybody read their result.

    Args:
        editor: of the model.
        match: what a rule found; the product is still there.
        inputs: of the new node, the activations as they are in the model.
        attributes: of the new node.

    Returns:
        The `TernaryIndexedMatMul`.
    """
    graph = match.product.graph
    assert isinstance(graph, ir.Graph)
    new = _NewNodes(editor, match)
    if match.perm_x is not None:
        inputs = [new.transposed_x(match.perm_x), *inputs[1:]]
    shape = output_shape(inputs[0].shape, attributes.N, match.rank)
    output = new.output(shape)
    # Only Gemm and its kin have an addend or an activation.
    assert match.perm_y is None or (match.addend is None and match.then is None)
    sums = output
    if match.then is not None:  # verification looks for this name
        sums = new.temporary("product", output.shape)
    value = sums
    if match.addend is not None or match.perm_y is not None:
        suffix = "product" if match.then is None else "sums"
        value = new.temporary(suffix, output.shape if match.addend else shape)
    node = new.product(inputs, value, attributes)
    if match.addend is not None:
        new.sum(value, match.addend, sums)
    if match.perm_y is not None:
        new.transpose(value, match.perm_y, output, "transpose_back")
    if match.then is not None:
        new.activation(sums, match.then, output)
    graph.insert_before(match.product, new.nodes)
    match.output.replace_all_uses_with(output, replace_graph_outputs=True)
    return node


class _NewNodes:
    """The nodes in order; names and types follow the product and its output."""

    def __init__(self, editor: ModelEditor, match: TernaryMatMul) -> None:
        self.nodes: list[ir.Node] = []
        self._editor = editor
        self._match = match
        self._dtype = match.weight.dtype

    def temporary(self, suffix: str, shape: ir.Shape | None) -> ir.Value:
        """A value between the new nodes."""
        name = self._editor.value_name(f"{self._match.output.name}.{suffix}")
        return ir.Value(name=name, shape=shape, type=ir.TensorType(self._dtype))

    def output(self, product_shape: ir.Shape | None) -> ir.Value:
        """The value that takes the place of the match's output."""
        old, perm = self._match.output, self._match.perm_y
        known = product_shape if perm is None else permuted_shape(product_shape, perm)
        return ir.Value(
            name=old.name,
            shape=old.shape or known,
            type=old.type or ir.TensorType(self._dtype),
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )

    def product(
        self, inputs: list[ir.Value], output: ir.Value, attributes: OpAttributes
    ) -> ir.Node:
        """The op; it takes the product's name."""
        old = self._match.product
        return self._add(
            OP_TYPE,
            inputs,
            output,
            domain=DOMAIN,
            attributes=op_attributes(attributes),
            name=old.name,
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )

    def transposed_x(self, perm: tuple[int, ...]) -> ir.Value:
        x = self._match.x
        turned = self.temporary("transposed", permuted_shape(x.shape, perm))
        self.transpose(x, perm, turned, "transpose")
        return turned

    def transpose(
        self, value: ir.Value, perm: tuple[int, ...], output: ir.Value, suffix: str
    ) -> None:
        attributes = [ir.AttrInt64s("perm", perm)]
        self._add("Transpose", [value], output, attributes=attributes, name=self._name(suffix))

    def sum(self, value: ir.Value, addend: Addend, output: ir.Value) -> None:
        """``value + factor * addend``."""
        product, term = self._match.product, addend.value
        if addend.factor != 1.0:
            beta = np.array(addend.factor, self._dtype.numpy())
            factor = self._editor.add_constant(product, f"{node_label(product)}.beta", beta)
            scaled = self.temporary("addend", term.shape)
            self._add("Mul", [term, factor], scaled, name=self._name("scale_addend"))
            term = scaled
        self._add("Add", [value, term], output, name=self._name("add"))

    def activation(self, value: ir.Value, then: Elementwise, output: ir.Value) -> None:
        attributes = [ir.AttrFloat32(name, number) for name, number in then.attributes.items()]
        name = self._name(then.op_type.lower())
        self._add(then.op_type, [value], output, attributes=attributes, name=name)

    def _add(
        self,
        op_type: str,
        operands: list[ir.Value],
        output: ir.Value,
        *,
        domain: str = "",
        **fields: Any,
    ) -> ir.Node:
        node = ir.Node(domain, op_type, operands, outputs=[output], **fields)
        self.nodes.append(node)
        return node

    def _name(self, suffix: str) -> str:
        return self._editor.node_name(f"{node_label(self._match.product)}.{suffix}")
