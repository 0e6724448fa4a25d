"""MatMulInteger and the fusions of ONNX Runtime that multiply dynamically quantized activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.activations import (
    BIAS,
    SCALE,
    UINT8,
    absmax,
    dynamic,
    inserted,
    quantizing_case,
    with_constant,
    with_input,
    without_scale,
)
from tests.catalogue.case import (
    F32,
    MICROSOFT,
    Array,
    Case,
    K,
    Miss,
    N,
    column_scales,
    model,
    node,
    ternary,
)
from tests.catalogue.dequantize import CLIPPED, codes


def matmul_integer() -> onnx.ModelProto:
    weight = ternary(scale=1.0).astype(np.int8)
    return model(
        [node("MatMulInteger", ["x", "w"], "y")],
        {"w": weight},
        x_dtype=TensorProto.INT8,
        y_dtype=TensorProto.INT32,
    )


def quantize_dynamic(
    *,
    stored: Array | None = None,
    scale: Array = SCALE,
    zero: Array | None = None,
    bias: bool = False,
    multiplied: str = "together",
    x_shape: Sequence[int | str] = ("batch", K),
    weight: Array | None = None,
) -> Case:
    """What ONNX Runtime's `quantize_dynamic` writes for a MatMul and its bias."""
    stored = codes() if stored is None else stored
    zeros = np.array(0, stored.dtype) if zero is None else zero
    nodes = [
        *dynamic(),
        helper.make_node("MatMulInteger", ["q", "w", "zero", "w_zero"], ["sums"], name="product"),
        node("Cast", ["sums"], "wide", to=TensorProto.FLOAT),
    ]
    if multiplied == "together":
        nodes.insert(1, node("Mul", ["x_scale", "w_scale"], "scales"))
        nodes.append(node("Mul", ["wide", "scales"], "scaled"))
    else:
        order = ["x_scale", "w_scale"] if multiplied == "x first" else ["w_scale", "x_scale"]
        nodes.append(node("Mul", ["wide", order[0]], "half"))
        nodes.append(node("Mul", [order[1], "half"], "scaled"))
    pattern = ["MatMulInteger", "Cast", *(["Mul"] * (1 if multiplied == "together" else 2))]
    constants = {"w": stored, "w_scale": scale, "w_zero": zeros}
    if bias:
        constants["bias"] = BIAS
        nodes.append(node("Add", ["scaled", "bias"], "y"))
        pattern.append("Add")
    else:
        nodes[-1].output[0] = "y"
    exact = (stored.astype(np.float64) - zeros) * scale.astype(np.float64)
    return quantizing_case(
        ([], {}),
        nodes,
        constants,
        " -> ".join(pattern),
        activation=UINT8,
        weight=exact.astype(F32) if weight is None else weight,
        x_shape=x_shape,
    )


def microsoft(op_type: str, *, bias: bool = True) -> Case:
    """ONNX Runtime's fusions of the same."""
    if op_type == "DynamicQuantizeMatMul":
        nodes, inputs = [], ["x", "w", "w_scale", "w_zero", "bias"]
    else:
        nodes = dynamic()
        inputs = ["q", "w", "x_scale", "w_scale", "zero", "w_zero", "bias"]
    stored = codes()
    nodes.append(
        helper.make_node(
            op_type, inputs if bias else inputs[:-1], ["y"], name="product", domain="com.microsoft"
        )
    )
    constants = {"w": stored, "w_scale": SCALE, "w_zero": np.array(0, np.int8)}
    if bias:
        constants["bias"] = BIAS
    case = quantizing_case(
        ([], {}),
        nodes,
        constants,
        op_type,
        activation=UINT8,
        weight=stored * np.float64(SCALE),
        opsets=MICROSOFT,
    )
    case.model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", N))
    )
    return case


def absmax_integer() -> Case:
    """Per-token int8 and MatMulInteger."""
    nodes = [node("Cast", ["q"], "narrow", to=TensorProto.INT8)]
    constants = {"w": codes(), "w_scale": SCALE, "x_zero": np.array(0, np.int8)}
    nodes += [
        helper.make_node("MatMulInteger", ["narrow", "w", "x_zero"], ["sums"], name="product"),
        node("Cast", ["sums"], "wide", to=TensorProto.FLOAT),
        node("Div", ["wide", "s"], "unscaled"),
        node("Mul", ["unscaled", "w_scale"], "y"),
    ]
    return quantizing_case(
        absmax(opset=18),
        nodes,
        constants,
        "MatMulInteger -> Cast -> Div -> Mul",
        weight=codes() * np.float64(SCALE),
        opset=18,
    )


_CENTRED = codes(levels=(127, 128, 129), dtype=np.uint8)


def static_integers() -> onnx.ModelProto:
    """QuantizeLinear with stored scales in front of MatMulInteger."""
    made = quantize_dynamic(multiplied="x first").model
    quantize = made.graph.node[0]
    quantize.CopyFrom(node("QuantizeLinear", ["x", "x_scale", "zero"], "q"))
    with_constant(made, "x_scale", np.array(0.05, F32))
    return with_constant(made, "zero", np.array(128, np.uint8))


