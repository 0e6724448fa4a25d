"""Straight-through estimators, as training code leaves them: ``w + (quantize(w) - w)``.

    Add(w, Sub(q, w)), Add(Sub(q, w), w), Sub(w, Sub(w, q)), Sub(Add(q, w), w)   =   q

The value is q but for the rounding of two operations. Weights and activations are taken for q:

1. A weight, where q is ternary and no element of the sum is further from q than `MAX_ROUNDINGS`
   roundings in the weight's type, relative to the scale. That distance is the change the report
   states. The scale and the levels are those of q.
2. Else it is an ordinary expression, and so is a sum that is ternary as it is: of numbers far
   larger than q it keeps little, and NaN in it stays NaN.
3. Activations: rules/activation_quantization.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.index.levels import (
    NEARLY,
    NotTernary,
    TernaryWeight,
    largest_change,
    ternarize,
    unit,
)

from .constant import Constant, Numbers, Reader, call_attribute

MAX_ROUNDINGS = NEARLY
"""A master weight is rarely more than a few times the scale; its distance from q rounds once."""
_MAX_IDENTITIES = 8


@dataclass(frozen=True, slots=True)
class StraightThrough:
    """Both ends of a straight-through estimator.

    Attributes:
        quantized: q.
        master: w, which is added and subtracted.
        sum_first: whether it is ``(q + w) - w``.
    """

    quantized: ir.Value
    master: ir.Value
    sum_first: bool = False


def straight_through(value: ir.Value | None) -> StraightThrough | None:
    """The straight-through estimator whose result a value is, if it is one."""
    outer = _operands(value)
    if outer is None:
        return None
    op_type, first, second = outer
    if op_type == "Add":
        for master, difference in ((first, second), (second, first)):
            inner = _operands(difference)
            if inner is not None and inner[0] == "Sub" and same(inner[2], master):
                return StraightThrough(inner[1], master)
        return None
    inner = _operands(second)
    if inner is not None and inner[0] == "Sub" and same(inner[1], first):
        return StraightThrough(inner[2], first)
    inner = _operands(first)
    if inner is not None and inner[0] == "Add":
        for quantized, master in (inner[1:], inner[:0:-1]):
            if same(master, second):
                return StraightThrough(quantized, master, sum_first=True)
    return None


def _operands(value: ir.Value | None) -> tuple[str, ir.Value, ir.Value] | None:
    """Add or Sub and its two operands, if one of them makes a value."""
    node = None if value is None else source(value).producer()
    if node is None or node.domain != "" or node.op_type not in ("Add", "Sub"):
        return None
    if len(node.inputs) != 2 or call_attribute(node):
        return None
    first, second = node.inputs
    return None if first is None or second is None else (node.op_type, first, second)


def source(value: ir.Value) -> ir.Value:
    """What a value is behind Identity nodes."""
    for _ in range(_MAX_IDENTITIES):
        node = value.producer()
        if node is None or node.domain != "" or node.op_type != "Identity":
            return value
        if not node.inputs or node.inputs[0] is None:
            return value
        value = node.inputs[0]
    return value


def same(one: ir.Value, other: ir.Value) -> bool:
    """Whether two values are one behind Identity nodes."""
    return source(one) is source(other)


@dataclass(frozen=True, slots=True)
class StraightThroughNumbers:
    """The `Reader` of a weight behind a straight-through estimator (cases 1 and 2).

    Attributes:
        exact: the numbers of the sum, which everything but levels is read from.
        quantized: those of q.
    """

    exact: Reader
    quantized: Reader

    def __call__(self) -> NDArray[Any]:
        """The numbers of the sum."""
        return self.exact()

    def transposed(self, perm: tuple[int, ...]) -> StraightThroughNumbers:
        """The same behind a Transpose."""
        return StraightThroughNumbers(self.exact.transposed(perm), self.quantized.transposed(perm))

    def matrix(self) -> StraightThroughNumbers:
        """The same without all axes but the first two; the others have one element each."""
        return StraightThroughNumbers(self.exact.matrix(), self.quantized.matrix())

    def cast(self, dtype: np.dtype[Any]) -> StraightThroughNumbers:
        """The same behind a Cast to a float type."""
        return StraightThroughNumbers(self.exact.cast(dtype), self.quantized.cast(dtype))

    def ternarize(self) -> TernaryWeight | NotTernary | None:
        """Levels and scales of q, with the change; None where the sum is not near q."""
        exact = self.exact()
        plain = ternarize(exact)
        if isinstance(plain, TernaryWeight) and not plain.group_size:
            return plain
        found = self.quantized.ternarize()
        if found is None:
            found = ternarize(self.quantized())
        if not isinstance(found, TernaryWeight):
            return None
        change = largest_change(exact, found)
        if not change <= MAX_ROUNDINGS * unit(exact.dtype):
            return None
        return replace(found, max_relative_change=max(found.max_relative_change, change))


def computed_here(
    ends: StraightThrough, quantized: Constant, master: Constant, node: ir.Node
) -> Constant | None:
    """An estimator of bfloat16 numbers, for which onnxruntime has no Add; None for other ones."""
    if not (quantized.dtype == master.dtype == ir.DataType.BFLOAT16):
        return None
    if quantized.shape != master.shape:
        return None

    def exact() -> NDArray[Any]:
        q, w = quantized.numpy(), master.numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            numbers: NDArray[Any] = (q + w) - w if ends.sum_first else w + (q - w)
        return numbers

    return replace(
        master,
        nodes=(*master.nodes, node),
        key=("straight through", quantized.key, master.key),
        stored_bytes=max(quantized.stored_bytes, master.stored_bytes),
        evaluate=StraightThroughNumbers(Numbers(exact), quantized.evaluate),
    )


def taken_for_quantized(exact: Constant, quantized: Constant) -> Constant:
    """The constant at the end of a straight-through estimator; as it is where shapes differ."""
    if (exact.shape, exact.dtype) != (quantized.shape, quantized.dtype):
        return exact
    key = exact.key if isinstance(exact.key, tuple) else (exact.key,)
    return replace(
        exact,
        key=(*key, ("straight through",)),
        evaluate=StraightThroughNumbers(exact.evaluate, quantized.evaluate),
    )
