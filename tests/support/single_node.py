"""Models of one `TernaryIndexedMatMul` node, and indices packed by plain numpy for them.

The packing here is written from docs/index_format.md alone, one weight at a time, so that it shares
nothing with what it tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.schema import (
    DOMAIN,
    DOMAIN_VERSION,
    INPUT_NAMES,
    OP_TYPE,
    ActivationRule,
    OpAttributes,
)

PACKED = {"2bit": (4, 2, 4), "dense": (5, 3, 3), "1bit": (8, 1, 2)}
ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def pack(levels: NDArray[np.int8], attributes: OpAttributes) -> NDArray[np.uint8]:
    """docs/index_format.md section 2, one weight at a time."""
    num_rows, num_columns = levels.shape
    block_size = attributes.block_size
    per_byte = PACKED[attributes.storage][0]
    block_bytes = -(-block_size // per_byte)
    num_tiles, num_blocks = -(-num_columns // 4), -(-num_rows // block_size)
    codes = np.zeros((num_tiles, num_blocks, 4, block_bytes), np.uint8)
    for column in range(num_tiles * 4):
        for block in range(num_blocks):
            for i in range(block_bytes):
                value = 0
                for j in range(per_byte):
                    r = block_bytes * j + i
                    row = block_size * block + r
                    inside = r < block_size and row < num_rows and column < num_columns
                    level = int(levels[row, column]) if inside else 0
                    if attributes.storage == "2bit":
                        value |= (level + 1) << (2 * j)
                    elif attributes.storage == "dense":
                        value += (level + 1) * 3**j
                    else:
                        value |= (level == 1) << j
                codes[column // 4, block, column % 4, i] = value
    return codes


def pack_rsr(
    levels: NDArray[np.int8], attributes: OpAttributes
) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """docs/index_format.md section 3, rows sorted by Python."""
    num_rows, num_columns = levels.shape
    width = attributes.block_width
    num_blocks = -(-num_columns // width)
    if attributes.storage == "base3":
        base, padding, planes = 3, 1, [levels.astype(int) + 1]
    else:
        base, padding, planes = 2, 0, [(levels == 1).astype(int)]
        if attributes.alphabet == "ternary":
            planes.append((levels == -1).astype(int))
    group_rows = attributes.group_size or num_rows
    starts = range(0, num_rows, group_rows)
    permutation = np.zeros((len(planes), num_blocks, num_rows), np.uint16)
    offsets = np.zeros((len(planes), num_blocks, len(starts), base**width + 1), np.uint32)
    for plane, digits in enumerate(planes):
        for block in range(num_blocks):
            cut = digits[:, block * width : (block + 1) * width]
            cut = np.pad(cut, ((0, 0), (0, width - cut.shape[1])), constant_values=padding)
            patterns = [int("".join(map(str, row)), base) for row in cut]
            for group, start in enumerate(starts):
                rows = range(start, min(num_rows, start + group_rows))
                permutation[plane, block, rows.start : rows.stop] = sorted(
                    rows,
                    key=lambda row, of=patterns: of[row],  # type: ignore[misc]
                )
                for pattern in range(base**width + 1):
                    offsets[plane, block, group, pattern] = start + sum(
                        patterns[row] < pattern for row in rows
                    )
    return permutation, offsets


@dataclass(frozen=True)
class Node:
    """A node's attributes and constant inputs, and the weight they stand for."""

    attributes: OpAttributes
    levels: NDArray[np.int8]
    codes: NDArray[Any]
    aux: NDArray[np.uint32]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def tensors(self) -> tuple[NDArray[Any], ...]:
        return self.codes, self.aux, self.scale, self.bias

    @property
    def weight(self) -> NDArray[np.float64]:
        """(K, N) float64."""
        scale = self.scale.astype(np.float64)
        if self.attributes.group_size:
            scale = np.repeat(scale, self.attributes.group_size, axis=0)[: self.attributes.K]
        return self.levels * scale

    def expected(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """The product in float64."""
        return x.astype(np.float64) @ self.weight + self.bias

    def tolerance(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """A bound no float kernel may exceed: docs/op_spec.md with its longest chain, K."""
        unit = 2.0**-24
        terms = self.attributes.K + self.attributes.num_groups + 3
        gamma = terms * unit / (1 - terms * unit)
        wide = np.abs(x.astype(np.float64))
        products = wide @ np.abs(self.weight)
        absmax = wide.max(axis=-1, initial=0, keepdims=True)
        fixed_point = absmax * np.abs(self.weight).sum(axis=0) * 2.0**-22.99
        return gamma * (products + np.abs(self.bias)) + fixed_point + 1e-37


def make_node(
    rng: np.random.Generator, attributes: OpAttributes, *, per_column: bool = False
) -> Node:
    """A random node. Scales are per group where attributes say so, else as per_column says."""
    K, N = attributes.K, attributes.N
    allowed = {"ternary": [-1, 0, 1], "binary_pm": [-1, 1], "binary_01": [0, 1]}
    levels = rng.choice(allowed[attributes.alphabet], size=(K, N)).astype(np.int8)
    if attributes.index_format == "packed":
        codes: NDArray[Any] = pack(levels, attributes)
        aux = np.zeros(1, np.uint32)
    else:
        codes, aux = pack_rsr(levels, attributes)
    shape: tuple[int, ...] = (N,) if per_column else ()
    if attributes.group_size:
        shape = (attributes.num_groups, N)
    scale = np.asarray(rng.uniform(0.5, 2.0, shape), np.float32)
    bias = rng.standard_normal(N).astype(np.float32) if per_column else np.zeros((), np.float32)
    return Node(attributes, levels, codes, aux, scale, bias)


def attribute_variants(K: int, N: int) -> list[OpAttributes]:
    """Every format, storage, alphabet and algorithm once, some with scale groups."""
    packed = OpAttributes(K=K, N=N)
    rsr = OpAttributes(
        K=K, N=N, index_format="rsr", storage="planes", block_size=0, block_width=3, algorithm="rsr"
    )
    return [
        packed,
        replace(packed, group_size=128),
        replace(packed, block_size=16, group_size=32),
        replace(packed, storage="dense"),
        replace(packed, storage="dense", block_size=64, group_size=64),
        replace(packed, storage="1bit", alphabet="binary_pm"),
        replace(packed, storage="1bit", alphabet="binary_01", block_size=32, group_size=32),
        replace(packed, alphabet="binary_pm"),
        rsr,
        replace(rsr, algorithm="rsr++", group_size=48),
        replace(rsr, algorithm="rsr++", alphabet="binary_pm", block_width=5),
        replace(rsr, alphabet="binary_pm", group_size=7),
        replace(rsr, alphabet="binary_01", block_width=1),
        replace(rsr, algorithm="rsr++", alphabet="binary_01"),
        replace(rsr, storage="base3", group_size=48),
        replace(rsr, storage="base3", algorithm="rsr++", block_width=2),
    ]


def int8(attributes: OpAttributes, rule: ActivationRule = "absmax_division") -> OpAttributes:
    """The same with BitNet's activation rule."""
    return replace(
        attributes,
        activation="int8",
        activation_rule=rule,
        activation_epsilon=1e-5,
        activation_qmin=-128,
        activation_qmax=127,
    )


def uint8(attributes: OpAttributes) -> OpAttributes:
    """The same with DynamicQuantizeLinear's activation rule."""
    return replace(
        attributes,
        activation="uint8",
        activation_rule="dynamic_quantize_linear",
        activation_qmax=255,
    )


def label(attributes: OpAttributes) -> str:
    parts: list[str] = [
        attributes.index_format,
        attributes.storage,
        attributes.alphabet,
        attributes.algorithm,
    ]
    if attributes.group_size:
        parts.append(f"group{attributes.group_size}")
    return "-".join(parts)


def make_model(
    node: Node,
    *,
    shape: tuple[int | str, ...] = ("rows", "K"),
    dtype: str = "float32",
    drop_attribute: str | None = None,
    attributes: dict[str, Any] | None = None,
    graph_inputs: tuple[str, ...] = (),
    node_name: str = "/mlp/up_proj",
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """X -> node -> Y; half precision stands between Casts, so that X and Y are float32.

    Args:
        node: attributes and tensors.
        shape: of X, symbolic dimensions by name.
        dtype: of the node's X and Y.
        drop_attribute: left out of the node.
        attributes: written over the node's own.
        graph_inputs: constant inputs that are graph inputs too.
        node_name: of the node.
        opset: of ai.onnx.
        ir_version: of the model.
    """
    written = {**node.attributes.to_dict(), **(attributes or {})}
    if drop_attribute:
        del written[drop_attribute]
    casts = dtype != "float32"
    nodes = [
        helper.make_node(
            OP_TYPE,
            ["X_half" if casts else "X", *INPUT_NAMES[1:]],
            ["Y_half" if casts else "Y"],
            name=node_name,
            domain=DOMAIN,
            **written,
        )
    ]
    if casts:
        nodes.insert(0, helper.make_node("Cast", ["X"], ["X_half"], to=ELEMENT_TYPES[dtype]))
        nodes.append(helper.make_node("Cast", ["Y_half"], ["Y"], to=TensorProto.FLOAT))
    tensors = dict(zip(INPUT_NAMES[1:], node.tensors, strict=True))
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, shape)]
    inputs += [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(tensors[name].dtype), tensors[name].shape
        )
        for name in graph_inputs
    ]
    graph = helper.make_graph(
        nodes,
        "single_node",
        inputs,
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", opset),
            helper.make_opsetid(DOMAIN, DOMAIN_VERSION),
        ],
        ir_version=ir_version,
    )


def without_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 model of `make_model` with X and Y of float16.

    ONNX Runtime drops Casts beside float16 nodes it has no kernel for, and the rounding with them.
    """
    (node,) = (each for each in model.graph.node if each.op_type == OP_TYPE)
    node.input[0], node.output[0] = "X", "Y"
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    del alone.graph.node[:]
    alone.graph.node.append(node)
    for value in (alone.graph.input[0], alone.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return alone
