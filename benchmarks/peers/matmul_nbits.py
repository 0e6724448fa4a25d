"""ONNX Runtime's MatMulNBits, 2 bits, block 128, accuracy_level 4 (int8 activations)."""

from __future__ import annotations

import numpy as np
from onnx import helper

from peers import Layer, serialise

NAME = "MatMulNBits 2-bit"
MAX_ERROR = 2e-2
BLOCK = 128


def model(layer: Layer) -> bytes:
    """Codes level + 1, zero point 1, one scale a block; K is a multiple of the block."""
    K, N = layer.levels.shape
    codes = (layer.levels.T + 1).astype(np.uint8).reshape(N, K // BLOCK, BLOCK // 4, 4)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    node = helper.make_node(
        "MatMulNBits",
        ["X", "B", "scales", "zero_points"],
        ["Y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=2,
        block_size=BLOCK,
        accuracy_level=4,
    )
    return serialise(
        [node],
        layer,
        {
            "B": packed.astype(np.uint8),
            "scales": np.repeat(layer.scale, K // BLOCK),
            "zero_points": np.full(N * -(-K // BLOCK // 4), 0x55, np.uint8),
        },
    )
