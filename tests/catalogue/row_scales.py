"""Weights with a scale per row besides: a gain per input that was folded into a ternary weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.activations import absmax
from tests.catalogue.case import (
    F32,
    TWO,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    column_scales,
    matmul,
    model,
    node,
    simple,
    ternary,
    to_half,
)
from tests.catalogue.dequantize import dequantized
from tests.catalogue.functions import calling, constant, function

BLANK_ROW = 5


def gains(count: int = K) -> Array:
    """(K,) float32 as a trained normalization has them, one negative; the largest is 1.3."""
    drawn = np.random.default_rng(7).uniform(0.6, 1.3, count).astype(F32)
    drawn[1], drawn[3] = -drawn[1], 1.3
    return drawn


def folded(scale: float | Array = 0.3, dtype: Any = F32) -> Array:
    """``diag(gains) @ ternary`` (K, N), with a row of zeros, rounded once per weight."""
    weight = ternary(scale=scale)
    weight[BLANK_ROW] = 0
    return (weight * gains()[:, None]).astype(dtype)


def case(made: onnx.ModelProto, pattern: str = "MatMul", **kwargs: Any) -> Case:
    return Case(made, (pattern,), (None,), noted=True, **kwargs)


def half(weight: Array) -> Case:
    return case(to_half(simple(weight)))


def gemm(*, turned: bool = False, x_turned: bool = False) -> Case:
    weight = folded(column_scales())
    made = model(
        [node("Gemm", ["x", "w", "c"], "y", transB=int(turned), transA=int(x_turned), alpha=2.0)],
        {"w": weight.T.copy() if turned else weight, "c": np.linspace(-1, 1, N, dtype=F32)},
        x_shape=(K, "batch") if x_turned else ("batch", K),
    )
    return case(made, "Gemm")


def left_operand() -> Case:
    made = model([matmul("w", "x")], {"w": folded().T.copy()}, x_shape=(2, K, "batch"))
    return case(made)


def folded_in_the_graph() -> Case:
    """An exporter that leaves the multiplication of gain and weight to the runtime."""
    nodes = [node("Mul", ["v", "g"], "w"), matmul()]
    return case(model(nodes, {"v": ternary(scale=0.3), "g": gains()[:, None].copy()}))


def scaled_codes() -> Case:
    """Codes with one scale per row."""
    codes, scale = ternary(scale=1.0).astype(np.int8), np.abs(gains()) * F32(0.3)
    made = dequantized(codes, scale, axis=0, steps=())
    return case(made.model, made.patterns[0], grows=made.grows)


def shared() -> Case:
    nodes = [matmul(y="y", name="first"), matmul(x="y2", y="z", name="second")]
    nodes.insert(1, node("Slice", ["padded", "from", "to", "axis"], "y2"))
    nodes.insert(1, node("Concat", ["y", "y", "y"], "padded", axis=-1))
    bounds = {"from": [0], "to": [K], "axis": [-1]}
    constants = {name: np.array(each, np.int64) for name, each in bounds.items()}
    made = model(nodes, {"w": folded(), **constants}, outputs=["z"])
    return Case(made, ("MatMul", "MatMul"), (None, None), noted=True)


def in_function() -> Case:
    # Powers of two, so that whole numbers have exact sums; the rows still differ.
    weight = ternary() * np.exp2(np.arange(K) % 3, dtype=F32)[:, None]
    return case(calling([function([constant(weight, "w"), matmul()])]))


def in_branch() -> Case:
    weight = ternary() * np.exp2(np.arange(K) % 3, dtype=F32)[:, None]
    names = {"then_branch": "a", "else_branch": "b"}
    branches = {
        branch: helper.make_graph(
            [matmul(y=name, name=f"product_{name}")]
            if branch == "then_branch"
            else [node("Slice", ["x", "from", "to", "axis"], name)],
            branch,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", N))],
        )
        for branch, name in names.items()
    }
    nodes = [node("If", ["yes"], "y", **branches)]
    bounds = {"from": [0], "to": [N], "axis": [-1]}
    constants = {name: np.array(each, np.int64) for name, each in bounds.items()}
    return case(model(nodes, {"w": weight, "yes": np.array(True), **constants}))


def quantized_activations() -> onnx.ModelProto:
    quantization, constants = absmax()
    nodes = [*quantization, node("Div", ["q", "s"], "dequantized"), matmul("dequantized")]
    return model(nodes, {**constants, "w": folded()})


def integer_product() -> onnx.ModelProto:
    """Whole numbers with factors 1, 2 and 4 for rows, in a product of integers."""
    weight = (ternary(scale=1.0) * np.exp2(np.arange(K) % 3, dtype=F32)[:, None]).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], "q"),
        node("MatMulInteger", ["q", "w", "zero"], "sums"),
        node("Cast", ["sums"], "wide", to=TensorProto.FLOAT),
        node("Mul", ["wide", "x_scale"], "y"),
    ]
    nodes[0].output.extend(["x_scale", "zero"])
    return model(nodes, {"w": weight})


def one_weight_per_row() -> Array:
    """Every matrix of one weight per row is a product of factors."""
    weight = np.zeros((K, N), F32)
    weight[np.arange(K), np.arange(K) // 3] = gains()
    return weight


HITS: dict[str, Callable[[], Case]] = {
    "row_scale": lambda: case(simple(folded())),
    "row_and_column_scale": lambda: case(simple(folded(column_scales()))),
    "row_scale_vector": lambda: case(simple(folded(), x_shape=(K,))),
    "row_scale_rank_3": lambda: case(simple(folded(), x_shape=("batch", 3, K))),
    "row_scale_rank_unknown": lambda: case(simple(folded(), x_shape=None)),
    "row_scale_float16": lambda: half(folded()),
    "row_and_column_scale_float16": lambda: half(folded(column_scales())),
    "row_scale_gemm": gemm,
    "row_scale_gemm_trans_b": lambda: gemm(turned=True),
    "row_scale_gemm_trans_a": lambda: gemm(x_turned=True),
    "row_scale_left_operand": left_operand,
    "row_scale_cone": folded_in_the_graph,
    "row_scale_dequantized": scaled_codes,
    "row_scale_shared": shared,
    "row_scale_in_function": in_function,
    "row_scale_in_branch": in_branch,
    "row_scale_factor_before": lambda: case(
        model([node("Mul", ["x", "two"], "h"), matmul("h")], {"w": folded(), "two": TWO}),
        "Mul -> MatMul",
    ),
}
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "row_scale_one_off": lambda: Miss(
        simple(changed(folded(), 7, 3, 0.21)),
        "weight has 32 distinct magnitudes in column 0, expected 1",
    ),
    "row_scale_one_weight_per_row": lambda: Miss(
        simple(one_weight_per_row()), "weight has 3 distinct magnitudes in column 0, expected 1"
    ),
    "row_scale_one_column": lambda: Miss(
        simple(gains()[:, None]), f"weight has {K} distinct magnitudes in column 0, expected 1"
    ),
    "row_scale_bfloat16": lambda: Miss(
        model(
            [node("Cast", ["x"], "h", to=TensorProto.BFLOAT16), matmul("h")],
            {"w": folded(dtype=ml_dtypes.bfloat16)},
            y_dtype=TensorProto.BFLOAT16,
        ),
        "weight 'w' is ternary with a scale per row, and bfloat16, for which ONNX Runtime's CPU "
        "provider has no Mul; convert the model to float32 or float16",
    ),
    "row_scale_integers": lambda: Miss(
        integer_product(),
        "weight 'w' is ternary with a scale per row, and its activations are integers, which such "
        "scales cannot be multiplied into",
        {"tolerance": 0.01},
    ),
    "row_scale_integer_codes": lambda: Miss(
        integer_product(), "weight has 7 different codes in column 0, expected at most 3"
    ),
}
KEPT: dict[str, Callable[[], tuple[onnx.ModelProto, str]]] = {
    "row_scale_behind_quantization": lambda: (
        quantized_activations(),
        "weight 'w' has a scale per row, which comes behind that",
    ),
}
