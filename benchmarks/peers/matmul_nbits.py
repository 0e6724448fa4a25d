"""ONNX Runtime's MatMulNBits: blocks of 128, accuracy_level 4 (int8 activations).

2 bits also with `mlas.use_lut_gemm`, which looks sums up instead (for N a multiple of 128).
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from peers import Layer, onnx_peer, serialize

BLOCK = 128


def pack(levels: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """B (N, blocks, bytes) of levels (K, N): codes level + 2^(bits - 1); K is a whole of blocks."""
    K, N = levels.shape
    codes = (levels.T + np.int16(2 ** (bits - 1))).astype(np.uint8)
    in_byte = 8 // bits
    codes = codes.reshape(N, K // BLOCK, BLOCK // in_byte, in_byte)
    packed = np.zeros(codes.shape[:-1], np.uint8)
    for place in range(in_byte):
        packed |= codes[..., place] << np.uint8(bits * place)
    return packed


def model(layer: Layer, bits: int) -> bytes:
    """One scale per block, the default zero point; K is a multiple of the block."""
    K, N = layer.levels.shape
    node = helper.make_node(
        "MatMulNBits",
        ["X", "B", "scales"],
        ["Y"],
        domain="com.microsoft",
        K=K,
        N=N,
        bits=bits,
        block_size=BLOCK,
        accuracy_level=4,
    )
    scales = np.repeat(layer.scale, K // BLOCK)
    return serialize([node], layer, {"B": pack(layer.levels, bits), "scales": scales})


PEERS = (
    *(
        onnx_peer(
            f"MatMulNBits {bits}-bit",
            partial(model, bits=bits),
            max_error=2e-2,
            quantizes=True,
            bits=bits + 32 / BLOCK,
        )
        for bits in (2, 4, 8)
    ),
    onnx_peer(
        "MatMulNBits 2-bit, lut_gemm",
        partial(model, bits=2),
        max_error=2e-2,
        quantizes=True,
        bits=2 + 32 / BLOCK,
        config={"mlas.use_lut_gemm": "1"},
    ),
)
