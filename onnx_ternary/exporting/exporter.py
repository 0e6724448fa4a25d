"""The way back: converted products as standard operators.

    TernaryIndexedMatMul(X, codes, aux, scale, bias)
      float       =>  MatMul(X, W) [-> Add]
      matmulnbits =>  MatMulNBits(X, codes, scales) [-> Add]
      qdq         =>  MatMul(X, DequantizeLinear(codes, scale)) [-> Add]

1. activation = float. Float16 and bfloat16 products are computed in their own type where scale and
   bias are exact in it, else in float32 between Casts. MatMulNBits has no bfloat16 kernel on the
   CPU, so bfloat16 is always cast there; so is a product whose type is unknown (in functions).
2. Quantized activations. The part of the function body that depends on X is put in the node's
   place: the quantization, the product with the integers, and the scales behind it. Where the body
   multiplies by MatMulInteger, every form does.
3. MatMulNBits. Codes are level + 2^(bits - 1), which needs no zero points. A block is the scale
   group, or a part of it; scales of the matrix or of a column are repeated.
4. DequantizeLinear. int2 from opset 25 (IR version 13) where N is a multiple of 4, int4 from 21
   (10), else int8; one scale per column from opset 13, scale groups (blocks) from 21.

5. TernaryIndexedGather becomes Gather of a float table.

Products in subgraphs and local functions are exported too; new constants take the place of the old
ones, as initializers or as Constant nodes, once for all that share them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary._walk import nodes_in
from onnx_ternary.errors import ModelError
from onnx_ternary.index import decode_index, validate_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.body_nodes import CAST_LIKE_OPSET, MIN_IR_VERSION, NoBody
from onnx_ternary.op.function_body import BodyVariant, make_function_body
from onnx_ternary.op.nodes import (
    AXES_KEY,
    CHANGE_KEY,
    DIGEST_KEY,
    METADATA_OPTIONS,
    METADATA_VERSION,
    ROWS_KEY,
    check_digest,
    index_tensors,
    is_own,
    node_label,
    product_tensors,
    read_attributes,
)
from onnx_ternary.schema import DOMAIN, GATHER_TYPE, OpAttributes

Form = Literal["float", "matmulnbits", "qdq"]
_NBITS_DOMAIN = "com.microsoft"
_NBITS_BLOCK_SIZES = (256, 128, 64, 32, 16)
_NBITS_BLOCK_SIZE = 128
_DEQUANTIZE_OPSET = 10
_COLUMN_SCALE_OPSET = 13
_HALF_DEQUANTIZE_OPSET = 19
_BLOCK_SCALE_OPSET = 21
# (type, opset of DequantizeLinear, IR version, what N is a multiple of), the smallest type first.
# With another N onnxruntime 1.31.1 packs int2 columns wrongly when it fuses the two nodes.
_CODE_TYPES = ((ir.DataType.INT2, 25, 13, 4), (ir.DataType.INT4, 21, 10, 1))


@dataclass(frozen=True, slots=True)
class ExportedProduct:
    """One node of the operators that became standard ones.

    Attributes:
        node: its name, which the new product has too.
        operator: what it became: ``MatMul``, ``MatMulNBits 2-bit, block 128``, ``DequantizeLinear
            int8 -> MatMul``.
        K: reduction length.
        N: output columns.
        dtype: what the product is computed in, ``float``, ``float16`` or ``bfloat16``.
        activation: ``float``, or ``int8`` where the rows are quantized before the product.
    """

    node: str
    operator: str
    K: int
    N: int
    dtype: str
    activation: str


@dataclass(frozen=True, slots=True)
class _Weight:
    """A product's weight.

    Attributes:
        codes: its codes in the converted model; new constants go where they are.
        scale_value: its scale in the converted model.
        attributes: of the product.
        levels: decodes the levels, (K, N) int8.
        scale: float32, (), (N,) or (num_groups, N).
        dtype: of the floats it becomes.
    """

    codes: ir.Value
    scale_value: ir.Value | None
    attributes: OpAttributes
    levels: Callable[[], NDArray[np.int8]]
    scale: NDArray[np.float32]
    dtype: ir.DataType

    @property
    def key(self) -> Hashable:
        """Equal for equal weights."""
        return self.codes, self.scale_value, self.dtype

    @property
    def group_size(self) -> int:
        """Rows per scale; 0 for one scale per column or per matrix."""
        return self.attributes.group_size if self.scale.ndim == 2 else 0

    def unscaled(self) -> _Weight:
        """The levels alone."""
        return replace(self, scale_value=None, scale=np.ones((), np.float32))

    def dense(self) -> NDArray[Any]:
        """W (K, N) of `dtype`."""
        alphabet = self.attributes.alphabet
        weight = TernaryWeight(self.levels(), self.scale, self.group_size, alphabet, 0.0)
        return weight.dense().astype(self.dtype.numpy(), copy=False)


class Exporter:
    """The editor of one converted model, one product after the other."""

    def __init__(self, model: ir.Model, form: Form, bits: int, accuracy_level: int) -> None:
        self._model = model
        self._form = form
        self._bits = bits
        self._accuracy_level = accuracy_level
        self._names = set(_names(model))
        self._constants: dict[Hashable, ir.Value] = {}
        self._place: _Place  # Of the product at hand.

    def run(self, progress: Callable[[str, int, int], None] | None) -> list[ExportedProduct]:
        """Export every product of the main graph, its subgraphs and the local functions."""
        functions = self._model.functions
        for key in [key for key in functions if is_own(*key[:2])]:
            del functions[key]
        owners: tuple[ir.Graph | ir.Function, ...] = (self._model.graph, *functions.values())
        found = [
            (node, owner.opset_imports)
            for owner in owners
            for node in nodes_in(owner)
            if is_own(node.domain, node.op_type)
        ]
        products = []
        for i, (node, opsets) in enumerate(found):
            if progress is not None:
                progress(node_label(node), i, len(found))
            export = self._export_gather if node.op_type == GATHER_TYPE else self._export
            products.append(export(node, opsets))
        for owner in owners:
            owner.opset_imports.pop(DOMAIN, None)
            for each in nodes_in(owner):
                for own in (AXES_KEY, ROWS_KEY):  # of Reshapes and Muls beside products
                    each.metadata_props.pop(own, None)
        for name in (METADATA_VERSION, METADATA_OPTIONS):
            self._model.metadata_props.pop(name, None)
        return products

    def _opened(self, node: ir.Node, opset: int) -> tuple[_Weight, NDArray[np.float32]]:
        """The weight of a node, of float32 numbers, and its bias; a damaged index is refused."""
        attributes, label = read_attributes(node), node_label(node)
        is_gather = node.op_type == GATHER_TYPE
        tensors = index_tensors(node)
        codes, aux, scale, bias = product_tensors(*tensors) if is_gather else tensors
        validate_index(attributes, codes, aux, scale, bias, node=label)
        # Now, and not only when the tensor is written: a damaged index is refused by name.
        decode_index(attributes, codes, aux, node=label)
        check_digest(node)
        self._place = _Place(node, opset, self._names)
        codes_value = node.inputs[1]
        assert codes_value is not None
        weight = _Weight(
            codes=codes_value,
            scale_value=node.inputs[2 if is_gather else 3],
            attributes=attributes,
            levels=lambda: decode_index(attributes, codes, aux, node=label),
            scale=scale,
            dtype=ir.DataType.FLOAT,
        )
        return weight, bias

    def _export(self, node: ir.Node, opsets: dict[str, int]) -> ExportedProduct:
        label = node_label(node)
        weight, bias = self._opened(node, opsets.get("", 0))
        attributes, dtype = weight.attributes, self._place.dtype
        is_float = attributes.activation == "float"
        has_kernel = self._form != "matmulnbits" or dtype != ir.DataType.BFLOAT16
        if dtype is None or not (is_float and has_kernel and _exact_in(dtype, weight.scale, bias)):
            dtype = ir.DataType.FLOAT
        weight = replace(weight, dtype=dtype)
        if is_float:
            operator = self._float_product(weight, bias)
        else:
            operator = self._quantized_product(weight)
        if self._form == "matmulnbits":
            opsets.setdefault(_NBITS_DOMAIN, 1)
        self._place.replace()
        return ExportedProduct(
            label,
            operator,
            attributes.K,
            attributes.N,
            dtype.name.lower(),
            attributes.activation,
        )

    def _export_gather(self, node: ir.Node, opsets: dict[str, int]) -> ExportedProduct:
        """Gather of a table of its own, (N, K) in the type of its rows, in every form."""
        label = node_label(node)
        weight, _ = self._opened(node, opsets.get("", 0))
        place, attributes, like = self._place, weight.attributes, node.inputs[3]
        if like is None or like.dtype is None:
            raise place.refusal("the type of its rows is unknown", "convert the model again")
        weight = replace(weight, dtype=like.dtype)
        shape = (attributes.N, attributes.K)
        table = self._constant(
            weight, "table", weight.dtype, shape, lambda: np.ascontiguousarray(weight.dense().T)
        )
        place.add("Gather", [table, place.x], is_product=True)
        place.replace()
        return ExportedProduct(
            label,
            "Gather",
            attributes.K,
            attributes.N,
            weight.dtype.name.lower(),
            "float",
        )

    def _float_product(self, weight: _Weight, bias: NDArray[np.float32]) -> str:
        """Case 1; what the product became."""
        place, dtype = self._place, weight.dtype
        x = place.x if place.dtype == dtype else place.cast(place.x, dtype)
        operator, y = self._multiply(x, weight)
        if bias.any():
            typed = self._typed(place.node.inputs[4], bias, dtype)
            y = place.add("Add", [y, typed]).outputs[0]
        if place.dtype == dtype:
            return operator
        if place.dtype is not None:
            place.cast(y, place.dtype)
        elif place.opset >= CAST_LIKE_OPSET:
            place.add("CastLike", [y, place.x])
        else:
            raise place.refusal(
                f"the type of its output is unknown, and opset {place.opset} cannot do without",
                "run shape inference on the model",
            )
        return operator

    def _quantized_product(self, weight: _Weight) -> str:
        """Case 2; what the product became."""
        place, attributes = self._place, weight.attributes
        variant = BodyVariant.of(
            attributes,
            x_dtype=int(place.dtype or ir.DataType.FLOAT),
            scale_rank=weight.scale.ndim,
            bias_rank=1,  # What needs N is the decoding, which is left out.
            opset=place.opset,
        )
        proto = make_function_body([variant], place.opset, MIN_IR_VERSION)
        if isinstance(proto, NoBody):
            raise place.refusal(
                f"its quantization takes operators the model lacks: {proto.reason}",
                "raise the original's opset and convert it again",
            )
        body = ir.serde.deserialize_function(proto)
        (product,) = (node for node in body if node.op_type in ("MatMul", "MatMulInteger"))
        needed = _behind(body.outputs[0], without=product.inputs[1])
        values: dict[ir.Value | None, ir.Value | None] = {None: None}
        values.update(zip(body.inputs, place.node.inputs, strict=True))
        if any(value is not None and value.name == "scale" for n in needed for value in n.inputs):
            weight = weight.unscaled()  # The body scales the sums.
        operator = product.op_type
        if operator == "MatMulInteger":
            shape, int8 = (attributes.K, attributes.N), ir.DataType.INT8
            values[product.inputs[1]] = self._constant(weight, "int8", int8, shape, weight.levels)
        for node in body:
            if node is product and node.op_type == "MatMul":
                x = values[node.inputs[0]]
                assert x is not None
                operator, values[node.outputs[0]] = self._multiply(x, weight)
            elif node in needed:
                copy = place.add(
                    node.op_type,
                    [values[value] for value in node.inputs],
                    num_outputs=len(node.outputs),
                    is_product=node is product,
                    attributes=_resolved(node, attributes),
                )
                values.update(zip(node.outputs, copy.outputs, strict=True))
        rule = attributes.activation_rule
        return f"{attributes.activation if rule == 'none' else rule} -> {operator}"

    def _multiply(self, x: ir.Value, weight: _Weight) -> tuple[str, ir.Value]:
        """X @ W in the form asked for, X of the weight's type; its name and value."""
        if self._form == "matmulnbits":
            return self._matmul_nbits(x, weight)
        operator = "MatMul"
        if self._form == "qdq":
            operator, w = self._dequantized(weight)
        else:
            shape = (weight.attributes.K, weight.attributes.N)
            w = self._constant(weight, "weight", weight.dtype, shape, weight.dense)
        return operator, self._place.add("MatMul", [x, w], is_product=True).outputs[0]

    def _matmul_nbits(self, x: ir.Value, weight: _Weight) -> tuple[str, ir.Value]:
        """Case 3."""
        K, N, bits = weight.attributes.K, weight.attributes.N, self._bits
        block_size = self._block_size(weight)
        num_blocks = -(-K // block_size)
        groups = np.arange(num_blocks) * block_size // (weight.group_size or K)
        scale = np.broadcast_to(np.atleast_2d(weight.scale)[groups], (num_blocks, N)).T
        codes = self._constant(
            weight.unscaled(),
            f"blocks_{block_size}",
            ir.DataType.UINT8,
            (N, num_blocks, block_size * bits // 8),
            lambda: _pack_blocks(weight.levels(), bits, block_size),
        )
        scales = self._constant(
            weight,
            "block_scales",
            weight.dtype,
            scale.shape,
            lambda: np.ascontiguousarray(scale).astype(weight.dtype.numpy()),
        )
        node = self._place.add(
            "MatMulNBits",
            [x, codes, scales],
            domain=_NBITS_DOMAIN,
            is_product=True,
            attributes={
                "K": K,
                "N": N,
                "bits": bits,
                "block_size": block_size,
                "accuracy_level": self._accuracy_level,
            },
        )
        return f"MatMulNBits {bits}-bit, block {block_size}", node.outputs[0]

    def _block_size(self, weight: _Weight) -> int:
        if not weight.group_size:
            K = weight.attributes.K
            return min(size for size in _NBITS_BLOCK_SIZES if size >= min(K, _NBITS_BLOCK_SIZE))
        fits = [size for size in _NBITS_BLOCK_SIZES if weight.group_size % size == 0]
        if not fits:
            raise self._place.refusal(
                f"one scale every {weight.group_size} rows, expected a multiple of "
                f"{min(_NBITS_BLOCK_SIZES)}",
                "use --to float",
            )
        return max(fits)

    def _dequantized(self, weight: _Weight) -> tuple[str, ir.Value]:
        """Case 4; W (K, N) behind DequantizeLinear."""
        place, rank = self._place, weight.scale.ndim
        kind = ("matrix", "column", "group of rows")[rank]
        needed = (_DEQUANTIZE_OPSET, _COLUMN_SCALE_OPSET, _BLOCK_SCALE_OPSET)[rank]
        if place.opset < needed:
            raise place.refusal(
                f"one scale per {kind} takes DequantizeLinear of opset {needed}, found opset "
                f"{place.opset}",
                "use --to float or --to matmulnbits",
            )
        K, N = weight.attributes.K, weight.attributes.N
        code_type = next(
            (
                candidate
                for candidate, opset, ir_version, multiple in _CODE_TYPES
                if place.opset >= opset
                and self._model.ir_version >= ir_version
                and N % multiple == 0
            ),
            ir.DataType.INT8,
        )
        codes = self._constant(
            weight.unscaled(),
            code_type.name.lower(),
            code_type,
            (K, N),
            lambda: weight.levels().astype(code_type.numpy()),
        )
        direct = weight.dtype == ir.DataType.FLOAT or place.opset >= _HALF_DEQUANTIZE_OPSET
        scale_type = weight.dtype if direct else ir.DataType.FLOAT
        if weight.scale_value is None:
            scale = self._constant(
                weight, "one", scale_type, (), lambda: np.ones((), scale_type.numpy())
            )
        else:
            scale = self._typed(weight.scale_value, weight.scale, scale_type)
        blocks = ({}, {"axis": 1}, {"axis": 0, "block_size": weight.group_size})[rank]
        w = place.add("DequantizeLinear", [codes, scale], attributes=blocks).outputs[0]
        if not direct:
            w = place.cast(w, weight.dtype)
        return f"DequantizeLinear {code_type.name.lower()} -> MatMul", w

    def _typed(
        self, value: ir.Value | None, array: NDArray[np.float32], dtype: ir.DataType
    ) -> ir.Value:
        """A float32 constant of the converted model in another type."""
        assert value is not None
        if dtype == ir.DataType.FLOAT:
            return value
        name = f"{value.name}.{dtype.name.lower()}"
        return self._put(
            value, (value, dtype), name, dtype, array.shape, lambda: array.astype(dtype.numpy())
        )

    def _constant(
        self,
        weight: _Weight,
        role: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        evaluate: Callable[[], NDArray[Any]],
    ) -> ir.Value:
        """A constant made of a weight, in the place of its codes."""
        name = f"{(weight.codes.name or '').removesuffix('.codes')}.{role}"
        return self._put(weight.codes, (weight.key, role), name, dtype, shape, evaluate)

    def _put(
        self,
        near: ir.Value,
        key: Hashable,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        evaluate: Callable[[], NDArray[Any]],
    ) -> ir.Value:
        """A constant as ``near`` is one, an initializer or a Constant node; one for each key."""
        if key in self._constants:
            return self._constants[key]
        name = _fresh(name, self._names)
        # Large models have room for one dense weight at a time, not for all.
        tensor = ir.LazyTensor(
            lambda: ir.Tensor(evaluate(), dtype=dtype, name=name), dtype, ir.Shape(shape), name=name
        )
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor
        )
        producer = near.producer()
        if producer is None:
            assert near.graph is not None
            near.graph.register_initializer(value)
        else:
            constant = ir.node("Constant", [], {"value": tensor}, outputs=[value])
            assert producer.graph is not None
            producer.graph.insert_before(producer, constant)
        self._constants[key] = value
        return value


class _Place:
    """One product of the model, and the nodes that will stand in its place."""

    def __init__(self, node: ir.Node, opset: int, names: set[str]) -> None:
        self.node = node
        self.opset = opset
        self._names = names
        self._added: list[ir.Node] = []

    @property
    def x(self) -> ir.Value:
        """The activations."""
        x = self.node.inputs[0]
        assert x is not None
        return x

    @property
    def dtype(self) -> ir.DataType | None:
        """Type of X and Y; None where the model does not tell, as in functions."""
        return self.node.outputs[0].dtype or self.x.dtype

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        domain: str = "",
        num_outputs: int = 1,
        is_product: bool = False,
        attributes: Mapping[str, Any] | None = None,
    ) -> ir.Node:
        """Append a node; the product takes the name of the old one. The last one gives Y."""
        old = self.node
        dropped = (CHANGE_KEY, DIGEST_KEY)
        metadata = {key: each for key, each in old.metadata_props.items() if key not in dropped}
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=domain,
            num_outputs=num_outputs,
            name=old.name if is_product else _fresh(f"{node_label(old)}.{op_type}", self._names),
            doc_string=old.doc_string if is_product else None,
            metadata_props=metadata if is_product else None,
        )
        for output in node.outputs:
            output.name = _fresh(f"{old.outputs[0].name}.{op_type}", self._names)
        self._added.append(node)
        return node

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Append a Cast."""
        return self.add("Cast", [value], attributes={"to": int(dtype)}).outputs[0]

    def replace(self) -> None:
        """Put the nodes where the product was, and drop constants nobody uses any more."""
        node, graph = self.node, self.node.graph
        assert graph is not None
        old, new = node.outputs[0], self._added[-1].outputs[0]
        new.shape, new.type = old.shape, old.type
        new.doc_string = old.doc_string
        new.metadata_props.update(old.metadata_props)
        graph.insert_before(node, self._added)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        constants = [value for value in node.inputs[1:] if value is not None]
        graph.remove(node, safe=True)
        new.name = old.name
        for value in constants:
            _drop_unused(value)

    def refusal(self, found: str, advice: str) -> ModelError:
        """Why the product cannot be exported."""
        return ModelError(f"{self.node.op_type} '{node_label(self.node)}': {found}; {advice}.")


def _drop_unused(value: ir.Value) -> None:
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer, graph = value.producer(), value.graph
    if producer is not None:
        if producer.graph is not None:
            producer.graph.remove(producer, safe=True)
    elif isinstance(graph, ir.Graph):
        graph.initializers.pop(value.name or "", None)


def _names(model: ir.Model) -> Iterator[str]:
    """Names of all values and nodes."""
    functions = model.functions.values()
    owners: tuple[ir.Graph | ir.Function, ...] = (
        *model.graphs(),
        *functions,
        *(graph for function in functions for graph in function.subgraphs()),
    )
    for owner in owners:
        if isinstance(owner, ir.Graph):
            yield from owner.initializers
        values = (*owner.inputs, *(value for node in owner for value in node.outputs))
        yield from (each.name or "" for each in (*values, *owner))


def _fresh(name: str, taken: set[str]) -> str:
    """``name``, or it with primes behind; from then on taken."""
    while name in taken:
        name += "'"
    taken.add(name)
    return name


def _exact_in(dtype: ir.DataType, *arrays: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore"):
        return all((array.astype(dtype.numpy()) == array).all() for array in arrays)


def _behind(value: ir.Value, *, without: ir.Value | None) -> set[ir.Node]:
    """The nodes that make a value, except nodes that only ``without`` needs."""
    found: set[ir.Node] = set()
    pending: list[ir.Value | None] = [value]
    while pending:
        each = pending.pop()
        producer = None if each is None or each is without else each.producer()
        if producer is not None and producer not in found:
            found.add(producer)
            pending.extend(producer.inputs)
    return found


def _resolved(node: ir.Node, attributes: OpAttributes) -> dict[str, Any]:
    """Attributes of a node in a function body, with the op's values for references to them."""
    values = attributes.to_dict()
    return {
        name: values[attr.ref_attr_name] if attr.ref_attr_name else attr.value
        for name, attr in node.attributes.items()
    }


def _pack_blocks(levels: NDArray[np.int8], bits: int, block_size: int) -> NDArray[np.uint8]:
    """MatMulNBits' codes (N, num_blocks, block_size * bits / 8), lowest bits first."""
    K, N = levels.shape
    zero, per_byte = 1 << (bits - 1), 8 // bits
    codes = np.full((N, -(-K // block_size) * block_size), zero, np.uint8)
    codes[:, :K] = levels.T + np.int8(zero)
    codes = codes.reshape(N, -1, block_size // per_byte, per_byte)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes << shifts, axis=-1)
    return packed
