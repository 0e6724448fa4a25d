"""Weights, indices and exact products for the tests of the op in numpy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.index import Index, build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.op.reference import ternary_indexed_matmul
from tests.support.strategies import random_levels

NO_BIAS = np.zeros((), np.float32)
INT8: dict[str, Any] = {
    "activation": "int8",
    "activation_rule": "absmax_division",
    "activation_epsilon": 1e-5,
    "activation_qmin": -128,
    "activation_qmax": 127,
}
FORMATS: dict[str, dict[str, Any]] = {
    "packed": {},
    "packed dense": {"storage": "dense"},
    "rsr": {"index_format": "rsr", "algorithm": "rsr"},
    "rsr++": {"index_format": "rsr", "algorithm": "rsr++"},
    "rsr base3": {"index_format": "rsr", "algorithm": "rsr", "storage": "base3"},
    "rsr++ base3": {"index_format": "rsr", "algorithm": "rsr++", "storage": "base3"},
}


def build(weight: TernaryWeight, format_name: str, **activation: Any) -> Index:
    options = dict(FORMATS[format_name])
    if weight.alphabet != "ternary" and options.get("storage") == "base3":
        del options["storage"]
    index = build_index(weight, native=False, **options)
    return dataclasses.replace(
        index, attributes=dataclasses.replace(index.attributes, **activation)
    )


def run(index: Index, x: NDArray[Any], bias: NDArray[np.float32] = NO_BIAS) -> NDArray[Any]:
    return ternary_indexed_matmul(x, index.codes, index.aux, index.scale, bias, index.attributes)


def draw_bias(rng: np.random.Generator, N: int) -> NDArray[np.float32]:
    return NO_BIAS if rng.random() < 0.3 else rng.standard_normal(N).astype(np.float32)


def matrix(
    K: int, N: int, scale_kind: str = "column", alphabet: Any = "ternary", seed: int = 0
) -> TernaryWeight:
    rng = np.random.default_rng(seed)
    levels = random_levels(rng, K, N, alphabet)
    group_size = 32 if scale_kind == "group" else 0
    shape = {"tensor": (), "column": (N,), "group": (-(-K // 32), N)}[scale_kind]
    scale = np.asarray(rng.uniform(0.5, 2, shape), np.float32)
    return TernaryWeight(levels, scale, group_size, alphabet, 0.0)


def exact_product(
    x: NDArray[Any], weight: TernaryWeight, bias: NDArray[np.float32]
) -> NDArray[np.float64]:
    """With correctly rounded sums, one element at a time."""
    K, N = weight.levels.shape
    rows = x.reshape(-1, K).astype(np.float64)
    dense = weight.dense().astype(np.float64)
    full_bias = np.broadcast_to(bias, (N,)).astype(np.float64)
    sums = [[math.fsum([*(row * dense[:, n]), full_bias[n]]) for n in range(N)] for row in rows]
    return np.array(sums, np.float64).reshape(*x.shape[:-1], N)
