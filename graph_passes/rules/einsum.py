"""Einsum that multiplies the last two of its tensors as matrices, one of them a ternary weight.

    Einsum('bsk,kn->bsn', X, W)    =>   TernaryIndexedMatMul
    Einsum('bsk,nk->bsn', X, W)    =>   TernaryIndexedMatMul, W read transposed
    Einsum('kn,bks->bns', W, X)    =>   Transpose -> TernaryIndexedMatMul -> Transpose

1. Two operands, one of them a constant of rank 2 with two letters: k, which X has and the result
   has not, and n, which the result has and X has not. X's other letters, or its ``...``, are all
   in the result, none twice.
2. X is permuted to (result's letters without n) + k where it is not so already, and the result
   from (...) + n to what the equation says. Permuting a ``...`` needs X's rank.
3. Sums over other letters, traces, batches of matrices and products of columns are refused.
Scales, bias, subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

import re
from typing import ClassVar

import onnx_ir as ir

from ..match import Context, Rejection, TernaryMatMul
from .finish import finish
from .product import Product, constant_weight, left_weight

_ELLIPSIS = "..."


class Einsum:
    """``Einsum(X, W)`` or ``Einsum(W, X)``."""

    op_types: ClassVar[frozenset[tuple[str, str]]] = frozenset({("", "Einsum")})

    def match(self, node: ir.Node, context: Context) -> TernaryMatMul | Rejection | None:
        """See the module's cases."""
        equation = node.attributes.get_string("equation", "") or ""
        terms, result = _parse(equation)
        if len(terms) != 2 or len(node.inputs) != 2:
            return Rejection(node, f"Einsum '{equation}' has {len(node.inputs)} operands, not two")
        left = left_weight(node, context)
        weight = constant_weight(node, context) if left is None else left
        if isinstance(weight, Rejection):
            return weight
        x = node.inputs[0] if left is None else node.inputs[1]
        assert x is not None  # constant_weight and left_weight refuse it
        x_letters, w_letters = terms if left is None else terms[::-1]
        if len(weight.shape) != 2:
            return Rejection(
                node,
                f"weight '{weight.name}' has rank {len(weight.shape)}, expected 2",
                weight.name,
            )
        inner = [each for each in w_letters if each in x_letters and each not in result]
        outer = [each for each in w_letters if each in result and each not in x_letters]
        kept = [each for each in result if each not in outer]
        letters = (*x_letters, *outer)
        is_product = (
            len(w_letters) == 2
            and len(inner) == len(outer) == 1
            and sorted(kept + inner) == sorted(x_letters)
            and len(set(letters)) == len(letters)
            and len(set(result)) == len(result)
        )
        if not is_product:
            return Rejection(
                node, f"Einsum '{equation}' is not a product with one matrix", weight.name
            )
        if w_letters[0] != inner[0]:
            weight = weight.transposed()
        if len(x_letters) == 1 and x_letters[0] == _ELLIPSIS:
            return Rejection(
                node, f"Einsum '{equation}' is not a product with one matrix", weight.name
            )
        rank = None if x.shape is None else len(x.shape)
        if _ELLIPSIS not in x_letters and rank not in (None, len(x_letters)):
            return Rejection(
                node,
                f"input '{x.name}' has rank {rank}, but Einsum '{equation}' names "
                f"{len(x_letters)} axes",
                weight.name,
            )
        rank = rank if _ELLIPSIS in x_letters else len(x_letters)
        perm_x = _perm(x_letters, (*kept, *inner), rank)
        perm_y = _perm((*kept, *outer), result, rank)
        if isinstance(perm_x, str) or isinstance(perm_y, str):
            return Rejection(
                node,
                f"Einsum '{equation}' moves the axes of '...', and the rank of '{x.name}' is "
                "unknown",
                weight.name,
            )
        return finish(Product(node, x, weight, rank, perm_x=perm_x, perm_y=perm_y), context)


def _parse(equation: str) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The letters of each operand and of the result, ``...`` as one letter."""
    operands, arrow, result = equation.replace(" ", "").partition("->")
    terms = [_letters(term) for term in operands.split(",")]
    if arrow:
        return terms, _letters(result)
    # Without an arrow: the letters that occur once, in alphabetical order.
    every = [letter for term in terms for letter in term]
    once = sorted(each for each in set(every) - {_ELLIPSIS} if every.count(each) == 1)
    return terms, ((_ELLIPSIS,) if _ELLIPSIS in every else ()) + tuple(once)


def _letters(term: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\.\.\.|.", term))


def _perm(
    source: tuple[str, ...], target: tuple[str, ...], rank: int | None
) -> tuple[int, ...] | str | None:
    """How to permute axes from ``source`` to ``target``: None: not at all; a text: unknown."""
    if source == target:
        return None
    if rank is None:
        return "the rank is unknown"
    width = rank - len(source) + 1
    spread = {_ELLIPSIS: tuple(f"{_ELLIPSIS}{axis}" for axis in range(width))}
    axes = [axis for letter in source for axis in spread.get(letter, (letter,))]
    wanted = [axis for letter in target for axis in spread.get(letter, (letter,))]
    perm = tuple(axes.index(axis) for axis in wanted)
    return None if perm == tuple(range(len(perm))) else perm


RULES = (Einsum(),)
