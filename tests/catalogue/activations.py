"""Float products whose activations the model quantizes itself.

`HITS` are fused into the op; `KEPT` become the op while their activations go on being quantized by
the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.catalogue.case import (
    F32,
    MICROSOFT,
    Array,
    Case,
    K,
    Miss,
    N,
    column_scales,
    matmul,
    model,
    node,
    ternary,
)
from tests.catalogue.matmul_nbits import nbits

Nodes = list[onnx.NodeProto]
Constants = dict[str, Array]
SCALE = np.array([0.037], F32)
BIAS = np.linspace(-1, 1, N, dtype=F32)
INT8 = {
    "activation": "int8",
    "activation_rule": "absmax_reciprocal",
    "activation_epsilon": float(F32(1e-5)),
    "activation_qmin": -128,
    "activation_qmax": 127,
}
UINT8 = {
    "activation": "uint8",
    "activation_rule": "dynamic_quantize_linear",
    "activation_epsilon": 0.0,
    "activation_qmin": 0,
    "activation_qmax": 255,
}


def absmax(
    *,
    x: str = "x",
    opset: int = 17,
    dtype: Any = F32,
    axes: Sequence[int] | None = (-1,),
    epsilon: float | None = 1e-5,
    bound: str = "Clip",
    scale: str = "reciprocal",
    qmax: float = 127.0,
    rounding: str = "Round",
    clip: tuple[float, float] | None = (-128.0, 127.0),
    prefix: str = "",
) -> tuple[Nodes, Constants]:
    """Activations ``q`` in whole numbers, and the scale ``s`` they were multiplied by."""

    def name(text: str) -> str:
        return f"{prefix}{text}"

    constants: Constants = {name("qmax"): np.array(qmax, dtype)}
    nodes = [node("Abs", [x], name("magnitudes"))]
    reduce_inputs, extra = [name("magnitudes")], {}
    if axes is not None and opset >= 18:
        reduce_inputs.append(name("axes"))
        constants[name("axes")] = np.array(axes, np.int64)
    elif axes is not None:
        extra["axes"] = list(axes)
    nodes.append(node("ReduceMax", reduce_inputs, name("reduced"), keepdims=1, **extra))
    top = name("reduced")
    if epsilon is not None:
        constants[name("epsilon")] = np.array(epsilon, dtype)
        nodes.append(node(bound, [top, name("epsilon")], name("absmax")))
        top = name("absmax")
    if scale == "division":
        nodes.append(node("Div", [name("qmax"), top], name("s")))
    else:
        if scale == "one over":
            constants[name("one")] = np.array(1, dtype)
            nodes.append(node("Div", [name("one"), top], name("inverse")))
        else:
            nodes.append(node("Reciprocal", [top], name("inverse")))
        nodes.append(node("Mul", [name("inverse"), name("qmax")], name("s")))
    nodes.append(node("Mul", [x, name("s")], name("scaled")))
    last = name("scaled") if clip is None else name("rounded")
    if clip is None:
        return [*nodes, node(rounding, [last], name("q"))], constants
    nodes.append(node(rounding, [name("scaled")], last))
    constants |= {name("low"): np.array(clip[0], dtype), name("high"): np.array(clip[1], dtype)}
    if bound == "Clip":
        nodes.append(node("Clip", [last, name("low"), name("high")], name("q")))
    else:
        nodes.append(node("Max", [name("low"), last], name("floored")))
        nodes.append(node("Min", [name("floored"), name("high")], name("q")))
    return nodes, constants


def quantizing_case(
    quantization: tuple[Nodes, Constants],
    nodes: Nodes,
    constants: Constants,
    pattern: str,
    *,
    activation: Mapping[str, Any] = INT8,
    weight: Array | None = None,
    weights: Sequence[Array | None] | None = None,
    **kwargs: Any,
) -> Case:
    made = model([*quantization[0], *nodes], {**quantization[1], **constants}, **kwargs)
    return Case(
        made,
        (f"{activation['activation']} activations -> {pattern}",),
        tuple(weights or (None if weight is None else weight.astype(np.float64),)),
        activation=activation,
    )


def offline(
    *, steps: bool = False, changed: Mapping[str, Any] | None = None, **kwargs: Any
) -> Case:
    """AutoBitLinear with stored ternary weights: ``(q / s) @ w + bias``, times the weight scale."""
    weight = ternary(scale=1.0)
    nodes = [node("Div", ["q", "s"], "dequantized")]
    if steps:  # torchscript writes Casts that do nothing
        nodes.append(node("Cast", ["dequantized"], "cast", to=TensorProto.FLOAT))
    nodes += [
        matmul(nodes[-1].output[0], y="sums"),
        node("Add", ["bias", "sums"], "biased"),
        node("Mul", ["biased", "scale"], "y"),
    ]
    return quantizing_case(
        absmax(**kwargs),
        nodes,
        {"w": weight, "bias": BIAS, "scale": SCALE},
        "MatMul -> Add -> Mul",
        activation={**INT8, **(changed or {})},
        weight=weight * np.float64(SCALE),
        opset=kwargs.get("opset", 17),
        x_shape=("batch", "tokens", K),
    )


def online() -> Case:
    """AutoBitLinear that quantizes its weight in the graph: a constant expression."""
    quantized = absmax(opset=18)
    weight = ternary(scale=0.02).T.copy()
    nodes = [
        node("Abs", ["w"], "w_magnitudes"),
        node("ReduceMean", ["w_magnitudes"], "w_mean", keepdims=0),
        node("Reciprocal", ["w_mean"], "w_inverse"),
        node("Mul", ["w", "w_inverse"], "w_scaled"),
        node("Round", ["w_scaled"], "w_rounded"),
        node("Clip", ["w_rounded", "minus_one", "one"], "w_clipped"),
        node("Div", ["w_clipped", "w_inverse"], "w_quantized"),
        node("Transpose", ["w_quantized"], "w_turned", perm=[1, 0]),
        node("Div", ["q", "s"], "dequantized"),
        matmul("dequantized", "w_turned"),
    ]
    constants = {"w": weight, "minus_one": np.array(-1, F32), "one": np.array(1, F32)}
    return quantizing_case(quantized, nodes, constants, "MatMul", opset=18)


def packed(*, casts: bool = True, separate: bool = False, first: str = "scale") -> Case:
    """BitLinear: ``q @ w / (s * weight_scale)``, q through int8."""
    weight = ternary(scale=1.0)
    nodes: Nodes = []
    if casts:
        nodes += [
            node("Cast", ["q"], "narrow", to=TensorProto.INT8),
            node("Cast", ["narrow"], "wide", to=TensorProto.FLOAT),
        ]
    nodes.append(matmul("wide" if casts else "q", y="sums"))
    if separate:
        nodes += [node("Div", ["sums", "s"], "unscaled"), node("Div", ["unscaled", "scale"], "y")]
    else:
        operands = [first, "s" if first == "scale" else "scale"]
        nodes += [node("Mul", operands, "both"), node("Div", ["sums", "both"], "y")]
    return quantizing_case(
        absmax(opset=18),
        nodes,
        {"w": weight, "scale": SCALE},
        "MatMul -> Div -> Div" if separate else "MatMul -> Div",
        opset=18,
    )


def by_absmax(*, before: bool) -> Case:
    """The scale back is ``absmax / 127`` rather than one over s; before the product or behind."""
    quantized = absmax(scale="division", opset=18)
    back = node("Div", ["absmax", "qmax"], "back")
    if before:
        nodes = [back, node("Mul", ["back", "q"], "dequantized"), matmul("dequantized")]
    else:
        nodes = [back, matmul("q", y="sums"), node("Mul", ["sums", "back"], "y")]
    weight = ternary()
    return quantizing_case(
        quantized,
        nodes,
        {"w": weight},
        "MatMul" if before else "MatMul -> Mul",
        activation={**INT8, "activation_rule": "absmax_division"},
        opset=18,
    )


def gemm() -> Case:
    weight = ternary(scale=column_scales())
    nodes = [
        node("Div", ["q", "s"], "dequantized"),
        helper.make_node("Gemm", ["dequantized", "w", "c"], ["y"], name="product", transB=1),
    ]
    constants = {"w": weight.T.copy(), "c": BIAS}
    return quantizing_case(absmax(), nodes, constants, "Gemm", weight=weight)


def two_bit_codes() -> Case:
    """MatMulNBits behind the quantization: the scale of a block of rows is a group's."""
    quantized, stored = absmax(), nbits().model
    product = stored.graph.node[0]
    product.input[0] = "dequantized"
    constants = {each.name: numpy_helper.to_array(each) for each in stored.graph.initializer}
    nodes = [node("Div", ["q", "s"], "dequantized"), product]
    case = quantizing_case(quantized, nodes, constants, "MatMulNBits", opsets=MICROSOFT)
    return replace(case, grows=True)


