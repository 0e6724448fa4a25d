"""TernaryIndexedMatMul, packed, int8 activations (BitNet W1.58A8)."""

from __future__ import annotations

from onnx_ternary.options import INT8_RULE
from peers import Layer
from peers.onnx_ternary_float import with_attributes

NAME = "onnx-ternary int8"
MAX_ERROR = 2e-2


def model(layer: Layer) -> bytes:
    """The op with BitNet's activation rule."""
    return with_attributes(layer, **INT8_RULE)
