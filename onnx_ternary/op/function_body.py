"""The op as standard operators: a model-local function that runs where the library is missing.

The function decodes the index tensors of docs/index_format.md, folds the scale into the decoded
weights (level * scale is the original weight, bit for bit), and multiplies. Everything up to the
product depends on initializers alone, so ONNX Runtime's basic optimizations fold it at load; from
opset 12 on the folded model is the original one.

A function must import exactly the model's own opset, so bodies are generated per opset; the
operators used are the ones whose kernels ONNX Runtime's CPU provider has at every opset from 11 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from onnx import FunctionProto, TensorProto, helper

from onnx_ternary.op.body_nodes import (
    ATTRIBUTE_REFERENCE_OPSET,
    CAST_LIKE_OPSET,
    BodyNodes,
    NoBody,
    early_refusal,
)
from onnx_ternary.schema import (
    DOMAIN,
    INPUT_NAMES,
    MAX_BLOCK_WIDTH,
    OP_TYPE,
    Activation,
    ActivationRule,
    Alphabet,
    IndexFormat,
    OpAttributes,
    Storage,
)

# BitShift, Range, CumSum, ScatterElements, Pad and Round with their present meaning.
MIN_OPSET = 11


@dataclass(frozen=True, slots=True)
class BodyVariant:
    """What a body depends on and cannot read from the node: equal variants share one function.

    Fields are empty or zero where the body reads the value from the node's attributes or from
    tensor shapes: `x_dtype` (an onnx.TensorProto type) from opset 15 on, `half` (one as well) for
    float32, `block_size`,
    `group_size` and the `activation_*` numbers from opset 12 on, `alphabet` where the storage
    decodes all alphabets alike.
    """

    index_format: IndexFormat
    storage: Storage
    alphabet: Alphabet
    per_group: bool
    activation: Activation
    activation_rule: ActivationRule
    # Below opset 12 N comes from the shape of scale or bias, so one of them has to have it.
    has_n: bool = True
    x_dtype: int = 0
    half: int = 0
    block_size: int = 0
    group_size: int = 0
    activation_epsilon: float = 0.0
    activation_qmin: int = 0
    activation_qmax: int = 0

    @classmethod
    def of(
        cls, attributes: OpAttributes, *, x_dtype: int, scale_rank: int, bias_rank: int, opset: int
    ) -> BodyVariant:
        """The variant of one node.

        Args:
            attributes: the node's attributes.
            x_dtype: onnx.TensorProto type of X and Y (FLOAT, FLOAT16 or BFLOAT16).
            scale_rank: rank of the scale, 0, 1 or 2.
            bias_rank: rank of the bias. Below opset 12 a node whose scale is () needs its bias
                written as (N,), zeros if there is none: nothing else tells the body N.
            opset: the model's ai.onnx opset.
        """
        by_reference = opset >= ATTRIBUTE_REFERENCE_OPSET
        splits_alphabets = attributes.storage in ("1bit", "planes")
        packed_in_base3 = attributes.storage == "dense"
        return cls(
            index_format=attributes.index_format,
            storage=attributes.storage,
            alphabet=attributes.alphabet if splits_alphabets else "ternary",
            per_group=scale_rank == 2,
            activation=attributes.activation,
            activation_rule=attributes.activation_rule,
            has_n=by_reference or scale_rank > 0 or bias_rank > 0,
            x_dtype=0 if opset >= CAST_LIKE_OPSET else x_dtype,
            half=0 if x_dtype == TensorProto.FLOAT else x_dtype,
            block_size=0 if by_reference or not packed_in_base3 else attributes.block_size,
            group_size=0 if by_reference or scale_rank < 2 else attributes.group_size,
            activation_epsilon=0.0 if by_reference else attributes.activation_epsilon,
            activation_qmin=0 if by_reference else attributes.activation_qmin,
            activation_qmax=0 if by_reference else attributes.activation_qmax,
        )

    @property
    def description(self) -> str:
        """The fields that differ from a plain float product, for messages."""
        parts: list[str] = [self.index_format, self.storage]
        if self.storage in ("1bit", "planes"):
            parts.append(self.alphabet)
        if self.per_group:
            parts.append(f"groups of {self.group_size}" if self.group_size else "groups")
        if self.activation == "uint8":
            parts.append("uint8")
        elif self.activation == "int8":
            parts.append(self.activation_rule)
            if self.activation_qmax:
                clip = f"{self.activation_qmin}..{self.activation_qmax}"
                parts.append(f"epsilon {self.activation_epsilon:g} clip {clip}")
        if self.block_size:
            parts.append(f"blocks of {self.block_size}")
        if self.x_dtype:
            parts.append(TensorProto.DataType.Name(self.x_dtype).lower())
        return " ".join(parts)


def make_function_body(
    variants: Sequence[BodyVariant], opset: int, ir_version: int
) -> FunctionProto | NoBody:
    """Build the function for a model whose nodes have these variants.

    Args:
        variants: one per node, in any order, with repetitions; made for the same opset.
        opset: the ai.onnx opset the model imports.
        ir_version: the model's IR version, as it will be saved.

    Returns:
        The function, or why there is none.
    """
    refusal = early_refusal(OP_TYPE, len(variants), opset, ir_version, MIN_OPSET)
    if refusal is not None:
        return refusal
    if not all(variant.has_n for variant in variants):
        return NoBody(
            f"at opset {opset} a function finds N only in the shape of scale or bias, and a node "
            "has neither with N entries; its bias has to be written as (N,)"
        )
    # The body for groups serves scales per column and matrix too; the plain body is smaller.
    per_group = opset >= ATTRIBUTE_REFERENCE_OPSET and any(v.per_group for v in variants)
    # bfloat16 has no Sum on the CPU; without one, float16 only loses range between products.
    halves = {v.half for v in variants}
    half = 0 if TensorProto.BFLOAT16 in halves else max(halves)
    distinct = {replace(v, per_group=per_group or v.per_group, half=half): None for v in variants}
    if len(distinct) > 1:
        return NoBody(
            f"the nodes would need {len(distinct)} functions under one name "
            f"({', '.join(variant.description for variant in distinct)}); convert with one storage "
            "for all"
        )
    return _function(next(iter(distinct)), opset)


def _function(variant: BodyVariant, opset: int) -> FunctionProto:
    nodes = BodyNodes(opset)
    decode = _packed_levels if variant.index_format == "packed" else _rsr_levels
    _product(nodes, variant, decode(nodes, variant))
    return helper.make_function(
        DOMAIN,
        OP_TYPE,
        list(INPUT_NAMES),
        ["Y"],
        nodes.protos,
        [helper.make_opsetid("", opset)],
        attributes=[field.name for field in fields(OpAttributes)],
        doc_string="Y = X @ W + bias in standard operators; onnx-ternary's library runs it faster "
        "and without expanding W.",
    )


def _num_columns(nodes: BodyNodes) -> str:
    """int64 (1,): N."""
    if nodes.opset >= ATTRIBUTE_REFERENCE_OPSET:
        return nodes.integer("N", 0)
    # Broadcasting gives (N,) or (num_groups, N) whichever of the two is a scalar.
    return nodes.last_dim(nodes("Add", "scale", "bias"))


def _packed_levels(nodes: BodyNodes, variant: BodyVariant) -> str:
    """Levels as float32 (K, N) from packed codes; (rows padded to a block, N) below opset 12."""
    # (column tiles, K blocks, 4, block_bytes) -> (.., 4, fields a byte, block_bytes)
    codes = nodes.reshape("codes", [0, 0, 0, 1, -1])
    if variant.storage == "dense":
        digits = nodes.constant([[3**d] for d in range(5)], np.int32)
        codes = nodes("Div", nodes.cast(codes, TensorProto.INT32), digits)
        codes = nodes("Mod", codes, nodes.constant(3, np.int32))
    else:
        bits = 2 if variant.storage == "2bit" else 1
        shifts = nodes.constant([[shift] for shift in range(0, 8, bits)], np.uint8)
        codes = nodes("BitShift", codes, shifts, direction="RIGHT")
        codes = nodes("Mod", codes, nodes.constant(1 << bits, np.uint8))
    codes = nodes.reshape(codes, [0, 0, 0, -1])
    if variant.storage == "dense":  # five digits per byte may hold more than a block
        codes = nodes.first(codes, nodes.integer("block_size", variant.block_size), [3])
    codes = nodes("Transpose", codes, perm=[1, 3, 0, 2])
    codes = nodes("Flatten", codes, axis=2)
    # aux says nothing here. An input no node reads is dropped by tools (onnxslim 0.1.98), and the
    # calls, which still have five inputs, then do not fit.
    start = nodes("Mod", nodes.cast("aux", TensorProto.INT64), _one(nodes))
    if nodes.opset >= ATTRIBUTE_REFERENCE_OPSET:
        shape = nodes("Concat", nodes.integer("K", 0), _num_columns(nodes), axis=0)
        codes = nodes.first(codes, shape, [0, 1], nodes("Concat", start, start, axis=0))
    else:
        codes = nodes.first(codes, _num_columns(nodes), [1], start)
    levels = nodes.cast(codes, TensorProto.FLOAT)
    if variant.storage == "1bit":
        return _bits_to_levels(nodes, variant, levels)
    return nodes("Sub", levels, nodes.constant(1, np.float32))


def _bits_to_levels(nodes: BodyNodes, variant: BodyVariant, bits: str) -> str:
    if variant.alphabet == "binary_01":
        return bits
    return nodes("Sub", nodes("Add", bits, bits), nodes.constant(1, np.float32))


def _rsr_levels(nodes: BodyNodes, variant: BodyVariant) -> str:
    """Levels as float32 (K, N) from a permutation and segment offsets."""
    permutation = nodes.cast("codes", TensorProto.INT64)  # (num_planes, num_blocks, K)
    # (num_planes, num_blocks, num_groups, num_patterns + 1) -> groups and patterns in one axis
    all_offsets = nodes.cast("aux", TensorProto.INT64)
    offsets = nodes.reshape(all_offsets, [0, 0, -1])

    # The row at sorted position j has the pattern that the number of offsets <= j tells. Offsets
    # and positions are sorted together (2 * offset < 2 * j + 1 <=> offset <= j) and counted.
    positions = nodes(
        "CumSum",
        nodes("Add", nodes("Mul", permutation, _zero(nodes)), _one(nodes)),
        nodes.constant(2, np.int64),
        exclusive=1,
    )
    two = nodes.constant(2, np.int64)
    keys = nodes(
        "Concat",
        nodes("Mul", offsets, two),
        nodes("Add", nodes("Mul", positions, two), _one(nodes)),
        axis=2,
    )
    sorted_keys, sorted_at = nodes.sort(keys)
    is_offset = nodes("Sub", _one(nodes), nodes("Mod", sorted_keys, two))
    counts = nodes("CumSum", is_offset, nodes.constant(2, np.int64))
    counts = nodes("ScatterElements", keys, sorted_at, counts, axis=2)
    counts = nodes("Slice", counts, nodes.last_dim(offsets), *nodes.to_end_of(2))
    # Every group before a row adds num_patterns + 1, its own start adds one.
    patterns = nodes("Mod", nodes("Sub", counts, _one(nodes)), nodes.last_dim(all_offsets))
    by_row = nodes("ScatterElements", permutation, permutation, patterns, axis=2)

    base = 3 if variant.storage == "base3" else 2
    widest = MAX_BLOCK_WIDTH[variant.storage]
    powers = nodes.constant([base**d for d in reversed(range(widest))], np.int64)
    num_patterns = nodes("Sub", nodes.last_dim(all_offsets), _one(nodes))
    # base^(block_width - 1) .. 1: the powers below num_patterns, the last block_width ones.
    is_used = nodes.cast(nodes("Less", powers, num_patterns), TensorProto.INT64)
    block_width = nodes("ReduceSum", is_used, keepdims=1)
    powers = nodes("Slice", powers, nodes("Neg", block_width), *nodes.to_end_of(0))
    digits = nodes(
        "Div",
        nodes.cast(nodes.reshape(by_row, [0, 0, 0, 1]), TensorProto.INT32),
        nodes.cast(powers, TensorProto.INT32),
    )
    digits = nodes("Mod", digits, nodes.constant(base, np.int32))
    levels = nodes.cast(digits, TensorProto.FLOAT)  # (num_planes, num_blocks, K, block_width)
    first = nodes("Gather", levels, nodes.constant(0, np.int64), axis=0)
    if variant.storage == "base3":
        levels = nodes("Sub", first, nodes.constant(1, np.float32))
    elif variant.alphabet == "ternary":
        second = nodes("Gather", levels, nodes.constant(1, np.int64), axis=0)
        levels = nodes("Sub", first, second)
    else:
        levels = _bits_to_levels(nodes, variant, first)
    levels = nodes("Flatten", nodes("Transpose", levels, perm=[1, 0, 2]), axis=1)
    return nodes.first(levels, _num_columns(nodes), [1])


def _zero(nodes: BodyNodes) -> str:
    return nodes.constant(0, np.int64)


def _one(nodes: BodyNodes) -> str:
    return nodes.constant(1, np.int64)


def _product(nodes: BodyNodes, variant: BodyVariant, levels: str) -> None:
    """Y from X and the levels, (K, N) or padded along K below opset 12."""
    # Integer sums of quantized activations are exact; a scale of the whole column waits for them.
    scale_last = variant.activation != "float" and not variant.per_group
    weight = levels if scale_last else _scaled(nodes, variant, levels)
    # ONNX Runtime computes float16 operators it has no kernel for, MatMul among them, in float32,
    # and so what lies between two of them. Cast is none: with a body that begins and ends with it,
    # values in front and behind would overflow that do not in the original. Sum is one.
    between_sums = variant.half == TensorProto.FLOAT16
    x = nodes("Sum", "X") if between_sums else "X"
    if variant.x_dtype != TensorProto.FLOAT:
        x = nodes.cast(x, TensorProto.FLOAT)
    if nodes.opset < ATTRIBUTE_REFERENCE_OPSET and variant.index_format == "packed":
        weight = nodes.first(weight, nodes.last_dim("X"), [0])

    if variant.activation == "int8":
        quantized, row_scale = _quantized(nodes, variant, x)
        sums = nodes("Div", nodes("MatMul", quantized, weight), row_scale)
        if scale_last:
            sums = nodes("Mul", sums, "scale")
    elif variant.activation == "uint8":
        sums = _unsigned_product(nodes, x, weight)
    else:
        sums = nodes("MatMul", x, weight)

    # ONNX Runtime (1.32) takes an Add behind MatMulInteger, Cast and Mul for the bias of
    # MatMulIntegerToFloat and drops axes it adds. A bias of 0 is removed and leaves the place to
    # the model's next Add; Sum stays, and computes the same.
    add = "Sum" if variant.activation == "uint8" else "Add"
    last = "" if between_sums else "Y"
    if variant.x_dtype == TensorProto.FLOAT:
        y = nodes(add, sums, "bias", output=last)
    elif variant.x_dtype:
        y = nodes("Cast", nodes(add, sums, "bias"), output=last, to=variant.x_dtype)
    else:
        y = nodes("CastLike", nodes(add, sums, "bias"), "X", output=last)
    if between_sums:
        nodes("Sum", y, output="Y")


def _scaled(nodes: BodyNodes, variant: BodyVariant, levels: str) -> str:
    if not variant.per_group:
        return nodes("Mul", levels, "scale")
    # (num_groups, N) -> (num_groups, group_size, N) -> (rows, N), the last group cut. () and (N,)
    # are one group of all rows.
    rows = nodes.first(nodes("Shape", levels), nodes.constant([1], np.int64), [0])
    group_size = nodes.integer("group_size", variant.group_size)
    is_grouped = nodes.cast(group_size, TensorProto.BOOL)
    group_size = nodes("Where", is_grouped, group_size, rows)
    scale = nodes("Add", "scale", nodes.constant([[0]], np.float32))
    scale = nodes.reshape(scale, [0, 1, -1])
    one = nodes.constant([1], np.int64)
    scale = nodes("Expand", scale, nodes("Concat", one, group_size, one, axis=0))
    return nodes("Mul", levels, nodes.first(nodes("Flatten", scale, axis=2), rows, [0]))


def _unsigned_product(nodes: BodyNodes, x: str, levels: str) -> str:
    """Y without bias, float32: docs/op_spec.md's uint8 rule."""
    names = [f"{name}_{len(nodes.protos)}" for name in ("q", "x_scale", "x_zero_point")]
    nodes.protos.append(helper.make_node("DynamicQuantizeLinear", [x], names))
    q, x_scale, zero_point = names
    levels = nodes.cast(levels, TensorProto.INT8)
    sums = nodes.cast(nodes("MatMulInteger", q, levels, zero_point), TensorProto.FLOAT)
    # 0 * x is NaN where x is NaN or inf: carry it to the whole tensor.
    nothing = nodes("ReduceMean", nodes("Mul", x, nodes.constant(0, np.float32)), keepdims=0)
    x_scale = nodes("Add", x_scale, nothing)
    return nodes("Mul", sums, nodes("Mul", x_scale, "scale"))


def _quantized(nodes: BodyNodes, variant: BodyVariant, x: str) -> tuple[str, str]:
    """Integer-valued float32 rows and their scale s (..., 1): docs/op_spec.md's int8 rule."""
    epsilon = nodes.number("activation_epsilon", variant.activation_epsilon, "value_float")
    qmin = nodes.number("activation_qmin", variant.activation_qmin, "value_int")
    qmax = nodes.number("activation_qmax", variant.activation_qmax, "value_int")
    absmax = nodes("Max", nodes.reduce_last("ReduceMax", nodes("Abs", x)), epsilon)
    # 0 * x is NaN where x is NaN or inf, and maxima may drop it: carry it to the whole row.
    nothing = nodes("Mul", x, nodes.constant(0, np.float32))
    absmax = nodes("Add", absmax, nodes.reduce_last("ReduceMean", nothing))
    if variant.activation_rule == "absmax_division":
        row_scale = nodes("Div", qmax, absmax)
    else:
        row_scale = nodes("Mul", nodes("Reciprocal", absmax), qmax)
    rounded = nodes("Round", nodes("Mul", x, row_scale))
    return nodes("Clip", rounded, qmin, qmax), row_scale