def float16() -> Case:
    """Activations go through float32 and come back as float16."""
    weight = ternary(dtype=np.float16)
    quantized = absmax(x="wide")
    nodes = [
        node("Div", ["q", "s"], "dequantized"),
        node("Cast", ["dequantized"], "narrow", to=TensorProto.FLOAT16),
        matmul("narrow"),
    ]
    widen = node("Cast", ["x"], "wide", to=TensorProto.FLOAT)
    return quantizing_case(
        ([widen, *quantized[0]], quantized[1]),
        nodes,
        {"w": weight},
        "MatMul",
        weight=weight,
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )


def shared() -> Case:
    """Three products of the same quantized activations, which a person calls q, k and v."""
    weight = [ternary(seed=seed) for seed in range(3)]
    nodes = [node("Div", ["q", "s"], "dequantized")]
    nodes += [matmul("dequantized", f"w{i}", f"y{i}", f"product{i}") for i in range(3)]
    quantized = absmax()
    made = model(
        [*quantized[0], *nodes],
        {**quantized[1], **{f"w{i}": weight[i] for i in range(3)}},
        outputs=("y0", "y1", "y2"),
    )
    return Case(
        made,
        ("int8 activations -> MatMul",) * 3,
        tuple(each.astype(np.float64) for each in weight),
        activation=INT8,
    )


