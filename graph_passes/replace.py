"""Put `TernaryIndexedMatMul` nodes where rules found products. Nothing else edits the graph.

The new node takes the product's name; the value behind it keeps the name of the last absorbed
node's output. New tensors are initializers of the graph the node is in: ONNX Runtime 1.17 gives a
custom op only its own graph's initializers as constants (1.31 gives it captured ones too), so a
weight that two subgraphs share gets an index in each. Functions have no initializers: inside them,
and in the subgraphs there, new tensors are Constant nodes, which ONNX Runtime makes initializers
where it inlines the function, once a call.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary._version import __version__
from onnx_ternary.errors import IndexFormatError, ModelError
from onnx_ternary.function_body import (
    CAST_LIKE_OPSET,
    MIN_IR_VERSION,
    BodyVariant,
    NoBody,
    make_function_body,
)
from onnx_ternary.index import Index, build_index, decode_index
from onnx_ternary.model_io import Spool, release
from onnx_ternary.nodes import (
    DIGEST_KEY,
    check_digest,
    constant_tensor,
    index_digest,
    local_functions,
    node_label,
    op_nodes,
    owning_functions,
    read_attributes,
)
from onnx_ternary.options import INT8_RULE, OptimizeOptions
from onnx_ternary.report import Rewrite
from onnx_ternary.schema import DOMAIN, DOMAIN_VERSION, INPUT_NAMES, OP_TYPE, OpAttributes
from onnx_ternary.ternary import TernaryWeight

from . import siblings
from .match import Rejection, TernaryMatMul
from .remaining import ACCURACY_LEVEL, BLOCK_SIZE, Quantized
from .weights import FOLDER, Constant, leaf

# Below opset 12 a body learns N from the shape of the scale or the bias only.
_FIRST_OPSET_WITH_SCALAR_BIAS = 12
_FIRST_OPSET_WITH_SPLIT_INPUT = 13
METADATA_VERSION = "onnx_ternary.version"
METADATA_OPTIONS = "onnx_ternary.options"


@dataclasses.dataclass(slots=True)
class _StoredIndex:
    """An index that is in the graph, without its scale."""

    attributes: OpAttributes
    codes: ir.Value
    aux: ir.Value
    nbytes: int
    first_user: str


@dataclasses.dataclass(frozen=True, slots=True)
class Replaced:
    """What a `Replacer` did: rows and notes for the report, and whether there is a body."""

    rewrites: tuple[Rewrite, ...]
    notes: tuple[str, ...]
    has_function_body: bool


class Replacer:
    """Edits one model, one product after the other."""

    def __init__(
        self, model: ir.Model, options: OptimizeOptions, spool: Spool | None = None
    ) -> None:
        self._model = model
        self._options = options
        self._spool = spool
        self._opset = model.opset_imports.get("", 0)
        self._functions = owning_functions(model)
        graphs = (model.graph, *(each.graph for each in local_functions(model)))
        self._names = {name for graph in graphs for name in _value_names(graph)}
        self._node_names = {node.name or "" for graph in graphs for node in graph.all_nodes()}
        self._indices: dict[Hashable, _StoredIndex] = {}
        self._tensors: dict[Hashable, ir.Value] = {}
        self._roots: dict[int, ir.Value] = {}
        self._done: list[tuple[Rewrite, ir.Node]] = []
        self._notes: dict[str, list[str]] = {}

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
            stored = self._store(product, weight, index, name)
        scale = self._tensor(product, weight, "scale", match.scale)
        attributes = dataclasses.replace(stored.attributes, **self._activation(match))
        inputs = [match.x, stored.codes, stored.aux, scale, self._bias(match, name)]
        node = self._insert(match, graph, inputs, attributes)
        self._remove(match)
        self._roots[id(weight.root)] = weight.root
        row = Rewrite(
            node=name,
            op_type=product.op_type,
            pattern=match.pattern,
            graph=where,
            input=match.x.name or "",
            output=match.output.name or "",
            weight=weight.name,
            K=attributes.K,
            N=attributes.N,
            dtype=weight.dtype.name.lower(),
            index_format=attributes.index_format,
            storage=attributes.storage,
            alphabet=attributes.alphabet,
            scale=_scale_kind(match.scale, attributes.group_size),
            activation=attributes.activation,
            bytes_before=weight.stored_bytes,
            bytes_after=stored.nbytes + match.scale.nbytes,
            shares_index_with=shared_with,
            max_relative_change=match.levels.max_relative_change,
        )
        self._done.append((row, node))
        if match.note:
            self._notes.setdefault(match.note, []).append(f"'{name}'")
        return None

    def requantize(self, node: ir.Node, quantized: Quantized) -> None:
        """Put a MatMulNBits in the place of a MatMul (remaining.py)."""
        graph, x, output = node.graph, node.inputs[0], node.outputs[0]
        assert isinstance(graph, ir.Graph) and x is not None
        weight = quantized.weight
        K, N = weight.shape
        tensors = {
            f"{weight.name}_Q{quantized.bits}": quantized.codes,
            f"{weight.name}_scales": quantized.scales.reshape(-1),
            f"{weight.name}_zero_points": quantized.zero_points.reshape(-1),
        }
        sizes = {
            "K": K,
            "N": N,
            "bits": quantized.bits,
            "block_size": BLOCK_SIZE,
            "accuracy_level": ACCURACY_LEVEL,
        }
        new = ir.Value(
            name=output.name,
            shape=output.shape or _output_shape(x.shape, N),
            type=output.type or ir.TensorType(weight.dtype),
            doc_string=output.doc_string,
            metadata_props=dict(output.metadata_props),
        )
        product = ir.Node(
            "com.microsoft",
            "MatMulNBits",
            [x, *(self._add(node, name, array) for name, array in tensors.items())],
            outputs=[new],
            attributes=[ir.AttrInt64(name, size) for name, size in sizes.items()],
            name=node.name,
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )
        graph.insert_before(node, product)
        output.replace_all_uses_with(new, replace_graph_outputs=True)
        operand = node.inputs[1]
        graph.remove(node, safe=True)
        if operand is not None:
            _prune(operand)
        self._model.opset_imports.setdefault("com.microsoft", 1)

    def finish(self) -> Replaced:
        """Add imports, metadata and the function body, if anything was replaced."""
        if not self._done:
            has_body = any(key[:2] == (DOMAIN, OP_TYPE) for key in self._model.functions)
            notes = []
            if self._options.fuse_siblings and siblings.groups(self._model):
                notes.append(
                    "products that share an input stay apart, because the model was converted "
                    "before: convert the original with fuse_siblings"
                )
            return Replaced((), tuple(notes), has_body)
        owners = (self._functions.get(id(node.graph)) for _, node in self._done)
        functions = [each for each in dict.fromkeys(owners) if each is not None]
        for imports in (self._model.opset_imports, *(each.opset_imports for each in functions)):
            imported = imports.setdefault(DOMAIN, DOMAIN_VERSION)
            if imported != DOMAIN_VERSION:
                raise ModelError(
                    f"The model imports domain '{DOMAIN}' version {imported}; this program writes "
                    f"version {DOMAIN_VERSION}."
                )
            imports.setdefault("", self._opset)  # for Constant, Transpose and Add
        self._model.metadata_props[METADATA_VERSION] = __version__
        self._model.metadata_props[METADATA_OPTIONS] = json.dumps(
            self._options.to_dict(), sort_keys=True
        )
        notes = [note for root in self._roots.values() if (note := _kept_note(root))]
        notes += [f"{note}: {_first_three(names)}" for note, names in self._notes.items()]
        most = max((row for row, _ in self._done), key=lambda row: row.max_relative_change)
        if most.max_relative_change > 0:
            notes.append(
                f"the largest change of a weight is {most.max_relative_change:.3g} of its scale: "
                f"'{most.weight}' of '{most.node}'"
            )
        if self._options.function_body and self._options.storage is None:
            notes += self._unify_storage()
        rewrites = tuple(map(_refreshed, self._done))
        made = {id(node): node for _, node in self._done}
        if self._options.fuse_siblings:
            for group in siblings.groups(self._model):
                notes.append(
                    "one call of the operator computes "
                    + ", ".join(f"'{node_label(node)}'" for node in group)
                )
                made[id(group[0])] = self._fuse(group)
                for node in group[1:]:
                    made.pop(id(node), None)
        for node in made.values():
            node.metadata_props[DIGEST_KEY] = index_digest(node)
            for value in node.inputs[1:]:
                release(_tensor(value))
        old_ir_version = self._model.ir_version
        reason = self._attach_body()
        if self._model.ir_version != old_ir_version:
            notes.append(
                f"IR version raised from {old_ir_version} to {self._model.ir_version}, the first "
                "that can carry a function body"
            )
        if reason:
            notes.append(f"no function body, so the model needs the library to run: {reason}")
        return Replaced(rewrites, tuple(notes), not reason)

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

    def _store(
        self, product: ir.Node, weight: Constant, index: Index, first_user: str
    ) -> _StoredIndex:
        stored = _StoredIndex(
            attributes=index.attributes,
            codes=self._add(product, f"{weight.name}.codes", index.codes),
            aux=(
                self._tensor(product, weight, "aux", index.aux)
                if index.aux.size == 1
                else self._add(product, f"{weight.name}.aux", index.aux)
            ),
            nbytes=index.codes.nbytes + index.aux.nbytes,
            first_user=first_user,
        )
        self._indices[id(product.graph), weight.key] = stored
        return stored

    def _bias(self, match: TernaryMatMul, name: str) -> ir.Value:
        if match.bias_value is not None:
            return match.bias_value
        if match.bias is not None:
            return self._add(match.product, f"{name}.bias", match.bias)
        needs_n = self._opset < _FIRST_OPSET_WITH_SCALAR_BIAS and match.scale.ndim == 0
        zeros = np.zeros(match.levels.levels.shape[1:] if needs_n else (), np.float32)
        return self._tensor(match.product, match.weight, "zero_bias", zeros)

    def _tensor(
        self, product: ir.Node, weight: Constant, role: str, array: NDArray[Any]
    ) -> ir.Value:
        """A constant of the product's graph; small equal ones are shared by all nodes."""
        small = array.size == 1 and not array.any()
        key = (id(product.graph), None if small else weight.key, role, array.shape, array.tobytes())
        if key not in self._tensors:
            name = f"{DOMAIN}.{role}" if small else f"{weight.name}.{role}"
            self._tensors[key] = self._add(product, name, array)
        return self._tensors[key]

    def _add(self, product: ir.Node, name: str, array: NDArray[Any]) -> ir.Value:
        """A new constant that ``product`` and the nodes behind it can read."""
        graph = product.graph
        assert isinstance(graph, ir.Graph)
        name = _unique(name, self._names)
        if id(graph) in self._functions:
            node = ir.Node(
                "",
                "Constant",
                [],
                [ir.AttrTensor("value", ir.Tensor(array, name=name))],
                outputs=[ir.Value(name=name)],
                name=_unique(name, self._node_names),
            )
            graph.insert_before(product, node)
            return node.outputs[0]
        tensor = (
            ir.Tensor(array, name=name) if self._spool is None else self._spool.add(array, name)
        )
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def _insert(
        self,
        match: TernaryMatMul,
        graph: ir.Graph,
        inputs: list[ir.Value],
        attributes: OpAttributes,
    ) -> ir.Node:
        product, old = match.product, match.output
        dtype = match.weight.dtype
        nodes: list[ir.Node] = []

        def add(
            domain: str, op_type: str, operands: list[ir.Value], output: ir.Value, **kwargs: Any
        ) -> ir.Value:
            nodes.append(ir.Node(domain, op_type, operands, outputs=[output], **kwargs))
            return output

        def node_name(suffix: str) -> str:
            return _unique(f"{node_label(product)}.{suffix}", self._node_names)

        def temporary(suffix: str, shape: ir.Shape | None) -> ir.Value:
            name = _unique(f"{old.name}.{suffix}", self._names)
            return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))

        if match.perm_x is not None:
            turned = _permuted(match.x.shape, match.perm_x)
            inputs[0] = add(
                "",
                "Transpose",
                [match.x],
                temporary("transposed", turned),
                attributes=[ir.AttrInt64s("perm", match.perm_x)],
                name=node_name("transpose"),
            )
        product_shape = _output_shape(inputs[0].shape, attributes.N, match.rank)
        known = product_shape if match.perm_y is None else _permuted(product_shape, match.perm_y)
        output = ir.Value(
            name=old.name,
            shape=old.shape or known,
            type=old.type or ir.TensorType(dtype),
            doc_string=old.doc_string,
            metadata_props=dict(old.metadata_props),
        )
        product_value = add(
            DOMAIN,
            OP_TYPE,
            inputs,
            (
                output
                if match.addend is None and match.perm_y is None
                else temporary("product", output.shape if match.addend else product_shape)
            ),
            attributes=_attributes(attributes),
            name=product.name,
            doc_string=product.doc_string,
            metadata_props=dict(product.metadata_props),
        )
        if match.addend:
            term = match.addend.value
            if match.addend.factor != 1.0:
                beta = np.array(match.addend.factor, dtype.numpy())
                factor = self._add(product, f"{node_label(product)}.beta", beta)
                scaled = temporary("addend", term.shape)
                term = add("", "Mul", [term, factor], scaled, name=node_name("scale_addend"))
            add("", "Add", [product_value, term], output, name=node_name("add"))
        if match.perm_y is not None:
            assert match.addend is None  # only Gemm has one
            add(
                "",
                "Transpose",
                [product_value],
                output,
                attributes=[ir.AttrInt64s("perm", match.perm_y)],
                name=node_name("transpose_back"),
            )
        graph.insert_before(product, nodes)
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        node = product_value.producer()
        assert node is not None
        return node

    @staticmethod
    def _remove(match: TernaryMatMul) -> None:
        graph = match.product.graph
        assert isinstance(graph, ir.Graph)
        removed = (match.product, *match.absorbed)
        operands = [value for node in removed for value in node.inputs if value is not None]
        graph.remove(removed, safe=True)
        for value in operands:
            if match.activation is None:
                _prune(value)
            else:
                _remove_unused(value)

    def _unify_storage(self) -> list[str]:
        """Store binary weights as ternary ones where a model has both.

        A model can carry one function body only, and bodies differ by storage and, where the
        storage depends on it, by alphabet.
        """
        nodes = [(node, read_attributes(node)) for node in op_nodes(self._model)]
        kinds = {
            (each.storage, each.alphabet if each.storage in ("1bit", "planes") else "")
            for _, each in nodes
        }
        if len(kinds) < 2:
            return []
        rebuilt: dict[int, Index] = {}
        for node, old in nodes:
            if old.storage != "1bit" and (old.storage != "planes" or old.alphabet == "ternary"):
                continue
            codes, aux, scale = (_array(value) for value in node.inputs[1:4])
            key = id(node.inputs[1])
            if key not in rebuilt:
                check_digest(node)
                binary = old.storage == "1bit"
                levels = TernaryWeight(
                    levels=decode_index(old, codes, aux),
                    scale=scale,
                    group_size=old.group_size,
                    alphabet=old.alphabet if binary else "ternary",
                    max_relative_change=0.0,
                )
                rebuilt[key] = build_index(
                    levels,
                    index_format=old.index_format,
                    storage="2bit" if binary else "planes",
                    block_width=old.block_width or None,
                    algorithm=None if binary else old.algorithm,
                )
            index = rebuilt[key]
            _set_array(node.inputs[1], index.codes)
            if index.aux.size > 1:  # the one zero of packed indices is everybody's
                _set_array(node.inputs[2], index.aux)
            new = dataclasses.replace(
                old, storage=index.attributes.storage, alphabet=index.attributes.alphabet
            )
            for attribute in _attributes(new):
                node.attributes[attribute.name] = attribute
            node.metadata_props[DIGEST_KEY] = index_digest(node)
        names = ", ".join(
            f"'{node_label(node)}'" for node, old in nodes if id(node.inputs[1]) in rebuilt
        )
        return [
            f"binary weights of {names} are stored as ternary ones, because one function body has "
            "to serve the whole model; without a body they take half the space"
        ]

    def _fuse(self, nodes: tuple[ir.Node, ...]) -> ir.Node:
        """Put one product and a Split in the place of several (siblings.py)."""
        first, x = nodes[0], nodes[0].inputs[0]
        graph = first.graph
        assert isinstance(graph, ir.Graph) and x is not None
        for node in nodes:
            check_digest(node)  # of earlier conversions
        fused = siblings.fuse(nodes)
        name = node_label(first)
        arrays: dict[str, NDArray[Any]] = {"codes": fused.codes, "scale": fused.scale}
        if fused.bias.ndim:
            arrays["bias"] = fused.bias
        inputs = list(first.inputs)
        for role, array in arrays.items():
            inputs[INPUT_NAMES.index(role)] = self._add(first, f"{name}.fused.{role}", array)
        outputs = [node.outputs[0] for node in nodes]
        product = ir.Node(
            DOMAIN,
            OP_TYPE,
            inputs,
            outputs=[
                ir.Value(
                    name=_unique(f"{name}.fused", self._names),
                    shape=_output_shape(x.shape, fused.attributes.N),
                    type=outputs[0].type,
                )
            ],
            attributes=_attributes(fused.attributes),
            name=first.name,
            metadata_props=dict(first.metadata_props),
        )
        lengths = [read_attributes(node).N for node in nodes]
        operands, attributes = [product.outputs[0]], [ir.AttrInt64("axis", -1)]
        if self._opset < _FIRST_OPSET_WITH_SPLIT_INPUT:
            attributes.append(ir.AttrInt64s("split", lengths))
        else:
            sizes = np.array(lengths, np.int64)
            operands.append(self._add(first, f"{name}.fused.split", sizes))
        split = ir.Node(
            "",
            "Split",
            operands,
            outputs=[
                ir.Value(name=each.name, shape=each.shape, type=each.type) for each in outputs
            ],
            attributes=attributes,
            name=_unique(f"{name}.split", self._node_names),
        )
        # Not ``first``, whose columns lie first: others may be used ahead of it.
        earliest = next(node for node in graph if node in nodes)
        graph.insert_before(earliest, [product, split])
        for old, new in zip(outputs, split.outputs, strict=True):
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        unused = [value for node in nodes for value in node.inputs[1:] if value is not None]
        graph.remove(nodes, safe=True)
        for value in unused:
            _prune(value)
        return product

    def _attach_body(self) -> str:
        """Replace the model's bodies of the op; returns why there are none, or nothing."""
        functions = self._model.functions
        for key in [key for key in functions if key[:2] == (DOMAIN, OP_TYPE)]:
            del functions[key]
        if not self._options.function_body:
            return "not asked for"
        variants: list[BodyVariant] = []
        for node in op_nodes(self._model):
            variant = self._variant(node)
            if variant is None:
                return f"the type of the output of '{node_label(node)}' is unknown"
            variants.append(variant)
        ir_version = max(self._model.ir_version, MIN_IR_VERSION)
        body = make_function_body(variants, self._opset, ir_version)
        if isinstance(body, NoBody):
            return body.reason
        # Every onnxruntime the library supports reads it.
        self._model.ir_version = ir_version
        function = ir.serde.deserialize_function(body)
        functions[function.identifier()] = function
        return ""

    def _variant(self, node: ir.Node) -> BodyVariant | None:
        x, _, _, scale, bias = node.inputs
        output = node.outputs[0]
        # Functions of older models do not tell types, and from opset 15 on a body needs none.
        dtype = output.dtype or (None if x is None else x.dtype)
        if dtype is None and self._opset >= CAST_LIKE_OPSET:
            dtype = ir.DataType.FLOAT
        if dtype is None or scale is None or bias is None:
            return None
        return BodyVariant.of(
            read_attributes(node),
            x_dtype=int(dtype),
            scale_rank=_array(scale).ndim,
            bias_rank=_array(bias).ndim,
            opset=self._opset,
        )


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or it with a number behind; from then on taken."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _attributes(attributes: OpAttributes) -> list[ir.Attr]:
    made: list[ir.Attr] = []
    for name, value in attributes.to_dict().items():
        if isinstance(value, str):
            made.append(ir.AttrString(name, value))
        elif isinstance(value, float):
            made.append(ir.AttrFloat32(name, value))
        else:
            made.append(ir.AttrInt64(name, value))
    return made


