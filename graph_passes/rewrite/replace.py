"""Put a `TernaryIndexedMatMul` node where a rule found a product.

The new node takes the product's name; the value behind it keeps the name of the last absorbed
node's output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_ternary.errors import IndexFormatError
from onnx_ternary.index import Index, build_index
from onnx_ternary.model_files.tensors import Spool
from onnx_ternary.op.nodes import (
    node_label,
)
from onnx_ternary.options import INT8_RULE, OptimizeOptions
from onnx_ternary.schema import OpAttributes

from ..constants.constant import Constant, Folder
from ..match import Context, Rejection, Table, TernaryMatMul
from ..site import Site, function_name
from . import tables
from .finish import Replaced, Replacements, finish
from .function_body import SharedBody
from .insert import insert
from .model_editor import (
    ModelEditor,
    remove_unused,
)
from .remaining import Quantized, requantize
from .renamed import Restored
from .tables import HeldIndex

# Below opset 12 a body learns N from the shape of the scale or the bias only.
_FIRST_OPSET_WITH_SCALAR_BIAS = 12


class Replacer:
    """The editor of one model, one product after the other."""

    def __init__(
        self,
        site: Site,
        options: OptimizeOptions,
        spool: Spool | None,
        folder: Folder,
        restored: Restored,
    ) -> None:
        self._editor = ModelEditor(site, spool, folder)
        self._options = options
        self._restored = restored
        self._body = SharedBody(self._editor, options)
        self._indices: dict[Hashable, HeldIndex] = {}
        self._by_root: dict[tuple[int, int], list[HeldIndex]] = {}
        self._found = Replacements()

    def replace(self, match: TernaryMatMul, where: str) -> Rejection | None:
        """Replace one product, or refuse it where the index cannot be built or does not pay.

        Args:
            match: what a rule found; its nodes are still as the rule saw them.
            where: description of the graph, for the report.
        """
        product, weight = match.product, match.weight
        graph = product.graph
        assert isinstance(graph, ir.Graph)
        name = node_label(product)
        stored = self._indices.get((id(graph), weight.key))
        shared_with = None if stored is None else stored.first_user
        if stored is None:
            try:
                index = self._build(match)
            except IndexFormatError as error:
                return Rejection(product, str(error), weight.name)
            if self._options.min_elements and not self._pays(index, weight):
                return Rejection(
                    product,
                    f"the index of weight '{weight.name}' would take {index.nbytes} bytes, the "
                    f"weight takes {_dense_bytes(weight)}",
                    weight.name,
                )
        attributes = dataclasses.replace(
            index.attributes if stored is None else stored.attributes, **self._activation(match)
        )
        if (reason := self._bodiless(match, attributes)) is not None:
            return Rejection(product, reason, weight.name)
        if stored is None:
            stored = self._store(match, index, name)
        scale = self._editor.shared_constant(product, weight, "scale", match.scale)
        inputs = [match.x, stored.codes, stored.aux, scale, self._bias(match, name)]
        node = insert(self._editor, match, inputs, attributes)
        self._remove(match)
        self._found.roots[id(weight.root)] = weight.root
        row = tables.report_row(
            product,
            weight,
            attributes,
            match.scale,
            pattern=match.pattern,
            graph=where,
            input=match.x.name or "",
            output=match.output.name or "",
            bytes_after=stored.nbytes + match.scale.nbytes,
            shares_index_with=shared_with,
            max_relative_change=match.levels.max_relative_change,
        )
        if match.levels.row_scale is not None:
            row = dataclasses.replace(row, scale=f"{row.scale} and row")
        self._found.done.append((row, node))
        if match.note:
            self._found.notes.setdefault(match.note, []).append(f"'{name}'")
        return None

    def _bodiless(self, match: TernaryMatMul, attributes: OpAttributes) -> str | None:
        """Why a product in a local function would be left without the body it needs."""
        ranks = match.scale.ndim, 1 if self._has_long_bias(match) else 0
        function = self._editor.site.function_of(match.product)
        if function is not None:
            why = self._body.refusal(attributes, match.x, match.output, ranks)
            if why:
                return (
                    f"it is inside local function {function_name(function)}, where ONNX Runtime "
                    f"finds the types of the op through its function body only, and there would "
                    f"be none: {why}"
                )
        self._body.add(attributes, match.x, match.output, ranks)
        return None

    @property
    def has_indices(self) -> bool:
        """Whether a product was replaced."""
        return bool(self._indices)

    def share_table(self, table: Table, context: Context, where: str) -> None:
        """Let a gather read the index a product has of its table, if one has (tables.py)."""
        found = tables.index_of(table, self._by_root, context)
        if found is None:
            return
        name = f"'{node_label(table.node)}'"
        why = tables.refusal(self._editor, found, with_body=self._options.function_body)
        if why:
            note = f"a table is kept beside the index of '{found.stored.first_user}': {why}"
            self._found.notes.setdefault(note, []).append(name)
            return
        self._found.done.append(tables.replace(self._editor, table, found, where))

    def requantize(self, node: ir.Node, quantized: Quantized) -> None:
        """Put a MatMulNBits in the place of a product (remaining.py)."""
        requantize(self._editor, node, quantized)

    def finish(self) -> Replaced:
        """Add imports, metadata and the function body, if anything was changed (finish.py)."""
        return finish(self._editor, self._options, self._found, self._restored)

    def _build(self, match: TernaryMatMul) -> Index:
        options = self._options
        levels = dataclasses.replace(match.levels, scale=match.scale)
        if match.scale.ndim < 2:
            levels = dataclasses.replace(levels, group_size=0)
        return build_index(
            levels,
            index_format=options.index_format,
            storage=options.storage,
            block_width=options.block_width,
            algorithm=options.algorithm,
        )

    def _activation(self, match: TernaryMatMul) -> Mapping[str, Any]:
        """The model's own rule, or the one the user asks for."""
        if match.activation is not None:
            return match.activation
        return {} if self._options.activation == "keep" else INT8_RULE

    @staticmethod
    def _pays(index: Index, weight: Constant) -> bool:
        """Padding can make the index of a very small matrix the larger one; rsr is a choice.

        An index of codes that were small already is about their size, and worth its speed: it has
        to be smaller than the floats they stand for.
        """
        return index.attributes.index_format != "packed" or index.nbytes < _dense_bytes(weight)

    def _store(self, match: TernaryMatMul, index: Index, first_user: str) -> HeldIndex:
        product, weight, levels = match.product, match.weight, match.levels
        stored = HeldIndex(
            attributes=index.attributes,
            codes=self._editor.add_constant(product, f"{weight.name}.codes", index.codes),
            aux=(
                self._editor.shared_constant(product, weight, "aux", index.aux)
                if index.aux.size == 1
                else self._editor.add_constant(product, f"{weight.name}.aux", index.aux)
            ),
            nbytes=index.codes.nbytes + index.aux.nbytes,
            first_user=first_user,
            weight=weight,
            scale=levels.scale,
            group_size=levels.group_size if levels.scale.ndim == 2 else 0,
            max_relative_change=levels.max_relative_change,
        )
        self._indices[id(product.graph), weight.key] = stored
        if levels.row_scale is None:  # a gather would have to multiply by it
            self._by_root.setdefault((id(product.graph), id(weight.root)), []).append(stored)
        return stored

    def _bias(self, match: TernaryMatMul, name: str) -> ir.Value:
        if match.bias_value is not None:
            return match.bias_value
        if match.bias is not None:
            return self._editor.add_constant(match.product, f"{name}.bias", match.bias)
        is_long = self._has_long_bias(match)
        zeros = np.zeros(match.levels.levels.shape[1:] if is_long else (), np.float32)
        return self._editor.shared_constant(match.product, match.weight, "zero_bias", zeros)

    def _has_long_bias(self, match: TernaryMatMul) -> bool:
        """Whether the bias is (N,), not a scalar zero."""
        needs_n = self._editor.opset < _FIRST_OPSET_WITH_SCALAR_BIAS and match.scale.ndim == 0
        return match.bias_value is not None or match.bias is not None or needs_n

    def _remove(self, match: TernaryMatMul) -> None:
        graph = match.product.graph
        assert isinstance(graph, ir.Graph)
        removed = (match.product, *match.absorbed)
        operands = [value for node in removed for value in node.inputs if value is not None]
        graph.remove(removed, safe=True)
        for value in operands:
            if match.activation is None:
                self._editor.prune(value)
            else:
                remove_unused(value)


def _dense_bytes(weight: Constant) -> int:
    """Bytes of the weight as a matrix of its own type, or as stored where that is more."""
    return max(weight.stored_bytes, weight.size * weight.dtype.bitwidth // 8)
