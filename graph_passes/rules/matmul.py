"""MatMul with a constant ternary operand, and ONNX Runtime's FusedMatMul.

    [Mul|Div] -> MatMul(X, W) [-> Mul|Div ...] [-> Add]   =>   TernaryIndexedMatMul
    MatMul(W, X)   =>   Transpose -> TernaryIndexedMatMul -> Transpose

1. X (..., K) of rank 1 to 4, or unknown; W (K, N) constant (constants/ says what that is).
2. W on the left: ``W @ X = (X^T @ W^T)^T``, the last two axes of X swapped before and those of the
   result after; nothing is swapped if X is a vector. The rank of X must be known. The Transposes
   move M * (K + N) numbers, the product does M * K * N additions.
3. FusedMatMul: transA and transB as in case 2 or by reading W transposed, alpha goes into the scale
   (positive and finite, else refused); transBatchA and transBatchB are refused.
4. Scales and bias around it: finish.py.
5. In subgraphs the same, with W in the subgraph or captured; in local functions too, unless their
   calls give W or an attribute.
6. A shared W is one index for all its users; one that is also a graph output, or used by
   something else, stays in the model as well.
7. W of shape (1, .., K, N) is that one matrix where X has as many axes, so that it adds none to
   the result. Batches of several matrices are refused.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..match import Context, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, constant_weight, left_weight

_MICROSOFT = "com.microsoft"


class MatMul:
    """``MatMul(X, W)``, ``MatMul(W, X)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "MatMul")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        return _match(node, context, alpha=1.0, trans_a=False, trans_b=False)


class FusedMatMul:
    """``alpha * A' @ B'`` in the domain com.microsoft; TransposeMatMul is its older name."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {(_MICROSOFT, "FusedMatMul"), (_MICROSOFT, "TransposeMatMul")}
    )

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's case 3."""
        attributes = node.attributes
        for name in ("transBatchA", "transBatchB"):
            if attributes.get_int(name, 0):
                return Rejection(node, f"{name} moves the batch between rows and columns")
        alpha = attributes.get_float("alpha", 1.0)
        assert alpha is not None
        if not (math.isfinite(alpha) and alpha > 0):
            return Rejection(node, f"alpha = {alpha:g}; only positive finite ones are handled")
        return _match(
            node,
            context,
            alpha=alpha,
            trans_a=bool(attributes.get_int("transA", 0)),
            trans_b=bool(attributes.get_int("transB", 0)),
        )


def _match(
    node: ir.Node, context: Context, *, alpha: float, trans_a: bool, trans_b: bool
) -> TernaryMatMul | Rejection:
    left = left_weight(node, context)
    weight = constant_weight(node, context) if left is None else left
    if isinstance(weight, Rejection):
        return weight
    x = node.inputs[0] if left is None else node.inputs[1]
    assert x is not None  # constant_weight and left_weight refuse it
    rank = None if x.shape is None else len(x.shape)
    if rank == 0:
        return Rejection(node, f"input '{x.name}' is a scalar", weight.name)
    if len(weight.shape) > 2 and set(weight.shape[:-2]) == {1}:  # case 7
        if rank is None or rank < len(weight.shape):
            found = "unknown" if rank is None else f"{rank}"
            return Rejection(
                node,
                f"weight '{weight.name}' has shape {weight.shape}, which may give the result more "
                f"axes than '{x.name}' has: its rank is {found}",
                weight.name,
            )
        weight = weight.last_matrix()
    # The op multiplies (..., K) by (K, N): x ends in K if it is a right factor's left neighbor.
    trans_x, trans_w = (trans_a, trans_b) if left is None else (not trans_b, not trans_a)
    if trans_w and len(weight.shape) == 2:
        weight = weight.transposed()
    trans_x = trans_x and rank != 1
    swapped = left is not None and rank != 1
    if rank is None and (trans_x or swapped):
        why = "it is the left operand" if left is not None else "transA is set"
        return Rejection(
            node,
            f"weight '{weight.name}': {why} and the rank of '{x.name}' is unknown",
            weight.name,
        )
    swap = None if rank is None or rank < 2 else (*range(rank - 2), rank - 1, rank - 2)
    product = Product(
        node,
        x,
        weight,
        rank,
        perm_x=swap if trans_x else None,
        perm_y=swap if swapped else None,  # case 2
        factor=np.array(alpha, np.float64),  # case 3
    )
    return finish(product, context)


RULES = (MatMul(), FusedMatMul())