def _output_shape(
    shape: ir.Shape | None, num_columns: int, rank: int | None = None
) -> ir.Shape | None:
    """The shape of a product with x; Gemm and Einsum tell the rank of an x of unknown shape."""
    if shape is None:
        return ir.Shape([*[None] * (rank - 1), num_columns]) if rank else None
    return ir.Shape([*shape[:-1], num_columns])


def _permuted(shape: ir.Shape | None, perm: tuple[int, ...]) -> ir.Shape | None:
    if shape is None or len(shape) != len(perm):
        return None
    return ir.Shape([shape[axis] for axis in perm])


def _tensor(value: ir.Value | None) -> ir.TensorProtocol:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor


def _array(value: ir.Value | None) -> NDArray[Any]:
    return _tensor(value).numpy()


def _set_array(value: ir.Value | None, array: NDArray[Any]) -> None:
    assert value is not None
    tensor = ir.Tensor(array, name=value.name)
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", tensor)
        return
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)


def _refreshed(done: tuple[Rewrite, ir.Node]) -> Rewrite:
    """The row of a node whose index may have been stored another way since."""
    row, node = done
    attributes = read_attributes(node)
    return dataclasses.replace(
        row,
        storage=attributes.storage,
        alphabet=attributes.alphabet,
        bytes_after=sum(_tensor(value).nbytes for value in node.inputs[1:4]),
    )


