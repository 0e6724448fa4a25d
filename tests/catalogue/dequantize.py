"""Weights behind DequantizeLinear, alone or as QCDQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    MICROSOFT,
    OVERRIDABLE,
    ROW,
    TWO,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    matmul,
    model,
    node,
    overridable,
    ternary,
)

# Why a weight stays whose negative levels have one more step than its positive ones.
CLIPPED = (
    "a ternary matrix that was quantized to a range with one more level below zero, so that its "
    "positive weights are too small; build the model in float32 or with 2 bits instead, or from "
    "its checkpoint with 'onnx-ternary build'"
)

BLOCK = 16
BLOCKS = (np.arange(3 * N, dtype=F32).reshape(3, N) + 1) * F32(0.013)
_SMALL_TYPES = {
    TensorProto.INT4,
    TensorProto.UINT4,
    getattr(TensorProto, "INT2", -1),
    getattr(TensorProto, "UINT2", -1),
}


def codes(
    rows: int = K,
    columns: int = N,
    *,
    levels: Sequence[int] = (-1, 0, 1),
    dtype: Any = np.int8,
    seed: int = 0,
) -> Array:
    """(rows, columns) integers, every level in every column."""
    return ternary(rows, columns, scale=1.0, levels=levels, dtype=dtype, seed=seed)


def tensor(name: str, array: Array, dtype: int | None = None) -> onnx.TensorProto:
    """A tensor, also of the types numpy does not have."""
    if dtype in _SMALL_TYPES:
        return helper.make_tensor(name, dtype, array.shape, array.reshape(-1).tolist())
    return numpy_helper.from_array(array, name)


def dequantized(
    stored: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    dtype: int | None = None,
    axis: int = 1,
    block_size: int = 0,
    steps: Sequence[str] = ("Transpose",),
    x_dtype: int = TensorProto.FLOAT,
    domain: str = "",
    opset: int = 17,
    weight: Array | None = None,
    output_dtype: int = 0,
    grows: bool = False,
) -> Case:
    """``x @ steps(DequantizeLinear(stored))``; `stored` is (K, N), (N, K) with a Transpose."""
    steps = [] if axis == 1 and not block_size and steps == ("Transpose",) else list(steps)
    tensors = [tensor("codes", stored, dtype), tensor("scale", scale)]
    inputs = ["codes", "scale"]
    if zero_point is not None:
        tensors.append(tensor("zero", zero_point, dtype))
        inputs.append("zero")
    attributes: dict[str, int] = {"axis": axis} if scale.size > 1 else {}
    if block_size:
        attributes["block_size"] = block_size
    if output_dtype:
        attributes["output_dtype"] = output_dtype
    outputs = [*(f"step{at}" for at in range(len(steps))), "w"]
    nodes = [node("DequantizeLinear", inputs, outputs[0], domain=domain, **attributes)]
    for at, step in enumerate(steps):
        extra = {"to": x_dtype} if step == "Cast" else {}
        nodes.append(node(step, [outputs[at]], outputs[at + 1], **extra))
    made = model(
        [*nodes, matmul()],
        {},
        x_dtype=x_dtype,
        y_dtype=x_dtype,
        opset=opset,
        opsets=MICROSOFT if domain else (),
        ir_version=10 if opset > 20 else 8,
    )
    made.graph.initializer.extend(tensors)
    if weight is None:
        weight = dense(stored, scale, zero_point, axis=axis, block_size=block_size)
    for step in steps:
        if step == "Transpose":
            weight = weight.T
    return Case(made, ("MatMul",), (weight.astype(np.float64),), grows=grows)


def dense(
    stored: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
) -> Array:
    """The floats as the specification of DequantizeLinear says."""

    def spread(numbers: Array) -> Array:
        if numbers.size == 1:
            return numbers.reshape(())
        if block_size:
            return np.repeat(numbers, block_size, axis).take(range(stored.shape[axis]), axis)
        return numbers[:, None] if axis == 0 else numbers

    levels = stored.astype(np.int32)
    if zero_point is not None:
        levels = levels - spread(zero_point.astype(np.int32))
    with np.errstate(over="ignore"):
        return (levels.astype(F32) * spread(scale.astype(F32))).astype(scale.dtype)


def per_tensor(stored: Array, zero: int | None = None, **kwargs: Any) -> Case:
    """One scale, 0.25; the zero point has the codes' type."""
    zero_point = None if zero is None else np.array(zero, stored.dtype)
    return dequantized(stored, np.array(0.25, F32), zero_point, **kwargs)


