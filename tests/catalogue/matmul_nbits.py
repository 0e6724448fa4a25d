"""MatMulNBits: weights of 2, 4 and 8 bits in blocks with scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from tests.catalogue.case import (
    F32,
    MICROSOFT,
    OVERRIDABLE,
    ROW,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    model,
    node,
    overridable,
)
from tests.catalogue.dequantize import BLOCK, codes

# Versions on which MatMulNBits with 2 and 8 bits, and int2 tensors, are known to run.
FEW_BITS = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 26)


def pack(numbers: Array, bits: int) -> Array:
    """(..., n) small numbers as bytes, lowest bits first, the last byte padded with zeros."""
    per_byte = 8 // bits
    rest = -numbers.shape[-1] % per_byte
    padded = np.pad(numbers.astype(np.uint8), [(0, 0)] * (numbers.ndim - 1) + [(0, rest)])
    shifted = padded.reshape(*padded.shape[:-1], -1, per_byte) << np.arange(0, 8, bits)
    return shifted.sum(axis=-1).astype(np.uint8)


def nbits(
    bits: int = 2,
    *,
    rows: int = K,
    block_size: int = BLOCK,
    stored: Sequence[int] = (0, 1, 2),
    zero: float | None = 1,
    zero_dtype: Any = np.uint8,
    dtype: Any = np.float32,
    bias: Array | None = None,
    runtime_bias: bool = False,
    grows: bool = False,
    extra: Mapping[str, Array] | None = None,
    after: tuple[str, Array] | None = None,
    weight_change: Callable[[Array], Array] = lambda each: each,
    **attributes: int,
) -> Case:
    """MatMulNBits; `zero` None leaves the zero points out, 2^(bits - 1) then."""
    num_blocks = -(-rows // block_size)
    numbers = weight_change(codes(rows, N, levels=stored, dtype=np.uint8)).T
    padded = np.pad(numbers, [(0, 0), (0, num_blocks * block_size - rows)])
    scale = ((np.arange(N * num_blocks) + 1) * 0.013).reshape(N, num_blocks).astype(dtype)
    constants = {
        "B": pack(padded.reshape(N, num_blocks, block_size), bits),
        "scales": scale.reshape(-1),
    }
    inputs = {0: "x", 1: "B", 2: "scales"}
    if zero is not None:
        zeros = np.full((N, num_blocks), zero, zero_dtype)
        constants["zeros"] = (pack(zeros, bits) if zero_dtype == np.uint8 else zeros).reshape(-1)
        inputs[3] = "zeros"
    if bias is not None:
        constants["bias"] = bias
        inputs[5] = "bias"
    for at, (name, array) in enumerate((extra or {}).items()):
        constants[name] = array
        inputs[4 + at] = name
    given = []
    x_dtype = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if runtime_bias:
        given.append(helper.make_tensor_value_info("bias", x_dtype, (N,)))
        inputs[5] = "bias"
    last = "p" if after else "y"
    nodes = [
        helper.make_node(
            "MatMulNBits",
            [inputs.get(at, "") for at in range(max(inputs) + 1)],
            [last],
            name="product",
            domain="com.microsoft",
            **{"K": rows, "N": N, "bits": bits, "block_size": block_size, **attributes},
        )
    ]
    if after:
        constants["after"] = after[1]
        nodes.append(node(after[0], ["p", "after"], "y"))
    made = model(
        nodes,
        constants,
        x_shape=("batch", rows),
        x_dtype=x_dtype,
        y_dtype=x_dtype,
        inputs=given,
        opsets=MICROSOFT,
    )
    # Shape inference does not know the op.
    shape = helper.make_tensor_value_info("y", x_dtype, ("batch", N))
    made.graph.output[0].CopyFrom(shape)
    center = 2 ** (bits - 1) if zero is None else zero
    levels = numbers.astype(F32) - F32(center)
    spread = np.repeat(scale.astype(F32), block_size, axis=1)[:, :rows]
    weight = (levels * spread).astype(dtype).T.astype(np.float64)
    pattern = f"MatMulNBits -> {after[0]}" if after else "MatMulNBits"
    return Case(made, (pattern,), (None if after else weight,), grows=grows)


def with_attribute(made: onnx.ModelProto, name: str, value: int) -> onnx.ModelProto:
    (attribute,) = (each for each in made.graph.node[0].attribute if each.name == name)
    attribute.i = value
    return made


def without_constant(made: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """An initializer becomes an input."""
    (constant,) = (each for each in made.graph.initializer if each.name == name)
    given = helper.make_tensor_value_info(name, constant.data_type, constant.dims)
    made.graph.input.append(given)
    made.graph.initializer.remove(constant)
    return made


HITS: dict[str, Callable[[], Case]] = {
    "nbits": lambda: nbits(grows=True),
    "nbits_default_zero_point": lambda: nbits(stored=(1, 2, 3), zero=None, grows=True),
    "nbits_float_zero_point": lambda: nbits(zero_dtype=F32),
    "nbits_half_zero_point": lambda: nbits(stored=(1, 2), zero=1.5, zero_dtype=F32),
    "nbits_float16": lambda: nbits(dtype=np.float16, grows=True),
    "nbits_bfloat16": lambda: nbits(dtype=ml_dtypes.bfloat16, grows=True),
    **{
        f"nbits_block_{size}": lambda size=size: nbits(rows=2 * size, block_size=size, grows=True)
        for size in (32, 64, 128, 256)
    },
    "nbits_last_block_short": lambda: nbits(rows=72, block_size=32, grows=True),
    "nbits_one_block": lambda: nbits(rows=24, block_size=32, grows=True),
    "nbits_bias": lambda: nbits(bias=ROW, grows=True),
    "nbits_runtime_bias": lambda: nbits(runtime_bias=True, grows=True),
    "nbits_scale_after": lambda: nbits(after=("Mul", ROW), grows=True),
    "nbits_accuracy_1": lambda: nbits(accuracy_level=1, grows=True),
    "nbits_binary": lambda: nbits(stored=(0, 2), grows=True),
    "nbits_4": lambda: nbits(4, stored=(7, 8, 9), zero=None),
    "nbits_4_zero_point": lambda: nbits(4, stored=(0, 3, 6), zero=3),
    "nbits_8": lambda: nbits(8, stored=(0, 128), zero=None),
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "nbits_overridable_codes": lambda: Miss(
        overridable(nbits().model, "B"), f"weight 'B' {OVERRIDABLE}"
    ),
    "nbits_no_rows": lambda: Miss(
        with_attribute(nbits().model, "K", 0), "attribute K is missing or not positive"
    ),
    "nbits_four_codes": lambda: Miss(
        nbits(stored=(0, 1, 2, 3)).model,
        "weight has codes 0, 1, 2 and 3 with zero point 1 in column 0, which are levels -1, 0, 1 "
        "and 2; expected 0 and plus or minus one magnitude",
    ),
    "nbits_one_code_off": lambda: Miss(
        nbits(weight_change=lambda each: changed(each, 20, 4, 3)).model,
        "weight has codes 0, 1, 2 and 3 with zero point 1 in column 4, which are levels -1, 0, 1 "
        "and 2; expected 0 and plus or minus one magnitude",
    ),
    "nbits_default_zero_point_is_2": lambda: Miss(
        nbits(zero=None).model,
        "weight has codes 0, 1 and 2 with zero point 2 in column 0, which are levels -2, -1 and 0; "
        "expected 0 and plus or minus one magnitude",
    ),
    "nbits_zero_point_between": lambda: Miss(
        nbits(zero=1.5, zero_dtype=F32).model,
        "weight has codes 0, 1 and 2 with zero point 1.5 in column 0, which are levels -1.5, -0.5 "
        "and 0.5; expected 0 and plus or minus one magnitude",
    ),
    "nbits_ordinary_4": lambda: Miss(
        nbits(4, stored=range(16), zero=None).model,
        "weight has 16 different codes in column 0, expected at most 3",
    ),
    "nbits_g_idx": lambda: Miss(
        nbits(extra={"g_idx": np.zeros(K, np.int32)}).model,
        "weight 'B' has its rows in groups of another order (g_idx), which this version does not "
        "handle",
    ),
    "nbits_prepacked": lambda: Miss(
        nbits(weight_prepacked=1).model,
        "weight 'B' is packed for another device (weight_prepacked)",
    ),
    "nbits_3_bits": lambda: Miss(
        with_attribute(nbits().model, "bits", 3), "bits = 3; 2, 4 and 8 are handled"
    ),
    "nbits_wrong_shape": lambda: Miss(
        with_attribute(nbits().model, "N", N + 1),
        "weight 'B' is uint8 of shape (20, 3, 4), expected uint8 of shape (21, 3, 4)",
    ),
    "nbits_scales_at_run_time": lambda: Miss(
        without_constant(nbits().model, "scales"),
        "no constant weight: 'scales' is given at run time",
    ),
}