def _scale_kind(scale: NDArray[np.float32], group_size: int) -> str:
    return ("tensor", "column", f"group of {group_size}")[scale.ndim]


def _value_names(whole: ir.Graph) -> Iterator[str]:
    for graph in (whole, *whole.subgraphs()):
        yield from graph.initializers
        values: Iterable[ir.Value] = (
            *graph.inputs,
            *(out for node in graph for out in node.outputs),
        )
        for value in values:
            yield value.name or ""


def _prune(value: ir.Value) -> None:
    """Remove a constant nobody uses any more, and what it was made from."""
    if not isinstance(leaf(value), Constant):
        # Without a folder no rule has looked behind what such steps make.
        folder = FOLDER.get()
        if folder is None or folder.status(value) is not None:
            return
    _remove_unused(value)


def _remove_unused(value: ir.Value) -> None:
    """Remove what makes a value nobody uses any more."""
    unused = [value]
    while unused:
        each = unused.pop()
        producer = each.producer()
        if producer is None:
            graph, name = each.graph, each.name or ""
            if graph is not None and name in graph.initializers and not _seen(each):
                del graph.initializers[name]
        elif producer.graph is not None and not any(map(_seen, producer.outputs)):
            unused += [operand for operand in producer.inputs if operand is not None]
            producer.graph.remove(producer, safe=True)


def _seen(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output() or value.is_graph_input()


def _kept_note(root: ir.Value) -> str | None:
    """Why a weight is still in the model, if it is."""
    if root.is_graph_output():
        return f"weight '{root.name}' kept as well: it is a graph output"
    users = [use.node for use in root.uses()]
    if not users:
        return None
    names = _first_three([f"{node.op_type} '{node_label(node)}'" for node in users])
    return f"weight '{root.name}' kept as well: used by {names}"


def _first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _dense_bytes(weight: Constant) -> int:
    """Bytes of the weight as a matrix of its own type, or as stored where that is more."""
    return max(weight.stored_bytes, weight.size * weight.dtype.bitwidth // 8)