def seen(*, output: bool) -> Case:
    """The integers are a graph output, or another node's input, as well."""
    case = offline()
    made = case.model
    name = "q"
    if not output:
        made.graph.node.append(node("Relu", ["q"], "positive"))
        name = "positive"
    made.graph.output.append(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", "tokens", K))
    )
    return case


def dynamic(*, x: str = "x") -> Nodes:
    outputs = ["q", "x_scale", "zero"]
    return [helper.make_node("DynamicQuantizeLinear", [x], outputs, name="quantize")]


def dynamic_qdq() -> Case:
    """DynamicQuantizeLinear and DequantizeLinear in front of a float product."""
    weight = ternary(scale=column_scales())
    nodes = [
        *dynamic(),
        node("DequantizeLinear", ["q", "x_scale", "zero"], "dequantized"),
        matmul("dequantized"),
    ]
    return quantizing_case(
        ([], {}), nodes, {"w": weight}, "MatMul", activation=UINT8, weight=weight
    )


_DIVISION = {"activation_rule": "absmax_division"}


def without_scale(case: Case, drop: int = 1) -> onnx.ModelProto:
    """The model cut off before its last nodes; the cut is the output."""
    made = case.model
    for _ in range(drop):
        last = made.graph.node.pop()
    del made.graph.output[:]
    made.graph.output.append(onnx.ValueInfoProto(name=last.input[0]))
    return made


def with_input(case: Case, **inputs: tuple[int, str]) -> onnx.ModelProto:
    """The model with one input of a node, by its name, replaced."""
    made = case.model
    for name, (at, value) in inputs.items():
        (found,) = (each for each in made.graph.node if each.name == name)
        found.input[at] = value
    return made


