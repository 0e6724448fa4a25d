"""ONNX Runtime's float32 MatMul."""

from __future__ import annotations

from onnx import helper

from peers import Layer, onnx_peer, serialize


def model(layer: Layer) -> bytes:
    """MatMul with the dense weight."""
    return serialize([helper.make_node("MatMul", ["X", "W"], ["Y"])], layer, {"W": layer.dense})


PEERS = (onnx_peer("MatMul float32", model, max_error=1e-5, quantizes=False, bits=32),)
