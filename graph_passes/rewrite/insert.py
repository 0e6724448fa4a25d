"""The nodes that take a product's place, and the value behind them.

[Transpose ->] [Reshape ->] [Mul ->] TernaryIndexedMatMul
  [-> (Mul ->) Add] [-> Reshape] [-> Transpose] [-> activation]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.op.nodes import AXES_KEY, CHANGE_KEY, ROWS_KEY, node_label
from onnx_ternary.schema import DOMAIN, OP_TYPE, OpAttributes

from ..match import Addend, Elementwise, TernaryMatMul
from .model_editor import ModelEditor, op_attributes, output_shape, permuted_shape, split_shape


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
    if match.split_x:
        inputs = [new.merged_x(inputs[0], attributes.K), *inputs[1:]]
    if match.levels.row_scale is not None:
        inputs = [new.scaled_x(inputs[0], match.levels.row_scale), *inputs[1:]]
    shape = output_shape(inputs[0].shape, attributes.N, match.rank)
    output = new.output(shape)
    values = [*new.between(shape, output), output]
    node = new.product(inputs, values[0], attributes)
    if match.addend is not None:
        new.sum(values[0], match.addend, values[1])
    if match.split_y:
        new.reshape(values[0], match.split_y, values[1], "reshape_back")
    if match.perm_y is not None:
        new.transpose(values[-2], match.perm_y, output, "transpose_back")
    if match.then is not None:
        new.activation(values[-2], match.then, output)
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

    def between(self, shape: ir.Shape | None, output: ir.Value) -> list[ir.Value]:
        """The values from the op's result, of ``shape``, up to ``output``, without that."""
        match, moved = self._match, list[ir.Value]()
        if match.addend is not None or match.then is not None:
            # Only Gemm and FusedGemm; verification knows the name in front of an activation.
            assert match.perm_y is None and not match.split_y
            both = match.addend is not None and match.then is not None
            suffixes = ("sums", "product") if both else ("product",)
            return [self.temporary(suffix, output.shape) for suffix in suffixes]
        if match.split_y or match.perm_y is not None:
            moved.append(self.temporary("product", shape))
        if match.split_y and match.perm_y is not None:
            moved.append(self.temporary("axes", split_shape(shape, match.split_y)))
        return moved

    def output(self, product_shape: ir.Shape | None) -> ir.Value:
        """The value that takes the place of the match's output."""
        old, perm = self._match.output, self._match.perm_y
        known = split_shape(product_shape, self._match.split_y)
        known = known if perm is None else permuted_shape(known, perm)
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
        old, change = self._match.product, self._match.levels.max_relative_change
        return self._add(
            OP_TYPE,
            inputs,
            output,
            domain=DOMAIN,
            attributes=op_attributes(attributes),
            name=old.name,
            doc_string=old.doc_string,
            metadata_props={**old.metadata_props, **({CHANGE_KEY: repr(change)} if change else {})},
        )

    def transposed_x(self, perm: tuple[int, ...]) -> ir.Value:
        x = self._match.x
        turned = self.temporary("transposed", permuted_shape(x.shape, perm))
        self.transpose(x, perm, turned, "transpose")
        return turned

    def merged_x(self, x: ir.Value, K: int) -> ir.Value:
        """X with its last axes as one."""
        split = self._match.split_x
        kept = None if x.shape is None else ir.Shape([*x.shape[: -len(split)], K])
        merged = self.temporary("merged", kept)
        self.reshape(x, (K,), merged, "reshape", split)
        return merged

    def scaled_x(self, x: ir.Value, row_scale: NDArray[np.float32]) -> ir.Value:
        """X times the scale of the weight's rows."""
        match = self._match
        array = row_scale.astype(self._dtype.numpy())
        factor = self._editor.shared_constant(match.product, match.weight, "row_scale", array)
        scaled = self.temporary("scaled", x.shape)
        name = self._name("scale_rows")
        self._add("Mul", [x, factor], scaled, name=name, metadata_props={ROWS_KEY: "scale"})
        return scaled

    def reshape(
        self,
        value: ir.Value,
        last: tuple[int, ...],
        output: ir.Value,
        suffix: str,
        axes: tuple[int, ...] = (),
    ) -> None:
        """The axes in front as they are, and then ``last``; ``axes`` are those of the original."""
        match = self._match
        assert match.rank is not None
        target = np.array([*[0] * (match.rank - 1), *last], np.int64)
        name = self._name(suffix)
        shape = self._editor.add_constant(match.product, f"{name}.shape", target)
        metadata = {AXES_KEY: ",".join(map(str, axes or last))}
        self._add("Reshape", [value, shape], output, name=name, metadata_props=metadata)

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
