"""QONNX's quantizers of weights, which ONNX Runtime has no kernels for.

    Quant(w, scale, zero_point, bit_width) -> ...      BipolarQuant(w, scale) -> ...

1. Quant and IntQuant: ``(round(clip(w / scale + zero_point, low, high)) - zero_point) * scale`` in
   float32, the range from `signed`, `narrow` and the bit width, with each of the specification's
   rounding modes. Two bits signed and narrow is ternary.
2. One bit, signed: ``w / scale + zero_point >= 0`` is +1, everything else -1, as QONNX's own
   implementation does where the specification refers to BipolarQuant.
3. BipolarQuant: ``w >= 0`` is +scale, everything else -scale.

Source: docs/qonnx-custom-ops/quant_op.md and bipolar_quant_op.md of
https://github.com/fastmachinelearning/qonnx. Brevitas writes the domain onnx.brevitas, FINN and
older QONNX finn.custom_op.general. Called by resolve.py for constants; on activations they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .constant import Constant, Numbers
from .dequantize import step_key

DOMAINS = frozenset({"finn.custom_op.general", "onnx.brevitas", "qonnx.custom_op.general"})
STEPS = frozenset(
    (domain, name) for domain in DOMAINS for name in ("BipolarQuant", "IntQuant", "Quant")
)
"""(domain, op_type) of what `apply` evaluates."""

_MAX_BITS = 32
Float32 = NDArray[np.float32]


def _halves(values: Float32, *, up: bool) -> Float32:
    """The nearest integers, halves away from zero or toward it."""
    size = np.abs(values)
    whole = np.floor(size)
    rest = size - whole
    rounded: Float32 = np.copysign(whole + (rest >= 0.5 if up else rest > 0.5), values)
    return rounded


_ROUNDING: Mapping[str, Callable[[Float32], Float32]] = {
    "ROUND": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda values: np.copysign(np.ceil(np.abs(values)), values),
    "DOWN": np.trunc,
    "HALF_UP": lambda values: _halves(values, up=True),
    "HALF_DOWN": lambda values: _halves(values, up=False),
}


def apply(node: ir.Node, operands: Sequence[Constant | None]) -> Constant | str:
    """The constant that one of `STEPS` makes of constants, or why it is not evaluated.

    Args:
        node: the step.
        operands: its inputs, None for an input left out; the first is there.
    """
    bipolar = node.op_type == "BipolarQuant"
    given = [each for each in operands if each is not None]
    source, what = given[0], f"'{given[0].name}' is quantized by {node.op_type} '{node.name}'"
    if len(given) != len(operands) or len(given) != (2 if bipolar else 4):
        return f"{what} with {len(given)} operands, expected {2 if bipolar else 4}"
    for each in given[: 2 if bipolar else 3]:
        if each.dtype != ir.DataType.FLOAT:
            return f"{what} in type {each.dtype.name}, expected FLOAT"
        if len(each.shape) > len(source.shape) or not _fits(each.shape, source.shape):
            return (
                f"{what} with '{each.name}' of shape {each.shape}, expected one that spreads over "
                f"{source.shape}"
            )
    if bipolar:
        evaluate = _bipolar(*given)
    else:
        if len(given[3].shape) > len(source.shape):
            return f"{what} with a bit width of shape {given[3].shape}, expected one number"
        rule = _rule(node, given[3])
        if isinstance(rule, str):
            return f"{what} with {rule}"
        evaluate = _quantized(given[0], given[1], given[2], *rule)
    return replace(
        source,
        nodes=(*source.nodes, node),
        key=(step_key(node, *operands),),
        stored_bytes=sum(each.stored_bytes for each in given),
        evaluate=Numbers(evaluate),
    )


def _fits(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    padded = (1,) * (len(target) - len(shape)) + shape
    return all(size in (1, wanted) for size, wanted in zip(padded, target, strict=True))


def _rule(node: ir.Node, bit_width: Constant) -> tuple[bool, int, int, str] | str:
    """Whether it is case 2, lowest and highest integer and rounding mode; or what is wrong."""
    if bit_width.size != 1:
        return f"bit widths of shape {bit_width.shape}, expected one number"
    bits = float(bit_width.numpy().reshape(()))
    if not bits.is_integer() or not 1 <= bits <= _MAX_BITS:
        return f"bit width {bits:g}, expected a whole number from 1 to {_MAX_BITS}"
    signed = bool(node.attributes.get_int("signed", 1))
    narrow = bool(node.attributes.get_int("narrow", 0))
    mode = (node.attributes.get_string("rounding_mode", "ROUND") or "").upper()
    if mode not in _ROUNDING:
        return f"rounding_mode '{mode}', expected one of {', '.join(_ROUNDING)}"
    half = 1 << (int(bits) - 1)
    lowest, highest = (-half + narrow, half - 1) if signed else (0, 2 * half - 1 - narrow)
    return signed and bits == 1, lowest, highest, mode


def _quantized(
    source: Constant,
    scale: Constant,
    zero_point: Constant,
    one_bit: bool,
    lowest: int,
    highest: int,
    mode: str,
) -> Callable[[], NDArray[Any]]:
    def evaluate() -> NDArray[Any]:
        factor, zero = scale.numpy(), zero_point.numpy()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = source.numpy() / factor + zero
            if one_bit:  # case 2
                values = np.where(values >= 0, np.float32(1), np.float32(-1))
            else:
                values = _ROUNDING[mode](np.clip(values, np.float32(lowest), np.float32(highest)))
            result: Float32 = (values - zero) * factor
        return result

    return evaluate


def _bipolar(source: Constant, scale: Constant) -> Callable[[], NDArray[Any]]:
    def evaluate() -> NDArray[Any]:
        factor = scale.numpy()
        result: Float32 = np.where(source.numpy() >= 0, factor, -factor)
        return result

    return evaluate
