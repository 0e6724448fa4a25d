"""Gathers of a table that a product multiplies by, and gathers of other ones.

A case here has two nodes that share a table, so tests/graph_passes/test_tables.py runs this file,
not the tests of `FILES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tests.catalogue.case import Array, column_scales, ternary
from tests.catalogue.matmul_nbits import pack

ROWS, WIDTH = 50, 256
MICROSOFT = "com.microsoft"
node = helper.make_node


def model(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Array],
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 17,
    outputs: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """ids -> ... -> e, y."""
    sizes = outputs or {"e": WIDTH, "y": ROWS}
    graph = helper.make_graph(
        list(nodes),
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [
            helper.make_tensor_value_info(name, dtype, ["batch", "sequence", size])
            for name, size in sizes.items()
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


GATHER = node("Gather", ["t", "ids"], ["e"], "embed")
TRANSPOSE = node("Transpose", ["t"], ["w"], perm=[1, 0])
HEAD = node("MatMul", ["e", "w"], ["y"], "head")


def weight(**options: Any) -> Array:
    return ternary(WIDTH, ROWS, **options)


def table(**options: Any) -> Array:
    return np.ascontiguousarray(weight(**options).T)


def tied_head() -> onnx.ModelProto:
    return model([GATHER, TRANSPOSE, HEAD], {"t": table(scale=column_scales(ROWS))})


def binary_head() -> onnx.ModelProto:
    return model([GATHER, TRANSPOSE, HEAD], {"t": table(levels=(-1, 1))})


def grouped_head() -> onnx.ModelProto:
    scale = np.arange(1, 2 * ROWS + 1, dtype=np.float32).reshape(2, ROWS)
    return model([GATHER, TRANSPOSE, HEAD], {"t": table(scale=scale, group_size=128)})


def tied_gather() -> onnx.ModelProto:
    """The table is stored as the head reads it, and a Transpose stands in front of the Gather."""
    turned = node("Transpose", ["w"], ["t"], perm=[1, 0])
    return model([turned, GATHER, HEAD], {"w": weight()})


def float16() -> onnx.ModelProto:
    constants = {"t": table(dtype=np.float16)}
    return model([GATHER, TRANSPOSE, HEAD], constants, dtype=TensorProto.FLOAT16)


def gemm() -> onnx.ModelProto:
    nodes = [
        GATHER,
        node("Reshape", ["e", "rows"], ["flat"]),
        node("Gemm", ["flat", "t"], ["z"], "head", transB=1),
        node("Reshape", ["z", "back"], ["y"]),
    ]
    shapes = {"rows": np.array([-1, WIDTH]), "back": np.array([2, 3, ROWS])}
    return model(nodes, {"t": table(), **shapes})


def cast_head() -> onnx.ModelProto:
    """The table is float16 and everything else float32: two constants of one tensor."""
    nodes = [
        node("Gather", ["t", "ids"], ["half"], "embed"),
        node("Cast", ["half"], ["e"], to=TensorProto.FLOAT),
        node("Cast", ["t"], ["wide"], to=TensorProto.FLOAT),
        node("Transpose", ["wide"], ["w"], perm=[1, 0]),
        HEAD,
    ]
    return model(nodes, {"t": table(dtype=np.float16)})


def dequantized() -> onnx.ModelProto:
    nodes = [node("DequantizeLinear", ["codes", "scale"], ["t"]), GATHER, TRANSPOSE, HEAD]
    levels = np.sign(table()).astype(np.int8)
    return model(nodes, {"codes": levels, "scale": np.array(0.25, np.float32)})


def scaled_head() -> onnx.ModelProto:
    """The product absorbs a factor that the rows do not have."""
    nodes = [
        GATHER,
        TRANSPOSE,
        node("MatMul", ["e", "w"], ["z"], "head"),
        node("Mul", ["z", "c"], ["y"]),
    ]
    return model(nodes, {"t": table(), "c": np.array(0.125, np.float32)})


def blocks(
    bits: int = 2,
    *,
    levels: Sequence[int] = (-1, 0, 1),
    zero: int | None = 1,
    step: int = 1,
    block_size: int = 128,
    reshape_table: bool = False,
) -> onnx.ModelProto:
    """GatherBlockQuantized, and MatMulNBits whose B is a Reshape of the table, or the reverse."""
    numbers = np.sign(table(levels=levels)).astype(np.int16) * step
    codes = pack(numbers + (2 ** (bits - 1) if zero is None else zero), bits)
    num_blocks = WIDTH // block_size
    shape = (ROWS, num_blocks, block_size * bits // 8)
    scale = (np.arange(ROWS * num_blocks, dtype=np.float32) + 1).reshape(ROWS, -1) / 64
    constants: dict[str, Array] = {"scales": scale}
    gather, product = ["table", "ids", "scales"], ["e", "b", "scales"]
    if reshape_table:
        constants |= {"b": codes.reshape(shape), "shape": np.array(codes.shape)}
        turned = node("Reshape", ["b", "shape"], ["table"])
    else:
        constants |= {"table": codes, "shape": np.array(shape)}
        turned = node("Reshape", ["table", "shape"], ["b"])
    if zero is not None:
        constants["zeros"] = pack(np.full(scale.shape, zero, np.uint8), bits)
        gather.append("zeros")
        product.append("zeros")
    sizes = {"bits": bits, "block_size": block_size}
    nodes = [
        turned,
        node("GatherBlockQuantized", gather, ["e"], "embed", domain=MICROSOFT, **sizes),
        node("MatMulNBits", product, ["y"], "head", domain=MICROSOFT, K=WIDTH, N=ROWS, **sizes),
    ]
    return model(nodes, constants)


TIED: dict[str, Callable[[], onnx.ModelProto]] = {
    each.__name__: each
    for each in (
        *(tied_head, binary_head, grouped_head, tied_gather, float16),
        *(gemm, cast_head, dequantized, scaled_head),
    )
}
BLOCKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "2bit": blocks,
    "2bit_default_zero": lambda: blocks(zero=None),
    "2bit_binary": lambda: blocks(levels=(-1, 1)),  # codes 0 and 2
    "2bit_table_is_reshaped": lambda: blocks(reshape_table=True),
    "2bit_block_32": lambda: blocks(block_size=32),
    "4bit": lambda: blocks(4, zero=8, step=3),
    "4bit_default_zero": lambda: blocks(4, zero=None),
    "8bit": lambda: blocks(8, zero=128),
}


def other_table() -> onnx.ModelProto:
    """Another table, of the same shape."""
    gather = node("Gather", ["other", "ids"], ["e"], "embed")
    return model([gather, TRANSPOSE, HEAD], {"t": table(), "other": table(seed=5)})


def columns() -> onnx.ModelProto:
    """The gather takes columns, not rows."""
    nodes = [
        node("Gather", ["w", "ids"], ["f"], "embed", axis=1),
        node("Transpose", ["f"], ["e"], perm=[1, 2, 0]),
        HEAD,
    ]
    return model(nodes, {"w": weight()})


NEAR_MISSES: dict[str, Callable[[], onnx.ModelProto]] = {
    "other_table": other_table,
    "columns": columns,
}