def one_matrix() -> Case:
    """Codes (1, K, N) with a scale each column."""
    stored, scale = codes(), ROW[:N]
    made = model(
        [node("DequantizeLinear", ["codes", "scale"], "w", axis=2), matmul()],
        {"codes": stored[None], "scale": scale},
        x_shape=(2, 3, K),
    )
    return Case(made, ("MatMul",), (dense(stored, scale, axis=1).astype(np.float64),))


def gemm_trans_b() -> Case:
    """quantize_static's Gemm: codes (N, K) with a scale each row, an int32 bias."""
    stored = codes(N, K)
    scale = ROW[:N]
    bias = np.arange(N, dtype=np.int32) - 7
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w", axis=0),
            node("DequantizeLinear", ["c_codes", "c_scale"], "c"),
            helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="product", transB=1),
        ],
        {"codes": stored, "scale": scale, "c_codes": bias, "c_scale": np.array(0.5, F32)},
    )
    return Case(made, ("Gemm",), (dense(stored, scale, axis=0).T.astype(np.float64),))


def static_qdq() -> Case:
    """Activations go through QuantizeLinear and DequantizeLinear of their own, which stay."""
    stored = codes()
    made = model(
        [
            node("QuantizeLinear", ["x", "x_scale", "x_zero"], "xq"),
            node("DequantizeLinear", ["xq", "x_scale", "x_zero"], "xd"),
            node("DequantizeLinear", ["codes", "scale", "zero"], "w"),
            matmul("xd", "w", "p"),
            node("DequantizeLinear", ["c_codes", "c_scale"], "c"),
            node("Add", ["p", "c"], "y"),
        ],
        {
            "x_scale": np.array(0.02, F32),
            "x_zero": np.array(128, np.uint8),
            "codes": stored,
            "scale": np.array(0.25, F32),
            "zero": np.array(0, np.int8),
            "c_codes": np.arange(N, dtype=np.int32),
            "c_scale": np.array(0.125, F32),
        },
    )
    return Case(made, ("MatMul -> Add",), (stored * 0.25,))


def qcdq(*, from_float: bool, clip: tuple[int, int] = (-1, 1)) -> Case:
    """brevitas: [QuantizeLinear ->] Clip(int8, -1, 1) -> DequantizeLinear."""
    scale, zero = np.array(0.25, F32), np.array(0, np.int8)
    stored = codes(levels=(-3, -1, 0, 1, 2))
    constants: dict[str, Array] = {"scale": scale, "zero": zero}
    nodes = []
    if from_float:
        constants["weight"] = (stored * scale + F32(0.1)).astype(F32)
        nodes.append(node("QuantizeLinear", ["weight", "scale", "zero"], "codes"))
    else:
        constants["codes"] = stored
    constants["low"], constants["high"] = (np.array(bound, np.int8) for bound in clip)
    made = model(
        [
            *nodes,
            node("Clip", ["codes", "low", "high"], "clipped"),
            node("DequantizeLinear", ["clipped", "scale", "zero"], "w"),
            matmul(),
        ],
        constants,
    )
    return Case(made, ("MatMul",), (np.clip(stored, *clip) * 0.25,))


