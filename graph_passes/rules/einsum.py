"""Einsum that multiplies the last two of its tensors as matrices, one of them a ternary weight.

    Einsum('bsk,kn->bsn', X, W)    =>   TernaryIndexedMatMul
    Einsum('bsk,nk->bsn', X, W)    =>   TernaryIndexedMatMul, W read transposed
    Einsum('kn,bks->bns', W, X)    =>   Transpose -> TernaryIndexedMatMul -> Transpose

    Einsum('abc,cde->abde', X, W)  =>   TernaryIndexedMatMul -> Reshape
    Einsum('abcd,cde->abe', X, W)  =>   Reshape -> TernaryIndexedMatMul

1. Two operands, one of them a constant each of whose letters is either k, which X has and the
   result has not, or n, which the result has and X has not. X's other letters, or its ``...``, are
   all in the result, none twice.
2. X is permuted to (result's letters without n) + k where it is not so already, and the result
   from (...) + n to what the equation says. Permuting a ``...`` needs X's rank.
3. Several k are one axis of W's rows, several n one of its columns (Keras' EinsumDense): a Reshape
   in front, or behind, which needs X's rank. Only scalars are absorbed behind a Reshape.
4. Sums over other letters, traces, batches of matrices and products of columns are refused.
Scales, bias, subgraphs, functions and shared weights: as matmul.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..constants.constant import Constant
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
        axes = _axes(x_letters, w_letters, result)
        if axes is None:
            return Rejection(
                node, f"Einsum '{equation}' is not a product with one matrix", weight.name
            )
        product = _product(node, x, weight, axes)
        return (
            Rejection(node, product, weight.name)
            if isinstance(product, str)
            else finish(product, context)
        )


@dataclass(frozen=True, slots=True)
class _Axes:
    """Letters of X, W and the result, and which of them are rows (k) and columns (n) of W."""

    x: tuple[str, ...]
    w: tuple[str, ...]
    result: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    kept: tuple[str, ...]


def _axes(x: tuple[str, ...], w: tuple[str, ...], result: tuple[str, ...]) -> _Axes | None:
    """What the letters mean, if W is one matrix (case 1)."""
    rows = tuple(each for each in x if each in w and each not in result)
    columns = tuple(each for each in result if each in w and each not in x)
    kept = tuple(each for each in result if each not in columns)
    letters = (*x, *columns)
    is_product = (
        len(rows) > 0
        and len(columns) > 0
        and _ELLIPSIS not in w
        and sorted(rows + columns) == sorted(w)
        and sorted(kept + rows) == sorted(x)
        and len(set(letters)) == len(letters)
        and len(set(result)) == len(result)
    )
    return _Axes(x, w, result, rows, columns, kept) if is_product else None


def _product(node: ir.Node, x: ir.Value, weight: Constant, axes: _Axes) -> Product | str:
    """The product an Einsum is, or why it stays."""
    equation = node.attributes.get_string("equation", "")
    if len(weight.shape) != len(axes.w):
        return (
            f"weight '{weight.name}' has rank {len(weight.shape)}, but Einsum '{equation}' names "
            f"{len(axes.w)} axes"
        )
    rank = None if x.shape is None else len(x.shape)
    if _ELLIPSIS not in axes.x:
        if rank not in (None, len(axes.x)):
            return (
                f"input '{x.name}' has rank {rank}, but Einsum '{equation}' names {len(axes.x)} "
                "axes"
            )
        rank = len(axes.x)
    lengths = dict(zip(axes.w, weight.shape, strict=True))
    split_x = tuple(lengths[each] for each in axes.rows)
    split_y = tuple(lengths[each] for each in axes.columns)
    more = len(split_y) - len(split_x)
    perm_x = _perm(axes.x, (*axes.kept, *axes.rows), rank)
    perm_y = _perm((*axes.kept, *axes.columns), axes.result, None if rank is None else rank + more)
    reshaped = len(split_x) > 1 or len(split_y) > 1
    if isinstance(perm_x, str) or isinstance(perm_y, str) or (reshaped and rank is None):
        return f"Einsum '{equation}' moves the axes of '...', and the rank of '{x.name}' is unknown"
    if len(split_x) > 1 and (wrong := _wrong_length(x, perm_x, split_x)):
        return f"{wrong}, but weight '{weight.name}' has {list(split_x)} there"
    matrix = weight.permuted(tuple(axes.w.index(each) for each in (*axes.rows, *axes.columns)))
    return Product(
        node,
        x,
        matrix.joined(len(axes.rows)),
        None if rank is None else rank - len(split_x) + 1,
        perm_x=perm_x,
        perm_y=perm_y,
        split_x=split_x if len(split_x) > 1 else (),
        split_y=split_y if len(split_y) > 1 else (),
    )


def _wrong_length(x: ir.Value, perm: tuple[int, ...] | None, split: tuple[int, ...]) -> str:
    """Which axes of X are known to be other than those of W's rows; or nothing."""
    if x.shape is None:
        return ""
    axes = range(len(x.shape)) if perm is None else perm
    found = [x.shape[axis] for axis in [*axes][-len(split) :]]
    if any(isinstance(has, int) and has != wants for has, wants in zip(found, split, strict=True)):
        return f"input '{x.name}' has axes {[str(each) for each in found]}"
    return ""


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
