"""Gemm with a constant ternary B.

    Gemm(A, B, C) [-> Mul|Div ...] [-> Add]
      =>   [Transpose ->] TernaryIndexedMatMul [-> [Mul ->] Add]

1. transB: B is read transposed. 2. transA: a Transpose of A stays in front.
3. alpha goes into the scale (positive and finite, else refused), beta into the bias.
4. C constant, one number or one per column: the op's bias. 5. Any other C: ``beta * C`` is added
   behind the op, beta = 0 drops it as Gemm does.
Subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..match import Addend, Context, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, constant_weight, small_constant


class Gemm:
    """``alpha * A' @ B' + beta * C``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Gemm")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        weight = constant_weight(node, context)
        if isinstance(weight, Rejection):
            return weight
        x = node.inputs[0]
        assert x is not None  # constant_weight refuses it
        alpha = node.attributes.get_float("alpha", 1.0)
        beta = node.attributes.get_float("beta", 1.0)
        assert alpha is not None and beta is not None
        if not (math.isfinite(alpha) and alpha > 0):
            return Rejection(
                node, f"alpha = {alpha:g}; only positive finite ones are handled", weight.name
            )
        if not math.isfinite(beta):
            return Rejection(node, f"beta = {beta:g} is not finite", weight.name)
        if node.attributes.get_int("transB", 0) and len(weight.shape) == 2:
            weight = weight.transposed()  # case 1
        product = Product(
            node,
            x,
            weight,
            rank=2,
            perm_x=(1, 0) if node.attributes.get_int("transA", 0) else None,  # case 2
            factor=np.array(alpha, np.float64),  # case 3
        )
        c = node.inputs[2] if len(node.inputs) > 2 else None
        if c is not None and beta != 0 and len(weight.shape) == 2:
            constant = small_constant(c, product.num_columns, context)
            if constant is None or not product.set_bias(constant, beta):  # case 4
                product.addend = Addend(c, beta)  # case 5
        return finish(product, context)


RULES = (Gemm(),)