def quantized_columns() -> Case:
    """A float weight through QuantizeLinear and DequantizeLinear with one scale per column."""
    stored = codes()
    made = model(
        [
            node("QuantizeLinear", ["weight", "scale", "zero"], "codes", axis=-1),
            node("DequantizeLinear", ["codes", "scale", "zero"], "w", axis=-1),
            matmul(),
        ],
        {
            "weight": (stored * ROW * F32(1.1)).astype(F32),
            "scale": ROW,
            "zero": np.full(N, 3, np.uint8),
        },
    )
    return Case(made, ("MatMul",), (dense(stored, ROW).astype(np.float64),))


def shared_codes() -> Case:
    """One tensor of codes under two scales, and one of the results used twice."""
    stored = codes(K, K)
    made = model(
        [
            node("DequantizeLinear", ["codes", "one"], "w1"),
            node("DequantizeLinear", ["codes", "two"], "w2"),
            matmul("x", "w1", "h", "first"),
            matmul("h", "w2", "i", "second"),
            helper.make_node("Gemm", ["i", "w1"], ["y"], name="third", transB=1),
        ],
        {"codes": stored, "one": np.array(1, F32), "two": TWO},
    )
    weight = stored.astype(np.float64)
    return Case(made, ("MatMul", "MatMul", "Gemm"), (weight, weight * 2, weight.T), grows=True)


def embedding_codes() -> Case:
    """The codes are also looked up by a Gather."""
    stored = codes()
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w"),
            matmul(),
            node("Gather", ["codes", "rows"], "g"),
            node("Cast", ["g"], "z", to=TensorProto.FLOAT),
        ],
        {"codes": stored, "scale": TWO, "rows": np.array([0, 2])},
        outputs=("y", "z"),
    )
    return Case(made, ("MatMul",), (stored * 2.0,), keeps_weight=True)


def bfloat16_scales() -> Case:
    stored, scale = codes(), np.array(0.3, ml_dtypes.bfloat16)
    made = model(
        [
            node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
            node("DequantizeLinear", ["codes", "scale"], "w"),
            matmul("xb", "w", "yb"),
            node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
        ],
        {"codes": stored, "scale": scale},
        opset=19,
    )
    return Case(made, ("MatMul",), (dense(stored, scale).astype(np.float64),))


INT4, UINT4 = TensorProto.INT4, TensorProto.UINT4
HALF = TensorProto.FLOAT16


def scale_at_run_time() -> onnx.ModelProto:
    return model(
        [node("DequantizeLinear", ["codes", "scale"], "w"), matmul()],
        {"codes": codes()},
        inputs=[helper.make_tensor_value_info("scale", TensorProto.FLOAT, ())],
    )


def codes_at_run_time() -> onnx.ModelProto:
    return model(
        [node("DequantizeLinear", ["codes", "scale"], "w"), matmul()],
        {"scale": TWO},
        inputs=[helper.make_tensor_value_info("codes", TensorProto.INT8, (K, N))],
    )