def inserted(made: onnx.ModelProto, new: onnx.NodeProto, before: str) -> onnx.ModelProto:
    """The model with a node of one input between two others."""
    (at,) = (i for i, each in enumerate(made.graph.node) if each.name == before)
    made.graph.node[at].input[0] = new.output[0]
    made.graph.node.insert(at, new)
    return made


def with_constant(made: onnx.ModelProto, name: str, array: Array) -> onnx.ModelProto:
    made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def _swapped_scale() -> onnx.ModelProto:
    """q is divided by another row scale than the one it was multiplied by."""
    made = offline().model
    made.graph.input.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, ("batch", "tokens", 1))
    )
    (divide,) = (each for each in made.graph.node if each.op_type == "Div")
    divide.input[1] = "other"
    return made


def _bias_between() -> onnx.ModelProto:
    """A bias is added to the sums of integers before they are scaled."""
    made = packed(casts=False).model
    made.graph.node.insert(-1, node("Add", ["sums", "bias"], "biased"))
    made.graph.node[-1].input[0] = "biased"
    return with_constant(made, "bias", BIAS)


def _in_float16() -> onnx.ModelProto:
    weight = ternary(dtype=np.float16)
    quantized = absmax(dtype=np.float16)
    nodes = [node("Div", ["q", "s"], "dequantized"), matmul("dequantized")]
    return model(
        [*quantized[0], *nodes],
        {**quantized[1], "w": weight},
        x_dtype=TensorProto.FLOAT16,
        y_dtype=TensorProto.FLOAT16,
    )


def _divides_by_scale() -> onnx.ModelProto:
    """``round(x / (absmax / 127))``: other bits than ``x * (127 / absmax)``."""
    made = offline(scale="division").model
    for each in made.graph.node:
        if each.output[0] == "s":
            each.input[:] = ["absmax", "qmax"]
        elif each.output[0] == "scaled":
            each.op_type = "Div"
        elif each.output[0] == "dequantized":
            each.op_type = "Mul"
    return made


def _transposed() -> onnx.ModelProto:
    """Gemm with transA takes the quantized rows as columns."""
    quantized = absmax()
    nodes = [
        node("Div", ["q", "s"], "dequantized"),
        helper.make_node("Gemm", ["dequantized", "w"], ["y"], name="product", transA=1),
    ]
    return model([*quantized[0], *nodes], {**quantized[1], "w": ternary()}, x_shape=(K, K))


def _more_axes() -> onnx.ModelProto:
    """The weight's scale has more axes than the product, which it gives to the result."""
    made = packed(separate=True).model
    (scale,) = (each for each in made.graph.initializer if each.name == "scale")
    scale.CopyFrom(numpy_helper.from_array(SCALE.reshape(1, 1, 1), "scale"))
    unscaled, scaled = made.graph.node[-2:]
    unscaled.input[1], scaled.input[1] = "scale", "s"
    del made.graph.output[:]
    made.graph.output.append(onnx.ValueInfoProto(name="y"))
    return made