def given_integers() -> onnx.ModelProto:
    """Integers that the caller gives."""
    nodes = [helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="product")]
    return model(nodes, {"w": codes()}, x_dtype=TensorProto.UINT8, y_dtype=TensorProto.INT32)


INTEGERS = "its activations are integers, and "


HITS: dict[str, Callable[[], Case]] = {
    "dynamic": quantize_dynamic,
    "dynamic_bias": lambda: quantize_dynamic(bias=True),
    "dynamic_rank3": lambda: quantize_dynamic(x_shape=("batch", "tokens", K)),
    "dynamic_columns": lambda: quantize_dynamic(
        scale=column_scales(), zero=np.zeros(N, np.int8), bias=True
    ),
    "dynamic_zero_point": lambda: quantize_dynamic(stored=_CENTRED, zero=np.array(128, np.uint8)),
    "dynamic_column_zero_points": lambda: quantize_dynamic(
        stored=_CENTRED + (np.arange(N) % 3).astype(np.uint8),
        zero=(128 + np.arange(N) % 3).astype(np.uint8),
        scale=column_scales(),
    ),
    "dynamic_wide_codes": lambda: quantize_dynamic(stored=codes(levels=(-64, 0, 64))),
    "dynamic_x_scale_first": lambda: quantize_dynamic(multiplied="x first"),
    "dynamic_w_scale_first": lambda: quantize_dynamic(multiplied="w first"),
    "matmul_integer_to_float": lambda: microsoft("MatMulIntegerToFloat"),
    "matmul_integer_to_float_no_bias": lambda: microsoft("MatMulIntegerToFloat", bias=False),
    "dynamic_quantize_matmul": lambda: microsoft("DynamicQuantizeMatMul"),
    "matmul_integer_absmax": absmax_integer,
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "matmul_integer": lambda: Miss(
        matmul_integer(),
        "its activations are integers, and 'x' are given; DynamicQuantizeLinear or absmax would be "
        "handled",
    ),
    "dynamic_not_scaled": lambda: Miss(
        without_scale(quantize_dynamic(), 2),
        INTEGERS + "'sums' is not multiplied by the activations' scale alone",
    ),
    "dynamic_weight_scale_only": lambda: Miss(
        without_scale(quantize_dynamic(multiplied="w first")),
        INTEGERS + "'half' is not multiplied by the activations' scale alone",
    ),
    "dynamic_other_zero_point": lambda: Miss(
        with_constant(
            with_input(quantize_dynamic(), product=(2, "other")), "other", np.array(7, np.uint8)
        ),
        INTEGERS + "the zero point of 'q' is not the one it is quantized with",
    ),
    "dynamic_weight_off": lambda: Miss(
        quantize_dynamic(stored=codes(levels=(-2, -1, 0, 1))).model,
        "weight has codes -2, -1, 0 and 1 in column 0; expected 0 and plus or minus one magnitude",
    ),
    "dynamic_weight_zero_point_off": lambda: Miss(
        quantize_dynamic(
            stored=codes(levels=(0, 128, 255), dtype=np.uint8), zero=np.array(128, np.uint8)
        ).model,
        "weight has codes 0, 128 and 255 with zero point 128 in column 0, which are levels -128, 0 "
        f"and 127: {CLIPPED}",
    ),
    "dynamic_not_fused": lambda: Miss(
        quantize_dynamic().model,
        "its activations are integers, and fuse_activation is off",
        {"fuse_activation": False},
    ),
    "static_integers": lambda: Miss(
        static_integers(),
        INTEGERS + "'q' come from QuantizeLinear 'QuantizeLinear_q'; DynamicQuantizeLinear or "
        "absmax would be handled",
    ),
    "given_integers": lambda: Miss(
        given_integers(),
        INTEGERS + "'x' are given; DynamicQuantizeLinear or absmax would be handled",
    ),
    "dynamic_through_identity": lambda: Miss(
        inserted(quantize_dynamic().model, node("Identity", ["q"], "same"), "product"),
        INTEGERS + "'same' come from Identity 'Identity_same'; DynamicQuantizeLinear or absmax "
        "would be handled",
    ),
    "dynamic_truncating_division": lambda: Miss(
        with_constant(
            inserted(quantize_dynamic().model, node("Div", ["sums", "two"], "halved"), "Cast_wide"),
            "two",
            np.array(2, np.int32),
        ),
        INTEGERS + "'sums' is not multiplied by the activations' scale alone",
    ),
    "matmul_integer_absmax_zero_point": lambda: Miss(
        with_constant(
            with_input(absmax_integer(), product=(2, "one")), "one", np.array(1, np.int8)
        ),
        INTEGERS + "the zero point 'one' of 'narrow' is not 0",
    ),
    "matmul_integer_to_float_other_scale": lambda: Miss(
        with_constant(
            with_input(microsoft("MatMulIntegerToFloat", bias=False), product=(2, "other")),
            "other",
            np.array(0.1, F32),
        ),
        INTEGERS + "'y' is not multiplied by the activations' scale alone",
    ),
}
