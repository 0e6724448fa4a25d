"""Conv with a ternary weight: rewritten where the user asks for it, for the size of the file.

    Conv(X, W, B) [-> Mul|Div ...]   =>   Transpose -> TernaryIndexedMatMul -> Transpose

1. Kernel 1 x 1 (of any rank), one group, stride 1, no padding: a product of pixels (batch, height,
   width, channels) and W (N, K, 1, 1), with Transposes around it. Measured, that runs at 0.1 to 1.0
   times the speed of ONNX Runtime's Conv, which keeps its images blocked for the processor
   (docs/adr/0005-leave-convolutions-float.md), so it takes `OptimizeOptions.convolutions`.
2. A constant B is the op's bias; one given at run time is refused.
3. Larger kernels are refused: im2col copies every pixel once a kernel element before the same
   product. So are strides, padding and groups.
4. Only scalars are absorbed behind it: the columns lie elsewhere after the Transpose.
5. Where the weight is not ternary anyhow, that is the reason, whatever the kernel.
W behind DequantizeLinear, subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from onnx_ternary.index.levels import NotTernary, TernaryWeight, ternarize

from ..constants.constant import Constant, NotConstant
from ..match import Context, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, small_constant

_MIN_RANK = 3


class Conv:
    """``Conv(X, W)``, ``Conv(X, W, B)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Conv")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        x, value, bias = (*node.inputs, None, None, None)[:3]
        weight = None if value is None else context.resolve(value)
        if x is None or weight is None:
            return Rejection(node, "an operand is missing")
        if isinstance(weight, NotConstant):
            return Rejection(node, f"no constant weight: {weight.reason}")
        if reason := _refusal(node, x, weight, allowed=context.options.convolutions):
            if _has_columns(weight) and isinstance(levels := _levels(weight, context), NotTernary):
                return Rejection(node, levels.reason, weight.name, not_ternary=True)  # case 5
            return Rejection(node, reason, weight.name)
        rank = len(weight.shape)
        product = Product(
            node,
            x,
            weight.matrix().transposed(),
            rank,
            perm_x=(0, *range(2, rank), 1),
            perm_y=(0, rank - 1, *range(1, rank - 1)),
        )
        if bias is not None:  # case 2
            constant = small_constant(bias, product.num_columns, context)
            if constant is None or not product.set_bias(constant):
                return Rejection(node, f"bias '{bias.name}' is no finite constant", weight.name)
        return finish(product, context)


def _has_columns(weight: Constant) -> bool:
    return weight.size > 0 and len(weight.shape) > 1


def _levels(weight: Constant, context: Context) -> TernaryWeight | NotTernary:
    """Levels of a weight with any kernel, output channels as columns."""
    matrix = weight.numpy().reshape(weight.shape[0], -1).T
    found = ternarize(matrix, tolerance=context.options.tolerance)
    weight.release()
    return found


def _refusal(node: ir.Node, x: ir.Value, weight: Constant, *, allowed: bool) -> str:
    """Why a Conv with a constant weight stays, whatever its numbers are; or nothing."""
    rank = len(weight.shape)
    if rank < _MIN_RANK:
        return f"weight '{weight.name}' has rank {rank}, expected {_MIN_RANK} or more"
    kernel = weight.shape[2:]
    size = " x ".join(map(str, kernel))
    if any(each != 1 for each in kernel):
        return f"Conv with a {size} kernel: im2col would copy its input {math.prod(kernel)} times"
    if (groups := node.attributes.get_int("group", 1)) != 1:
        return f"Conv with {groups} groups: not one product"
    if not allowed:
        return (
            f"Conv with a {size} kernel: the op with Transposes around it runs at 0.1 to 1.0 times "
            "the speed of Conv; --conv (convolutions=True) rewrites it to make the file smaller"
        )
    # Automatic padding of a kernel of one element is none.
    for name, neutral in (("pads", 0), ("strides", 1)):
        given = node.attributes.get_ints(name, ())
        if any(each != neutral for each in given):
            return f"Conv with {name} {list(given)}: only {neutral} is handled"
    if x.shape is not None and len(x.shape) != rank:
        return f"input '{x.name}' has rank {len(x.shape)}, but weight '{weight.name}' {rank}"
    channels = None if x.shape is None else x.shape[1]
    if isinstance(channels, int) and channels != weight.shape[1]:
        return (
            f"input '{x.name}' has {channels} channels, but weight '{weight.name}' has "
            f"{weight.shape[1]}"
        )
    return ""


RULES = (Conv(),)
