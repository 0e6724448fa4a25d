"""Small weights and indices whose numbers are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_ternary.index import Index, build_index
from onnx_ternary.index.levels import TernaryWeight
from tests.support.strategies import random_levels


def simple_weight(K: int, N: int, group_size: int) -> TernaryWeight:
    levels = random_levels(np.random.default_rng(0), K, N, "ternary")
    shape = (-(-K // group_size), N) if group_size else (N,)
    return TernaryWeight(levels, np.ones(shape, np.float32), group_size, "ternary", 0.0)


def index_of(index_format: Any, group_size: int, storage: Any) -> Index:
    levels = random_levels(np.random.default_rng(0), 40, 5, "ternary")
    shape = (-(-40 // group_size), 5) if group_size else (5,)
    weight = TernaryWeight(levels, np.ones(shape, np.float32), group_size, "ternary", 0.0)
    return build_index(
        weight,
        index_format=index_format,
        storage=storage,
        block_width=2 if index_format == "rsr" else None,
        native=False,
    )


def rsr_index(group_size: int = 0) -> Index:
    return index_of("rsr", group_size, None)
