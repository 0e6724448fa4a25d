"""QONNX models: weights behind Quant and BipolarQuant.

onnxruntime has no kernels for these operators, so each
case has a runnable twin with the quantized weight written out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.case import F32, Array, Case, K, Miss, N, column_scales, matmul, model, node

QONNX, FINN, BREVITAS = "qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas"
SCALE = np.array(0.25, F32)
# Before quantization; halves are what rounding modes differ on.
FLOATS = np.random.default_rng(7).integers(-6, 7, (K, N)).astype(F32) * F32(0.125)


def quant_node(
    *, kind: str = "Quant", domain: str = QONNX, inputs: Sequence[str] = (), **attributes: Any
) -> onnx.NodeProto:
    names = inputs or ["v", "scale", *(() if kind == "BipolarQuant" else ("zero", "bits"))]
    return helper.make_node(kind, list(names), ["q"], name="quant", domain=domain, **attributes)


def quantized(
    weight: Array,
    *,
    scale: Array = SCALE,
    bits: float = 2,
    zero: float = 0,
    steps: Sequence[str] = (),
    kind: str = "Quant",
    domain: str = QONNX,
    **attributes: Any,
) -> Case:
    """``x @ steps(Quant(FLOATS))`` and the same with ``weight``, what Quant makes of it.

    Where a step transposes, `weight` and the scale belong to the matrix as it is multiplied by.
    """
    turned = steps.count("Transpose") % 2 == 1
    stored = np.ascontiguousarray(FLOATS.T) if turned else FLOATS
    constants = {"v": stored, "scale": scale}
    if kind != "BipolarQuant":
        attributes = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND", **attributes}
        constants.update(zero=np.array(zero, F32), bits=np.array(bits, F32))
    nodes = [quant_node(kind=kind, domain=domain, **attributes)]
    names = ["q", *(f"step{at}" for at in range(len(steps) - 1)), "w"] if steps else ["w"]
    if not steps:
        nodes[0].output[0] = "w"
    if "Reshape" in steps:
        constants["shape"] = np.array([K, N])
    for at, step in enumerate(steps):
        operands = [names[at], *(["shape"] if step == "Reshape" else [])]
        nodes.append(node(step, operands, names[at + 1]))
    made = model([*nodes, matmul()], constants, opsets=[helper.make_opsetid(domain, 1)])
    weight = weight.astype(F32)
    return Case(
        made,
        ("MatMul",),
        (weight.astype(np.float64),),
        runnable=model([matmul()], {"w": weight}),
    )


def bipolar(scale: Array = SCALE) -> Case:
    return quantized(np.where(FLOATS >= 0, scale, -scale), scale=scale, kind="BipolarQuant")


def _ternary(values: Array) -> Array:
    """Rounded levels of the clipped ratios, times the scale."""
    return values * SCALE


RATIOS = np.clip(FLOATS / SCALE, -1, 1)
ROW = column_scales()


def activations_too() -> Case:
    """The quantizer of the activations stays; nothing can run this model."""
    case = quantized(_ternary(np.rint(RATIOS)))
    made = case.model
    first = quant_node(inputs=["x", "x_scale", "zero", "bits8"], signed=1, narrow=0)
    first.output[0], first.name = "xq", "quant_x"
    made.graph.node.insert(0, first)
    made.graph.node[-1].input[0] = "xq"
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, F32), name)
        for name, value in (("x_scale", 0.1), ("bits8", 8))
    )
    return case


def behind_a_cone() -> Case:
    """Quant of a computed weight, and a step behind it that only onnxruntime computes."""
    case = quantized(_ternary(np.rint(RATIOS)), steps=("Reshape", "Identity"))
    made = case.model
    made.graph.node.insert(0, node("Neg", ["negative"], "v"))
    (v,) = (each for each in made.graph.initializer if each.name == "v")
    v.CopyFrom(onnx.numpy_helper.from_array(-FLOATS, "negative"))
    return case


HITS: dict[str, Callable[[], Case]] = {
    "qonnx_quant": lambda: quantized(_ternary(np.rint(RATIOS))),
    "qonnx_quant_finn": lambda: quantized(_ternary(np.rint(RATIOS)), domain=FINN),
    "qonnx_quant_brevitas": lambda: quantized(_ternary(np.rint(RATIOS)), domain=BREVITAS),
    "qonnx_int_quant": lambda: quantized(_ternary(np.rint(RATIOS)), kind="IntQuant"),
    "qonnx_quant_columns": lambda: quantized(
        np.rint(np.clip(FLOATS / ROW, -1, 1)) * ROW, scale=ROW[None]
    ),
    "qonnx_quant_transposed": lambda: quantized(
        np.rint(np.clip(FLOATS / ROW, -1, 1)) * ROW, scale=ROW[:, None], steps=("Transpose",)
    ),
    "qonnx_quant_ceil": lambda: quantized(_ternary(np.ceil(RATIOS)), rounding_mode="CEIL"),
    "qonnx_quant_floor": lambda: quantized(_ternary(np.floor(RATIOS)), rounding_mode="floor"),
    "qonnx_quant_up": lambda: quantized(_ternary(np.sign(RATIOS)), rounding_mode="UP"),
    "qonnx_quant_down": lambda: quantized(_ternary(np.trunc(RATIOS)), rounding_mode="DOWN"),
    "qonnx_quant_half_up": lambda: quantized(
        _ternary(np.sign(RATIOS) * (np.abs(RATIOS) >= 0.5)), rounding_mode="HALF_UP"
    ),
    "qonnx_quant_half_down": lambda: quantized(
        _ternary(np.sign(RATIOS) * (np.abs(RATIOS) > 0.5)), rounding_mode="HALF_DOWN"
    ),
    # 0, 1, 2 around 1.
    "qonnx_quant_unsigned_narrow": lambda: quantized(
        _ternary(np.clip(np.rint(FLOATS / SCALE + 1), 0, 2) - 1), signed=0, zero=1
    ),
    "qonnx_quant_unsigned_1_bit": lambda: quantized(
        _ternary(np.rint(np.clip(FLOATS / SCALE, 0, 1))), bits=1, signed=0, narrow=0
    ),
    "qonnx_quant_signed_1_bit": lambda: quantized(_ternary(np.where(RATIOS >= 0, 1, -1)), bits=1),
    "qonnx_bipolar": bipolar,
    "qonnx_bipolar_columns": lambda: bipolar(ROW[None]),
    "qonnx_in_a_cone": behind_a_cone,
}


def _scale_at_run_time() -> onnx.ModelProto:
    made = quantized(FLOATS).model
    (scale,) = (each for each in made.graph.initializer if each.name == "scale")
    made.graph.initializer.remove(scale)
    made.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ()))
    return made


def _weight_at_run_time() -> onnx.ModelProto:
    made = quantized(FLOATS).model
    (v,) = (each for each in made.graph.initializer if each.name == "v")
    made.graph.initializer.remove(v)
    made.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, (K, N)))
    return made


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "qonnx_not_narrow": lambda: Miss(
        quantized(FLOATS, narrow=0).model,
        "weight has 2 distinct magnitudes in column 0, expected 1",
    ),
    "qonnx_three_bits": lambda: Miss(
        quantized(FLOATS, bits=3).model, "weight has 3 distinct magnitudes in column 0, expected 1"
    ),
    "qonnx_bit_width": lambda: Miss(
        quantized(FLOATS, bits=1.5).model,
        "weight 'v' is quantized by Quant 'quant' with bit width 1.5, expected a whole number from "
        "1 to 32",
    ),
    "qonnx_rounding_mode": lambda: Miss(
        quantized(FLOATS, rounding_mode="STOCHASTIC").model,
        "weight 'v' is quantized by Quant 'quant' with rounding_mode 'STOCHASTIC', expected one of "
        "ROUND, CEIL, FLOOR, UP, DOWN, HALF_UP, HALF_DOWN",
    ),
    "qonnx_scale_shape": lambda: Miss(
        quantized(FLOATS, scale=np.ones(3, F32)).model,
        "weight 'v' is quantized by Quant 'quant' with 'scale' of shape (3,), expected one that "
        "spreads over (48, 20)",
    ),
    "qonnx_scale_at_run_time": lambda: Miss(
        _scale_at_run_time(),
        "weight 'v' goes through Quant 'quant', where 'scale' is given at run time",
    ),
    "qonnx_weight_at_run_time": lambda: Miss(
        _weight_at_run_time(),
        "no constant weight: 'w' is computed at run time (by Quant 'quant')",
    ),
}
