"""Conv with a ternary weight: refused, because it would be slower.

1. Kernel 1 x 1: a product of (batch, height, width, channels) rows, so Transposes stand around the
   op. In onnxruntime 1.31 (x86-64, 1 and 2 threads, batch 1, 64 to 1024 channels in, 256 to 2048
   out, 14 x 14 to 56 x 56 pixels) that took 1.1 to 20 times as long as Conv, which keeps its images
   blocked for the processor; the only win was at 7 x 7 pixels with two threads.
2. Larger kernels: im2col copies every pixel once a kernel element before the same Transposes.
"""

from __future__ import annotations

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
                f"Conv with a {size} kernel: im2col would copy its input {_product(kernel)} times"
            )
        elif node.attributes.get_int("group", 1) != 1:
            reason = f"Conv with {node.attributes.get_int('group', 1)} groups: not one product"
        else:
            reason = (
                f"Conv with a {size} kernel: the Transposes around the op cost more than it saves "
                "(docs/adr/0007-conv.md)"
            )
        return Rejection(node, reason, weight.name)


def _product(kernel: tuple[int, ...]) -> int:
    count = 1
    for each in kernel:
        count *= each
    return count


RULES = (Conv(),)
