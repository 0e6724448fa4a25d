"""Small models, one per form users' models come in, and near misses with their reasons.

One file per rule or per source of a weight's numbers: a new one is added to `FILES`, and the tests
of tests/graph_passes run all of it. `table` has models of its own kind, which test_tables.py runs.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.catalogue import (
    activations,
    cones,
    conv,
    dequantize,
    einsum,
    functions,
    gemm,
    matmul,
    matmul_integer,
    matmul_nbits,
    qonnx,
    row_scales,
    straight_through,
    unhandled,
)
from tests.catalogue.case import Case, Miss

FILES = (
    matmul,
    gemm,
    einsum,
    conv,
    matmul_integer,
    matmul_nbits,
    unhandled,
    dequantize,
    cones,
    qonnx,
    activations,
    functions,
    straight_through,
    row_scales,
)
HITS: dict[str, Callable[[], Case]] = {
    name: made for each in FILES for name, made in each.HITS.items()
}
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    name: made for each in FILES for name, made in each.NEAR_MISSES.items()
}