HITS: dict[str, Callable[[], Case]] = {
    "dequantized": lambda: per_tensor(codes()),
    "dequantized_one_matrix": one_matrix,
    "dequantized_opset_11": lambda: per_tensor(codes(), 0, opset=11),
    "dequantized_opset_23": lambda: per_tensor(codes(), 0, opset=23),
    "dequantized_zero_point": lambda: per_tensor(codes(levels=(0, 1, 2), dtype=np.uint8), 1),
    "dequantized_full_range": lambda: per_tensor(codes(levels=(-127, 0, 127)), 0),
    "dequantized_uint8_full_range": lambda: per_tensor(
        codes(levels=(1, 128, 255), dtype=np.uint8), 128
    ),
    "dequantized_lowest_int8": lambda: per_tensor(codes(levels=(-128, 0))),
    "dequantized_int16": lambda: per_tensor(codes(levels=(-300, 0, 300), dtype=np.int16), opset=21),
    "dequantized_int32": lambda: per_tensor(codes(levels=(-(2**24) - 1, 0), dtype=np.int32)),
    "dequantized_binary_01": lambda: per_tensor(codes(levels=(0, 1), dtype=np.uint8)),
    "dequantized_binary_pm": lambda: per_tensor(codes(levels=(-1, 1))),
    "dequantized_binary_offset": lambda: per_tensor(codes(levels=(3, 5), dtype=np.uint8), 4),
    "dequantized_zeros": lambda: per_tensor(codes(levels=(0,))),
    "dequantized_negative_scale": lambda: dequantized(codes(), np.array(-0.25, F32)),
    "dequantized_zero_scale": lambda: dequantized(
        codes(), np.where(np.arange(N) == 3, F32(0), ROW)
    ),
    "dequantized_columns": lambda: dequantized(codes(), ROW),
    "dequantized_columns_zero_points": lambda: dequantized(
        codes(dtype=np.int16).astype(np.uint8) + np.arange(1, N + 1, dtype=np.uint8),
        ROW,
        np.arange(1, N + 1, dtype=np.uint8),
    ),
    "dequantized_magnitudes_by_column": lambda: per_tensor(
        codes() * np.arange(1, N + 1, dtype=np.int8)
    ),
    "dequantized_transposed": lambda: dequantized(codes(N, K), ROW, axis=0),
    "dequantized_equal_rows": lambda: dequantized(codes(), np.full(K, 0.25, F32), axis=0, steps=()),
    "dequantized_steps": lambda: per_tensor(
        codes(N, K), steps=("Identity", "Transpose", "Identity")
    ),
    "dequantized_to_float16": lambda: dequantized(
        codes(),
        ROW,
        steps=("Cast",),
        x_dtype=HALF,
        weight=dense(codes(), ROW).astype(np.float16),
    ),
    "dequantized_float16_scale": lambda: dequantized(
        codes(levels=(-127, 0, 127)), ROW.astype(np.float16), x_dtype=HALF, opset=19
    ),
    "dequantized_output_dtype": lambda: dequantized(
        codes(),
        ROW,
        x_dtype=HALF,
        opset=23,
        output_dtype=HALF,
        weight=dense(codes(), ROW).astype(np.float16),
    ),
    "dequantized_bfloat16": bfloat16_scales,
    "dequantized_int4": lambda: per_tensor(codes(), dtype=INT4, opset=21, grows=True),
    "dequantized_int4_columns": lambda: dequantized(
        codes(levels=(-7, 0, 7)), ROW, np.zeros(N, np.int8), dtype=INT4, opset=21, grows=True
    ),
    "dequantized_uint4": lambda: per_tensor(
        codes(levels=(7, 8, 9), dtype=np.uint8), 8, dtype=UINT4, opset=21, grows=True
    ),
    "dequantized_blocks": lambda: dequantized(
        codes(), BLOCKS, axis=0, block_size=BLOCK, steps=(), opset=21
    ),
    "dequantized_blocks_equal_scales": lambda: dequantized(
        codes(), np.ones_like(BLOCKS), axis=0, block_size=BLOCK, steps=(), opset=21
    ),
    "dequantized_blocks_transposed": lambda: dequantized(
        codes(N, 80, levels=(0, 1, 2), dtype=np.uint8)[:, :K],
        np.ascontiguousarray(BLOCKS.T),
        np.ones((N, 3), np.uint8),
        dtype=UINT4,
        axis=1,
        block_size=BLOCK,
        opset=21,
    ),
    "dequantized_blocks_last_short": lambda: dequantized(
        codes(), BLOCKS[:2], axis=0, block_size=32, steps=(), opset=21
    ),
    "dequantized_contrib": lambda: dequantized(codes(), ROW, domain="com.microsoft"),
    "dequantized_gemm": gemm_trans_b,
    "dequantized_static_qdq": static_qdq,
    "dequantized_shared_codes": shared_codes,
    "dequantized_codes_used_elsewhere": embedding_codes,
    "qcdq": lambda: qcdq(from_float=False),
    "qcdq_from_float": lambda: qcdq(from_float=True),
    "quantized_columns": quantized_columns,
}

