"""DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul, in standard operators."""

from __future__ import annotations

import numpy as np
from onnx import helper

from peers import Layer, onnx_peer, serialize


def model(layer: Layer) -> bytes:
    """int8 weights with one scale per column, uint8 activations per tensor."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["X"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "W", "z"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["float_sums"], to=1),
        helper.make_node("Mul", ["s", "scale"], ["factor"]),
        helper.make_node("Mul", ["float_sums", "factor"], ["Y"]),
    ]
    return serialize(nodes, layer, {"W": np.ascontiguousarray(layer.levels), "scale": layer.scale})


PEERS = (onnx_peer("MatMulInteger", model, max_error=5e-2, quantizes=True, bits=8),)
