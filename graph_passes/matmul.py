"""MatMul with a constant ternary right operand.

    [Mul|Div] -> MatMul(X, W) [-> Mul|Div ...] [-> Add]   =>   TernaryIndexedMatMul

1. X (..., K) of rank 1 to 4, or unknown; W (K, N) constant (weights.py says what that is).
2. Scales and bias around it: product.py.
3. In subgraphs the same, with W in the subgraph or captured; not in local functions.
4. A shared W is one index for all its users; one that is also a graph output, or used by
   something else, stays in the model as well.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .match import Context, Rejection, TernaryMatMul
from .product import Product, constant_weight, finish


class MatMul:
    """``MatMul(X, W)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "MatMul")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        weight = constant_weight(node)
        if isinstance(weight, Rejection):
            return weight
        x = node.inputs[0]
        assert x is not None  # constant_weight refuses it
        rank = None if x.shape is None else len(x.shape)
        if rank == 0:
            return Rejection(node, f"input '{x.name}' is a scalar", weight.name)
        return finish(Product(node, x, weight, rank), context)


RULES = (MatMul(),)
