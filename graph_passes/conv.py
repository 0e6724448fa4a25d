"""Conv with a ternary weight: refused, because it would be slower.

1. Kernel 1 x 1, one group: a product of (batch, height, width, channels) rows with Transposes
   around it. Measured, that runs at 0.1 to 1 times the speed of ONNX Runtime's Conv, which keeps
   its images blocked for the processor (docs/adr/0005-leave-convolutions-float.md).
2. Larger kernels: im2col copies every pixel once a kernel element before the same product.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from .match import Context, Rejection, TernaryMatMul
from .weights import Constant, resolve


class Conv:
    """``Conv(X, W)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Conv")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """Always a refusal."""
        value = node.inputs[1] if len(node.inputs) > 1 else None
        weight = None if value is None else resolve(value)
        if not isinstance(weight, Constant):
            why = "an operand is missing" if weight is None else weight.reason
            return Rejection(node, f"no constant weight: {why}")
        kernel = weight.shape[2:]
        size = " x ".join(map(str, kernel))
        if any(each != 1 for each in kernel):
            reason = (
                f"Conv with a {size} kernel: im2col would copy its input {math.prod(kernel)} times"
            )
        elif node.attributes.get_int("group", 1) != 1:
            reason = f"Conv with {node.attributes.get_int('group', 1)} groups: not one product"
        else:
            reason = (
                f"Conv with a {size} kernel: the op with Transposes around it would be slower "
                "(with 256 channels and 28 x 28 pixels it ran at half the speed of Conv)"
            )
        return Rejection(node, reason, weight.name)


RULES = (Conv(),)
