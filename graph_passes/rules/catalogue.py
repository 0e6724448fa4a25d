"""Every rule, in the order in which rules are asked."""

from __future__ import annotations

import onnx_ir as ir

from ..match import Context, Rejection, Rule, TernaryMatMul
from . import conv, einsum, gemm, matmul, matmul_integer, matmul_nbits, unhandled

RULES: tuple[Rule, ...] = (
    *matmul.RULES,
    *gemm.RULES,
    *einsum.RULES,
    *conv.RULES,
    *matmul_integer.RULES,
    *matmul_nbits.RULES,
    *unhandled.RULES,
)


def product_types() -> frozenset[tuple[str, str]]:
    """Domain and type of every operator a rule is asked about."""
    return frozenset[tuple[str, str]]().union(*(rule.op_types for rule in RULES))


def match_product(node: ir.Node, context: Context) -> TernaryMatMul | Rejection:
    """What the first rule that knows this form makes of a product."""
    for rule in RULES:
        if (node.domain, node.op_type) in rule.op_types:
            found = rule.match(node, context)
            if found is not None:
                return found
    return Rejection(node, "no rule for this form")
