"""Gemm: transposed or not, with alpha, beta and every form of C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    MICROSOFT,
    ROW,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    column_scales,
    in_float64,
    model,
    node,
    ternary,
)
from tests.catalogue.matmul import double


def gemm_float16() -> Case:
    weight = ternary(scale=0.3, dtype=np.float16)
    product = helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="product")
    made = model(
        [product],
        {"w": weight, "c": column_scales().astype(np.float16)},
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )
    return Case(made, ("Gemm",), (in_float64(weight),))


def gemm_bfloat16() -> Case:
    weight = ternary(scale=0.3, dtype=ml_dtypes.bfloat16)
    made = model(
        [
            node("Cast", ["x"], "xb", to=TensorProto.BFLOAT16),
            helper.make_node("Gemm", ["xb", "w"], ["yb"], name="product"),
            node("Cast", ["yb"], "y", to=TensorProto.FLOAT),
        ],
        {"w": weight},
    )
    return Case(made, ("Gemm",), (in_float64(weight),))


def gemm(
    weight: Array | None = None,
    c: Array | None = None,
    *,
    runtime_c: Sequence[int | str] | None = None,
    exact: bool = True,
    x_shape: Sequence[int | str] = ("batch", K),
    **attributes: Any,
) -> Case:
    """A Gemm; the weight is given as (K, N) and stored transposed where transB says so."""
    weight = ternary() if weight is None else weight
    stored = np.ascontiguousarray(weight.T) if attributes.get("transB") else weight
    initializers = {"w": stored}
    names, inputs = ["x", "w"], []
    if c is not None:
        initializers["c"] = c
        names.append("c")
    if runtime_c is not None:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, runtime_c))
        names.append("c")
    product = helper.make_node("Gemm", names, ["y"], name="product", **attributes)
    made = model([product], initializers, inputs=inputs, x_shape=x_shape)
    return Case(made, ("Gemm",), (in_float64(weight) if exact else None,))


def overridable_c() -> Case:
    """The bias is an initializer a caller may override: it is added behind the op."""
    made = gemm(runtime_c=(N,))
    made.model.graph.initializer.append(numpy_helper.from_array(column_scales(), "c"))
    return made


def integer_gemm() -> onnx.ModelProto:
    weight = ternary(scale=1.0).astype(np.int32)
    return model(
        [node("Gemm", ["x", "w"], "y")],
        {"w": weight},
        x_dtype=TensorProto.INT32,
        y_dtype=TensorProto.INT32,
    )


ACTIVATIONS = {
    "Celu": {"alpha": 0.7},
    "Elu": {"alpha": 0.7},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.2},
    "Relu": {},
    "Selu": {"alpha": 1.5, "gamma": 1.1},
    "Sigmoid": {},
    "Softplus": {},
    "Softsign": {},
    "Tanh": {},
    "ThresholdedRelu": {"alpha": 0.5},
}


def fused_gemm(
    activation: str | None,
    c: Array | None = ROW,
    *,
    given: Mapping[str, float] | None = None,
    behind: bool = False,
    runtime_c: bool = False,
    weight: Array | None = None,
    opset: int = 17,
    **attributes: Any,
) -> Case:
    """FusedGemm, and what it is made of for onnxruntime, with a value between."""
    weight = ternary() if weight is None else weight
    stored = np.ascontiguousarray(weight.T) if attributes.get("transB") else weight
    initializers, names, inputs = {"w": stored}, ["x", "w"], []
    if c is not None:
        initializers["c"] = c
        names.append("c")
    if runtime_c:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ("batch", N)))
        names.append("c")
    given = ACTIVATIONS.get(activation or "", {}) if given is None else given
    last = "a" if behind else "y"
    end = [node("Mul", [last, "two"], "y")] if behind else []
    initializers |= {"two": np.array(2, F32)} if behind else {}
    fused = {f"activation_{name}": number for name, number in given.items()}
    fused |= {} if activation is None else {"activation": activation}
    common = {"inputs": inputs, "opset": opset}
    product = helper.make_node(
        "FusedGemm", names, [last], "product", domain="com.microsoft", **fused, **attributes
    )
    made = model([product, *end], initializers, opsets=MICROSOFT, **common)
    runnable = None
    if activation in ACTIVATIONS:
        parts = [
            helper.make_node("Gemm", names, [f"{last}.product"], "product", **attributes),
            helper.make_node(activation, [f"{last}.product"], [last], **given),
        ]
        runnable = model([*parts, *end], initializers, **common)
    return Case(made, ("FusedGemm",), (in_float64(weight),), runnable=runnable)


def _fused_miss(reason: str, activation: str | None = "Relu", **kwargs: Any) -> Miss:
    return Miss(fused_gemm(activation, **kwargs).model, reason)


HITS: dict[str, Callable[[], Case]] = {
    "gemm_float16": gemm_float16,
    "gemm_bfloat16": gemm_bfloat16,
    "gemm": gemm,
    "gemm_trans_b": lambda: gemm(transB=1, c=ROW),
    "gemm_trans_a": lambda: gemm(transA=1, x_shape=(K, "batch")),
    "gemm_alpha_beta": lambda: gemm(ternary(), ROW, alpha=0.3, beta=0.7, exact=False),
    "gemm_beta_zero": lambda: gemm(c=ROW, beta=0.0),
    "gemm_scalar_c": lambda: gemm(c=np.array(3, F32), beta=0.7),
    "gemm_row_c": lambda: gemm(c=ROW[None], beta=0.7),
    "gemm_column_c": lambda: gemm(c=np.arange(5, dtype=F32)[:, None], beta=0.7, x_shape=(5, K)),
    "gemm_runtime_c": lambda: gemm(runtime_c=(N,)),
    "gemm_runtime_c_beta": lambda: gemm(runtime_c=("batch", N), beta=0.7, transB=1),
    "gemm_overridable_c": overridable_c,
    **{
        f"fused_gemm_{name.lower()}": lambda name=name: fused_gemm(name)  # type: ignore[misc]
        for name in ACTIVATIONS
    },
    "fused_gemm_no_c": lambda: fused_gemm("Relu", None),
    "fused_gemm_trans_b": lambda: fused_gemm("Tanh", transB=1),
    "fused_gemm_runtime_c": lambda: fused_gemm("Sigmoid", None, runtime_c=True, beta=0.5),
    "fused_gemm_mul_behind": lambda: fused_gemm("Relu", behind=True),
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "one_weight_off_gemm": lambda: Miss(
        gemm(changed(ternary(), 1, 3, 0.25025)).model,
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "no_rows_gemm": lambda: Miss(
        gemm(np.zeros((0, N), F32), x_shape=("batch", 0)).model,
        "weight 'w' has shape (0, 20): no elements",
    ),
    "double_gemm": lambda: Miss(
        double("Gemm"), "weight 'w' is float64; convert the model to float32 first"
    ),
    "integer_gemm": lambda: Miss(integer_gemm(), "weight 'w' is int32: an integer product"),
    "alpha_zero": lambda: Miss(
        gemm(alpha=0.0).model, "alpha = 0; only positive finite ones are handled"
    ),
    "alpha_negative": lambda: Miss(
        gemm(alpha=-1.0).model, "alpha = -1; only positive finite ones are handled"
    ),
    "alpha_too_small": lambda: Miss(
        gemm(alpha=1e-38).model, "alpha takes the scale of weight 'w' out of float32"
    ),
    "fused_gemm_one_weight_off": lambda: _fused_miss(
        "weight has 2 distinct magnitudes in column 3, expected 1",
        weight=changed(ternary(), 1, 3, 0.25025),
    ),
    "fused_gemm_no_activation": lambda: _fused_miss(
        "FusedGemm with activation '', which ONNX Runtime does not know", None
    ),
    "fused_gemm_unknown_activation": lambda: _fused_miss(
        "FusedGemm with activation 'Gelu', which ONNX Runtime does not know", "Gelu"
    ),
    "fused_gemm_no_alpha": lambda: _fused_miss(
        "FusedGemm with activation 'HardSigmoid' and no activation_beta",
        "HardSigmoid",
        given={"alpha": 0.3},
    ),
    "fused_gemm_new_activation": lambda: _fused_miss(
        "FusedGemm with activation 'Celu', an operator of opset 12; the model has 11",
        "Celu",
        opset=11,
    ),
    "wrong_k_gemm": lambda: Miss(
        gemm(x_shape=("batch", 7)).model, "input 'x' has 7 columns, but weight 'w' has 48 rows"
    ),
    "wrong_k_trans_a": lambda: Miss(
        gemm(x_shape=(7, "batch"), transA=1).model,
        "input 'x' has 7 rows, but weight 'w' has 48 rows",
    ),
}
