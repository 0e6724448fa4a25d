"""ONNX Runtime's float32 MatMul."""

from __future__ import annotations

import numpy as np
from onnx import helper

from peers import Layer, serialise

NAME = "MatMul float32"
MAX_ERROR = 1e-5


def model(layer: Layer) -> bytes:
    """MatMul with the dense weight."""
    weight = layer.levels.astype(np.float32) * layer.scale
    return serialise([helper.make_node("MatMul", ["X", "W"], ["Y"])], layer, {"W": weight})
