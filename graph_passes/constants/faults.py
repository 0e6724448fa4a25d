"""Steps that end the process inside onnx or onnxruntime, where others end in an error.

Found by running operators with extreme operands and attributes (``python -m tests.fuzz operators``;
onnx 1.23, ONNX Runtime 1.32):
1. GatherND with negative batch dimensions: shape inference reads what lies in front of a shape.
2. Integer division of the lowest number by -1, and by zero in earlier versions: the processor stops
   the program.
3. Split with another num_outputs than it has results: shape inference makes sizes of that many.

Operators that nobody computes weights with end it in more ways (operators.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .steps import Step


class _Operand(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> NDArray[Any]: ...


def bad_node(step: Step) -> str:
    """Why not even sizes may be asked for (cases 1 and 3); empty if they may."""
    if _is(step, "GatherND") and (dims := _integer(step, "batch_dims")) < 0:
        return f"{step.label} has batch_dims = {dims}, expected 0 or more"
    num_results = len(step.proto.output)
    if _is(step, "Split") and (parts := _integer(step, "num_outputs", num_results)) != num_results:
        return f"{step.label} has num_outputs = {parts}, expected {num_results}"
    return ""


def bad_operands(step: Step, operands: Mapping[str, _Operand]) -> str:
    """Why a step must not run (case 2); empty if it may.

    Args:
        step: whose operands are all there.
        operands: by name.
    """
    if not _divides(step):
        return ""
    dividend, divisor = (operands[name].numpy() for name in step.proto.input)
    if dividend.dtype.kind not in "iu":
        return ""
    if not divisor.all():
        return f"{step.label} divides by zero"
    # Narrower integers are widened first.
    if dividend.dtype.kind == "i" and dividend.itemsize >= 4:
        lowest = np.iinfo(dividend.dtype).min
        if (divisor == -1).any() and (dividend == lowest).any():
            return f"{step.label} may divide {lowest} by -1, which leaves {dividend.dtype}"
    return ""


def may_divide_badly(step: Step, operands: Mapping[str, _Operand], dtype: ir.DataType) -> bool:
    """Whether `bad_operands` has to look at a division before it runs.

    Args:
        step: of which not all operands need to be there.
        operands: what is there, by name.
        dtype: of the result.
    """
    if not _divides(step) or not dtype.is_integer():
        return False
    divisor = operands.get(step.proto.input[1])
    if divisor is None:
        return True
    numbers = divisor.numpy()
    return not numbers.all() or bool((numbers == -1).any())


def _integer(step: Step, name: str, default: int = 0) -> int:
    return next((each.i for each in step.proto.attribute if each.name == name), default)


def _is(step: Step, *op_types: str) -> bool:
    return step.proto.domain == "" and step.proto.op_type in op_types


def _divides(step: Step) -> bool:
    operands = step.proto.input
    return _is(step, "Div", "Mod") and len(operands) == 2 and all(operands)