if hasattr(TensorProto, "INT2"):
    HITS["dequantized_int2"] = lambda: per_tensor(
        codes(), dtype=TensorProto.INT2, opset=25, grows=True
    )
    HITS["dequantized_uint2"] = lambda: dequantized(
        codes(levels=(0, 1, 2), dtype=np.uint8),
        ROW,
        np.ones(N, np.uint8),
        dtype=TensorProto.UINT2,
        opset=25,
        grows=True,
    )


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "dequantized_overridable_codes": lambda: Miss(
        overridable(per_tensor(codes()).model, "codes"), f"weight 'codes' {OVERRIDABLE}"
    ),
    "dequantized_overridable_scale": lambda: Miss(
        overridable(per_tensor(codes()).model, "scale"),
        "weight 'codes' goes through DequantizeLinear 'DequantizeLinear_w', where 'scale' "
        f"{OVERRIDABLE}",
    ),
    "dequantized_no_columns": lambda: Miss(
        per_tensor(np.zeros((K, 0), np.int8)).model,
        "weight 'codes' has shape (48, 0): no elements",
    ),
    "dequantized_rank_3": lambda: Miss(
        per_tensor(np.stack([codes(), codes()])).model, "weight 'codes' has rank 3, expected 2"
    ),
    "dequantized_four_codes": lambda: Miss(
        per_tensor(changed(codes(), 5, 3, -2)).model,
        "weight has codes -2, -1, 0 and 1 in column 3; expected 0 and plus or minus one magnitude",
    ),
    "dequantized_zero_point_off": lambda: Miss(
        per_tensor(codes(levels=(0, 1, 2), dtype=np.uint8), 2).model,
        "weight has codes 0, 1 and 2 with zero point 2 in column 0, which are levels -2, -1 and 0; "
        "expected 0 and plus or minus one magnitude",
    ),
    "dequantized_asymmetric": lambda: Miss(
        per_tensor(codes(levels=(-128, 0, 127))).model,
        f"weight has codes -128, 0 and 127 in column 0: {CLIPPED}",
    ),
    "dequantized_many_codes": lambda: Miss(
        per_tensor(codes(levels=range(-8, 8))).model,
        "weight has 16 different codes in column 0, expected at most 3",
    ),
    "dequantized_rows": lambda: Miss(
        dequantized(
            np.eye(K, N, dtype=np.int8), np.linspace(1, 2, K, dtype=F32), axis=0, steps=()
        ).model,
        "weight has one scale every row along K, expected one for the matrix, a column, or a group "
        "of 16 or more rows",
    ),
    "dequantized_small_blocks": lambda: Miss(
        dequantized(
            codes(),
            np.linspace(1, 2, 6 * N, dtype=F32).reshape(6, N),
            axis=0,
            block_size=8,
            steps=(),
            opset=21,
        ).model,
        "weight has one scale every 8 rows along K, expected one for the matrix, a column, or a "
        "group of 16 or more rows",
    ),
    "dequantized_nan_scale": lambda: Miss(
        dequantized(codes(), np.array(np.nan, F32)).model,
        "weight has a scale that is NaN or infinite",
    ),
    "dequantized_overflow": lambda: Miss(
        dequantized(codes(levels=(-127, 0, 127)), np.array(1e37, F32)).model,
        "weight contains a weight that is infinite or too large for its type",
    ),
    "dequantized_denormal": lambda: Miss(
        dequantized(codes(), np.array(2.0**-130, F32)).model,
        "weight scale 7.34684e-40 is a denormal float32",
    ),
    "dequantized_scale_at_run_time": lambda: Miss(
        scale_at_run_time(),
        "weight 'codes' goes through DequantizeLinear 'DequantizeLinear_w', where 'scale' is given "
        "at run time",
    ),
    "dequantized_codes_at_run_time": lambda: Miss(
        codes_at_run_time(),
        "no constant weight: 'w' is computed at run time (by DequantizeLinear "
        "'DequantizeLinear_w')",
    ),
    "qcdq_wide": lambda: Miss(
        qcdq(from_float=False, clip=(-2, 1)).model,
        "weight has codes -2, -1, 0 and 1 in column 0; expected 0 and plus or minus one magnitude",
    ),
}
