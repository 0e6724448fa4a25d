"""How the op quantizes its activations, in numpy (docs/op_spec.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.schema import OpAttributes


def quantize_rows(
    x: NDArray[np.float32], attributes: OpAttributes
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The int8 activation rule of docs/op_spec.md, every operation rounded to float32.

    Args:
        x: (M, K) float32.
        attributes: activation_rule, activation_epsilon, activation_qmin, activation_qmax are used.

    Returns:
        q (M, K) int8 and s (M,) float32, where q is about x * s. A row with NaN or inf has q = 0
        and s = NaN.
    """
    epsilon = np.float32(attributes.activation_epsilon)
    qmax = np.float32(attributes.activation_qmax)
    absmax = np.maximum(np.max(np.abs(x), axis=1, initial=0), epsilon)
    finite = np.isfinite(absmax)
    absmax = np.where(finite, absmax, np.float32(1))
    if attributes.activation_rule == "absmax_division":
        s = qmax / absmax
    else:
        s = (np.float32(1) / absmax) * qmax
    scaled = np.where(finite[:, None], x, np.float32(0)) * s[:, None]
    q = np.clip(np.rint(scaled), attributes.activation_qmin, attributes.activation_qmax)
    return q.astype(np.int8), np.where(finite, s, np.float32(np.nan))


def quantize_tensor(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], np.float32]:
    """The uint8 activation rule of docs/op_spec.md, DynamicQuantizeLinear's, in float32.

    Args:
        x: float32 of any shape, all of the tensor.

    Returns:
        q - x_zero_point, of x's shape and within -255..255, and x_scale. Where x has NaN or inf,
        or its range overflows, they are 0 and not finite.
    """
    lowest = np.min(x, initial=np.float32(0))
    highest = np.max(x, initial=np.float32(0))
    with np.errstate(over="ignore", invalid="ignore"):
        x_scale = (highest - lowest) / np.float32(255) if lowest != highest else np.float32(1)
    if not (np.isfinite(x_scale) and x_scale > 0):
        # A scale of 0, from a range of denormals, makes every product 0, whatever q is.
        return np.zeros(x.shape, np.int64), x_scale if x_scale == 0 else np.float32(np.nan)
    zero_point = np.rint(np.clip(np.float32(0) - lowest / x_scale, 0, 255))
    q = np.clip(np.rint(x / x_scale) + zero_point, 0, 255)
    return (q - zero_point).astype(np.int64), x_scale
