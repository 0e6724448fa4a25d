"""Einsum as a product with one matrix, and equations that are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from tests.catalogue.case import (
    F32,
    WEIGHT,
    Array,
    Case,
    K,
    Miss,
    N,
    changed,
    half_case,
    model,
    node,
    product_case,
    ternary,
)

TURNED = np.ascontiguousarray(WEIGHT.T)


def einsum(
    equation: str,
    weight: Array = WEIGHT,
    *,
    x_shape: Sequence[int | str] | None = (2, 3, K),
    left: bool = False,
) -> onnx.ModelProto:
    made = node("Einsum", ["w", "x"] if left else ["x", "w"], "y", equation=equation)
    return model([made], {"w": np.ascontiguousarray(weight)}, x_shape=x_shape)


def _einsum(equation: str, **kwargs: Any) -> Case:
    return product_case(einsum(equation, **kwargs), pattern="Einsum")


def _parted(equation: str, shape: Sequence[int], **kwargs: Any) -> Case:
    """W with its 48 rows or 20 columns, which come in order, as several axes."""
    return _einsum(equation, weight=WEIGHT.reshape(shape), **kwargs)


def parted_dequantized() -> Case:
    """The output projection of EinsumDense, from codes in a scale."""
    codes = ternary(scale=1.0)
    made = model(
        [
            node("DequantizeLinear", ["codes", "scale"], "w"),
            node("Einsum", ["x", "w"], "y", equation="abcd,cde->abe"),
        ],
        {"codes": codes.reshape(6, 8, N).astype(np.int8), "scale": np.array(0.3, F32)},
        x_shape=("batch", 3, 6, 8),
    )
    exact = codes.astype(np.float64) * np.float32(0.3)
    return Case(made, ("Einsum",), (exact,))


def parted_behind(op_type: str, constant: Array, pattern: str, factor: float) -> Case:
    """The query projection of EinsumDense and what stands behind it."""
    made = model(
        [
            node("Einsum", ["x", "w"], "p", equation="abc,cde->abde"),
            node(op_type, ["p", "c"], "y"),
        ],
        {"w": WEIGHT.reshape(K, 4, 5), "c": constant},
        x_shape=("batch", 3, K),
    )
    return product_case(made, factor, pattern)


NOT_ONE_MATRIX = "is not a product with one matrix"


HITS: dict[str, Callable[[], Case]] = {
    "einsum_float16": lambda: half_case(einsum("bsk,kn->bsn"), "Einsum"),
    "einsum": lambda: _einsum("bsk,kn->bsn"),
    "einsum_turned": lambda: _einsum("bij,kj->bik", weight=TURNED),
    "einsum_ellipsis": lambda: _einsum("...k,nk->...n", weight=TURNED, x_shape=None),
    "einsum_ellipsis_moved": lambda: _einsum("a...k,kn->n...a"),
    "einsum_implicit": lambda: _einsum("ij, jk", x_shape=("batch", K)),
    "einsum_left": lambda: _einsum("nk,bks->bns", weight=TURNED, left=True, x_shape=(2, K, 3)),
    "einsum_permuted": lambda: _einsum("kbs,kn->snb", x_shape=(K, 2, 3)),
    "einsum_columns_in_axes": lambda: _parted("abc,cde->abde", (K, 4, 5)),
    "einsum_rows_in_axes": lambda: _parted("abcd,cde->abe", (6, 8, N), x_shape=(2, 3, 6, 8)),
    "einsum_both_in_axes": lambda: _parted(
        "abcd,cdef->abef", (6, 8, 4, 5), x_shape=("batch", 3, 6, 8)
    ),
    "einsum_axes_permuted": lambda: _parted("cabd,cdef->aebf", (6, 8, 4, 5), x_shape=(6, 2, 3, 8)),
    "einsum_axes_turned": lambda: _einsum(
        "abcd,ecd->abe", weight=TURNED.reshape(N, 6, 8), x_shape=(2, 3, 6, 8)
    ),
    "einsum_axes_ellipsis": lambda: _parted("...cd,cde->...e", (6, 8, N), x_shape=(2, 3, 6, 8)),
    "einsum_axes_left": lambda: _parted("cde,abc->abde", (K, 4, 5), left=True),
    "einsum_axes_only": lambda: _parted("cd,cde->e", (6, 8, N), x_shape=(6, 8)),
    "einsum_axes_unknown": lambda: _parted("abc,cde->abde", (K, 4, 5), x_shape=None),
    "einsum_axes_dequantized": parted_dequantized,
    "einsum_axes_bias": lambda: parted_behind(
        "Add", np.arange(20, dtype=F32).reshape(4, 5), "Einsum", 1.0
    ),
    "einsum_axes_scaled": lambda: parted_behind("Mul", np.array(2, F32), "Einsum -> Mul", 2.0),
    "einsum_vector": lambda: _einsum("k,kn->n", x_shape=(K,)),
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "einsum_one_weight_off": lambda: Miss(
        einsum("bsk,kn->bsn", changed(WEIGHT.copy(), 1, 3, 0.0521)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "einsum_batch_of_matrices": lambda: Miss(
        einsum("bsk,bkn->bsn", WEIGHT[None]), f"Einsum 'bsk,bkn->bsn' {NOT_ONE_MATRIX}"
    ),
    "einsum_fewer_axes": lambda: Miss(
        einsum("bsk,kn->bsn", WEIGHT[None]),
        "weight 'w' has rank 3, but Einsum 'bsk,kn->bsn' names 2 axes",
    ),
    "einsum_axes_batch": lambda: Miss(
        einsum("abcd,acde->abe", WEIGHT.reshape(1, 6, 8, N), x_shape=(1, 3, 6, 8)),
        f"Einsum 'abcd,acde->abe' {NOT_ONE_MATRIX}",
    ),
    "einsum_axes_multiplied": lambda: Miss(
        einsum("abd,cde->abde", WEIGHT.reshape(6, 8, N), x_shape=(2, 3, 8)),
        f"Einsum 'abd,cde->abde' {NOT_ONE_MATRIX}",
    ),
    "einsum_axes_broadcast": lambda: Miss(
        einsum("abcd,cde->abe", WEIGHT.reshape(6, 8, N), x_shape=(2, 3, 1, 8)),
        "input 'x' has axes ['1', '8'], but weight 'w' has [6, 8] there",
    ),
    "einsum_axes_unknown_rank": lambda: Miss(
        einsum("...cd,cde->...e", WEIGHT.reshape(6, 8, N), x_shape=None),
        "Einsum '...cd,cde->...e' moves the axes of '...', and the rank of 'x' is unknown",
    ),
    "einsum_column_products": lambda: Miss(
        einsum("bsk,sk->bsk", ternary(3, K)), f"Einsum 'bsk,sk->bsk' {NOT_ONE_MATRIX}"
    ),
    "einsum_sums_more": lambda: Miss(einsum("bsk,kn->bn"), f"Einsum 'bsk,kn->bn' {NOT_ONE_MATRIX}"),
    "einsum_sums_weight": lambda: Miss(
        einsum("bsk,kn->bsk"), f"Einsum 'bsk,kn->bsk' {NOT_ONE_MATRIX}"
    ),
    "einsum_trace": lambda: Miss(
        einsum("bkk,kn->bn", x_shape=(2, K, K)), f"Einsum 'bkk,kn->bn' {NOT_ONE_MATRIX}"
    ),
    "einsum_unknown_rank": lambda: Miss(
        einsum("a...k,kn->n...a", x_shape=None),
        "Einsum 'a...k,kn->n...a' moves the axes of '...', and the rank of 'x' is unknown",
    ),
}
