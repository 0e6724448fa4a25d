"""Gemm with a constant ternary B, and ONNX Runtime's FusedGemm.

    Gemm(A, B, C) [-> Mul|Div ...] [-> Add]
      =>   [Transpose ->] TernaryIndexedMatMul [-> [Mul ->] Add]
    FusedGemm(A, B, C)   =>   [Transpose ->] TernaryIndexedMatMul [-> [Mul ->] Add] -> activation

1. transB: B is read transposed. 2. transA: a Transpose of A stays in front.
3. alpha goes into the scale (positive and finite, else refused), beta into the bias.
4. C constant, one number or one per column: the op's bias. 5. Any other C: ``beta * C`` is added
   behind the op, beta = 0 drops it as Gemm does.
6. FusedGemm: as Gemm, then the standard operator its attribute `activation` names, with the
   attributes ``activation_<name>``. Nothing behind the activation is absorbed. Other activations,
   attributes that are missing, and operators the model's opset lacks are refused.
Subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..match import Addend, Context, Elementwise, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, constant_weight, small_constant

_MICROSOFT = "com.microsoft"
# What ONNX Runtime's FusedGemm knows: the attributes each takes, and the opset it is there from.
_ACTIVATIONS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "Celu": (("alpha",), 12),
    "Elu": (("alpha",), 1),
    "HardSigmoid": (("alpha", "beta"), 1),
    "LeakyRelu": (("alpha",), 1),
    "Relu": ((), 1),
    "Selu": (("alpha", "gamma"), 1),
    "Sigmoid": ((), 1),
    "Softplus": ((), 1),
    "Softsign": ((), 1),
    "Tanh": ((), 1),
    "ThresholdedRelu": (("alpha",), 10),
}


class Gemm:
    """``alpha * A' @ B' + beta * C``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Gemm")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        product = _product(node, context)
        return product if isinstance(product, Rejection) else finish(product, context)


class FusedGemm:
    """``activation(alpha * A' @ B' + beta * C)`` in the domain com.microsoft."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({(_MICROSOFT, "FusedGemm")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's case 6."""
        product = _product(node, context)
        if isinstance(product, Rejection):
            return product
        activation = _activation(node, context.opset)
        if isinstance(activation, str):
            return Rejection(node, activation, product.weight.name)
        product.then = activation
        return finish(product, context)


def _activation(node: ir.Node, opset: int) -> Elementwise | str:
    """What a FusedGemm does to its sums, or why that cannot be written behind the op."""
    name = node.attributes.get_string("activation", "") or ""
    if name not in _ACTIVATIONS:
        return f"FusedGemm with activation '{name}', which ONNX Runtime does not know"
    names, since = _ACTIVATIONS[name]
    if opset < since:
        return (
            f"FusedGemm with activation '{name}', an operator of opset {since}; the model has "
            f"{opset}"
        )
    numbers = {each: node.attributes.get_float(f"activation_{each}", None) for each in names}
    given = {each: number for each, number in numbers.items() if number is not None}
    missing = [each for each in names if each not in given]
    if missing:
        return f"FusedGemm with activation '{name}' and no activation_{missing[0]}"
    return Elementwise(name, given)


def _product(node: ir.Node, context: Context) -> Product | Rejection:
    """The product a node is, its activation apart."""
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
    return product


RULES = (Gemm(), FusedGemm())
