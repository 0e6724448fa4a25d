"""ONNX Runtime's DynamicQuantizeMatMul: int8 weights, uint8 activations per tensor."""

from __future__ import annotations

import numpy as np
from onnx import helper

from peers import Layer, onnx_peer, serialize


def model(layer: Layer) -> bytes:
    """The contrib operator, one scale per column."""
    node = helper.make_node(
        "DynamicQuantizeMatMul", ["X", "W", "scale"], ["Y"], domain="com.microsoft"
    )
    weight = np.ascontiguousarray(layer.levels)
    return serialize([node], layer, {"W": weight, "scale": layer.scale})


PEERS = (onnx_peer("DynamicQuantizeMatMul int8", model, max_error=5e-2, quantizes=True, bits=8),)
