"""DequantizeLinear of int2 (opset 25) -> MatMul, which ONNX Runtime fuses into MatMulNBits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onnx import helper

from peers import Layer, UnavailableError, onnx_peer, serialize

BLOCK = 128


def model(layer: Layer) -> bytes:
    """int2 levels with one scale for 128 inputs of a column; K is a multiple of 128."""
    if not hasattr(ml_dtypes, "int2"):
        raise UnavailableError("ml_dtypes has no int2")
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["W"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["X", "W"], ["Y"]),
    ]
    constants = {
        "codes": layer.levels.astype(ml_dtypes.int2),
        "scale": np.tile(layer.scale, (layer.levels.shape[0] // BLOCK, 1)),
    }
    return serialize(nodes, layer, constants, opset=25, ir_version=13)


PEERS = (
    onnx_peer("DequantizeLinear int2", model, max_error=2e-2, quantizes=True, bits=2 + 32 / BLOCK),
)
