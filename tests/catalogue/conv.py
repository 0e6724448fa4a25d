"""Conv with a 1 x 1 kernel, and convolutions that are no product."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.case import (
    TWO,
    Array,
    Case,
    Miss,
    changed,
    column_scales,
    model,
    node,
    ternary,
    to_half,
)

CONV_OPTIONS = {"convolutions": True}


def conv(
    kernel: int = 1,
    group: int = 1,
    *,
    channels: int = 8,
    given: Array | None = None,
    bias: Array | None = None,
    runtime_bias: bool = False,
    after: Array | None = None,
    spatial: Sequence[int] = (5, 5),
    **attributes: Any,
) -> onnx.ModelProto:
    """``given`` is (N, K), 8 x 8 if None."""
    matrix = ternary(8, 8) if given is None else given
    ones = (1,) * len(spatial)
    weight = matrix.reshape(*matrix.shape, *ones)
    weight = np.ascontiguousarray(np.broadcast_to(weight, (*matrix.shape, *(kernel,) * len(ones))))
    constants = {"w": np.ascontiguousarray(weight[:, : matrix.shape[1] // group])}
    inputs = []
    if bias is not None:
        constants["bias"] = bias
    if runtime_bias:
        inputs.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, matrix.shape[:1]))
    operands = ["x", "w", *(["bias"] if bias is not None or runtime_bias else [])]
    last = "y" if after is None else "p"
    nodes = [helper.make_node("Conv", operands, [last], name="product", group=group, **attributes)]
    if after is not None:
        constants["after"] = after
        nodes.append(node("Mul", ["p", "after"], "y"))
    return model(nodes, constants, x_shape=("batch", channels, *spatial), inputs=inputs)


CONV_WEIGHT = ternary(24, 32, scale=0.5)
"""(N, K), as Conv has it."""


def conv_hit(pattern: str = "Conv", scale: float = 1.0, **kwargs: Any) -> Case:
    kwargs = {"channels": 32, "given": CONV_WEIGHT, **kwargs}
    weight = kwargs["given"].T.astype(np.float64) * scale
    return Case(conv(**kwargs), (pattern,), (weight,), options=CONV_OPTIONS)


def dequantized_conv() -> Case:
    """quantize_static(per_channel=True): int8 codes with one scale per output channel."""
    codes = np.sign(CONV_WEIGHT).astype(np.int8)
    scale = column_scales(24)
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w", axis=0),
            helper.make_node("Conv", ["x", "w"], ["y"], name="product"),
        ],
        {"codes": codes[..., None, None], "scale": scale},
        x_shape=("batch", 32, 5, 5),
    )
    weight = (codes.T * scale).astype(np.float64)
    return Case(made, ("Conv",), (weight,), grows=True, options=CONV_OPTIONS)


def runtime_conv() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 8, 1, 1))]
    made = helper.make_node("Conv", ["x", "w"], ["y"], name="product")
    return model([made], {}, x_shape=("batch", 8, 5, 5), inputs=inputs)


def _half_conv() -> Case:
    case = conv_hit()
    return dataclasses.replace(case, model=to_half(case.model))


HITS: dict[str, Callable[[], Case]] = {
    "conv_float16": lambda: _half_conv(),
    "conv": conv_hit,
    "conv_rank_3": lambda: conv_hit(spatial=(7,)),
    "conv_rank_5": lambda: conv_hit(spatial=(2, 3, 4)),
    "conv_bias": lambda: conv_hit(bias=column_scales(24)),
    "conv_channel_scales": lambda: conv_hit(
        given=ternary(24, 32, scale=1.0) * column_scales(24)[:, None]
    ),
    "conv_scale_after": lambda: conv_hit("Conv -> Mul", 2.0, after=TWO),
    "conv_auto_pad": lambda: conv_hit(auto_pad="SAME_UPPER"),
    "conv_dequantized": dequantized_conv,
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "conv_1x1": lambda: Miss(
        conv(),
        "Conv with a 1 x 1 kernel: the op with Transposes around it runs at 0.1 to 1.0 times the "
        "speed of Conv; --conv (convolutions=True) rewrites it to make the file smaller",
    ),
    "conv_3x3": lambda: Miss(
        conv(3), "Conv with a 3 x 3 kernel: im2col would copy its input 9 times", CONV_OPTIONS
    ),
    "conv_3x3_float": lambda: Miss(
        conv(3, given=np.linspace(1, 2, 64, dtype=np.float32).reshape(8, 8)),
        "weight has 8 distinct magnitudes in column 0, expected 1",
    ),
    "conv_grouped_float": lambda: Miss(
        conv(group=2, given=np.linspace(1, 2, 64, dtype=np.float32).reshape(8, 8)),
        "weight has 4 distinct magnitudes in column 0, expected 1",
    ),
    "conv_strides": lambda: Miss(
        conv(strides=[2, 2]), "Conv with strides [2, 2]: only 1 is handled", CONV_OPTIONS
    ),
    "conv_pads": lambda: Miss(
        conv(pads=[1, 1, 1, 1]), "Conv with pads [1, 1, 1, 1]: only 0 is handled", CONV_OPTIONS
    ),
    "conv_runtime_bias": lambda: Miss(
        conv(runtime_bias=True), "bias 'bias' is no finite constant", CONV_OPTIONS
    ),
    "conv_one_weight_off": lambda: Miss(
        conv(given=changed(ternary(8, 8), 2, 3, 0.25025)),
        "weight has 2 distinct magnitudes in column 2, expected 1",
        CONV_OPTIONS,
    ),
    "conv_channels": lambda: Miss(
        conv(channels=7), "input 'x' has 7 channels, but weight 'w' has 8", CONV_OPTIONS
    ),
    "conv_grouped": lambda: Miss(
        conv(group=2), "Conv with 2 groups: not one product", CONV_OPTIONS
    ),
    "conv_runtime": lambda: Miss(runtime_conv(), "no constant weight: 'w' is given at run time"),
}