NEAR_MISSES: dict[str, Callable[[], Miss]] = {}
KEPT: dict[str, Callable[[], tuple[onnx.ModelProto, str]]] = {
    "floor": lambda: (
        offline(rounding="Floor").model,
        "Floor 'Floor_rounded' rounds other than to the nearest even integer",
    ),
    "no_epsilon": lambda: (
        offline(epsilon=None).model,
        "nothing bounds the largest magnitude 'reduced' from below, so the graph makes NaN of a "
        "row of zeros",
    ),
    "epsilon_too_small": lambda: (
        offline(epsilon=1e-35).model,
        "epsilon is 1e-35, the op takes 1e-30 to below 1e30",
    ),
    "whole_tensor": lambda: (
        offline(axes=None).model,
        "ReduceMax 'ReduceMax_reduced' takes axes all, the op quantizes each row of the last axis",
    ),
    "first_axis": lambda: (
        offline(axes=(1,)).model,
        "ReduceMax 'ReduceMax_reduced' takes axes [1], the op quantizes each row of the last axis",
    ),
    "narrower_clip": lambda: (
        offline(clip=(-64.0, 64.0)).model,
        "Round 'Round_rounded' scales to 127 but is clipped to 64",
    ),
    "clip_between": lambda: (
        offline(clip=(-63.5, 127.0)).model,
        "Round 'Round_rounded' is clipped to -63.5, the op to a negative whole number",
    ),
    "qmax_between": lambda: (
        offline(qmax=126.5, clip=(-128.0, 127.0)).model,
        "Round 'Round_rounded' scales to 126.5, the op to whole numbers from 1 to 127",
    ),
    "other_scale_back": lambda: (
        _swapped_scale(),
        "Div 'Div_dequantized' combines the integers with 'other', which is not their scale",
    ),
    "truncating_division": lambda: (
        with_constant(
            inserted(packed().model, node("Div", ["narrow", "two"], "halved"), "Cast_wide"),
            "two",
            np.array(2, np.int8),
        ),
        "Div 'Div_halved' combines the integers with 'two', which is not their scale",
    ),
    "divides_by_scale": lambda: (
        _divides_by_scale(),
        "Round 'Round_rounded' does not round activations multiplied by a scale",
    ),
    "in_float16": lambda: (
        _in_float16(),
        "the activations are quantized in float16, the op does it in float32",
    ),
    "transposed": lambda: (_transposed(), "Gemm 'product' takes them transposed"),
    "bias_between": lambda: (
        _bias_between(),
        "'sums' is not multiplied by the activations' scale alone",
    ),
    "more_axes": lambda: (
        _more_axes(),
        "'sums' is not multiplied by the activations' scale alone",
    ),
    "not_scaled_back": lambda: (
        without_scale(packed(), 1),
        "'sums' is not multiplied by the activations' scale alone",
    ),
}


HITS: dict[str, Callable[[], Case]] = {
    "bitlinear_offline": offline,
    "bitlinear_offline_opset18": lambda: offline(opset=18),
    "bitlinear_offline_casts": lambda: offline(steps=True),
    "bitlinear_online": online,
    "bitlinear_packed": packed,
    "bitlinear_packed_without_int8": lambda: packed(casts=False),
    "bitlinear_packed_scales_apart": lambda: packed(separate=True),
    "bitlinear_packed_s_first": lambda: packed(first="s"),
    "bitlinear_division": lambda: offline(scale="division", changed=_DIVISION),
    "bitlinear_one_over": lambda: offline(scale="one over"),
    "bitlinear_max_min": lambda: offline(bound="Max", opset=18),
    "bitlinear_last_axis_by_number": lambda: offline(axes=(2,)),
    "bitlinear_no_clip": lambda: offline(clip=None, changed={"activation_qmin": -128}),
    "bitlinear_narrow_clip": lambda: offline(clip=(-127.0, 127.0)),
    "bitlinear_four_bits": lambda: offline(
        qmax=7.0, clip=(-8.0, 7.0), changed={"activation_qmax": 7}
    ),
    "bitlinear_half_of_the_range": lambda: offline(
        clip=(-64.0, 127.0), changed={"activation_qmin": -64}
    ),
    "bitlinear_other_epsilon": lambda: offline(epsilon=0.5, changed={"activation_epsilon": 0.5}),
    "bitlinear_absmax_before": lambda: by_absmax(before=True),
    "bitlinear_absmax_behind": lambda: by_absmax(before=False),
    "bitlinear_gemm": gemm,
    "bitlinear_nbits": two_bit_codes,
    "bitlinear_float16": float16,
    "bitlinear_shared": shared,
    "bitlinear_seen_output": lambda: seen(output=True),
    "bitlinear_seen_node": lambda: seen(output=False),
    "dynamic_qdq": dynamic_qdq,
}
