"""Einsum as a product with one matrix, and equations that are none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from tests.catalogue.case import (
    WEIGHT,
    Array,
    Case,
    K,
    Miss,
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
    "einsum_vector": lambda: _einsum("k,kn->n", x_shape=(K,)),
}


NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "einsum_one_weight_off": lambda: Miss(
        einsum("bsk,kn->bsn", changed(WEIGHT.copy(), 1, 3, 0.0521)),
        "weight has 2 distinct magnitudes in column 3, expected 1",
    ),
    "einsum_batch_of_matrices": lambda: Miss(
        einsum("bsk,bkn->bsn", WEIGHT[None]), "weight 'w' has rank 3, expected 2"
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
