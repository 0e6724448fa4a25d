"""Products that no rule rewrites."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.catalogue.case import F32, Case, K, Miss, model, node, ternary


def qlinear_matmul() -> onnx.ModelProto:
    numbers = {"s": np.array(0.1, F32), "z": np.array(0, np.uint8)}
    weight = ternary(scale=1.0, levels=(0, 1, 2)).astype(np.uint8)
    inputs = ["x", "s", "z", "w", "s", "z", "s", "z"]
    return model(
        [node("QLinearMatMul", inputs, "y")],
        {"w": weight, **numbers},
        x_dtype=TensorProto.UINT8,
        y_dtype=TensorProto.UINT8,
    )


def recurrent() -> onnx.ModelProto:
    weight = np.broadcast_to(ternary(K, K), (1, K, K))
    made = helper.make_node("RNN", ["x", "w", "r"], ["", "y"], name="rnn", hidden_size=K)
    return model(
        [made],
        {"w": np.ascontiguousarray(weight), "r": np.ascontiguousarray(weight)},
        x_shape=(3, "batch", K),
    )


HITS: dict[str, Callable[[], Case]] = {}
NEAR_MISSES: dict[str, Callable[[], Miss]] = {
    "recurrent": lambda: Miss(
        recurrent(), "RNN multiplies inside; this version rewrites separate products only"
    ),
    "qlinear_matmul": lambda: Miss(
        qlinear_matmul(), "QLinearMatMul is not handled by this version"
    ),
}
