"""onnxsim's quantize_ternary, applied to the float32 model."""

from __future__ import annotations

import onnx

from peers import Layer, UnavailableError, matmul_float32, onnx_peer


def model(layer: Layer) -> bytes:
    """DynamicQuantizeLinear and MatMulInteger, as it writes them."""
    try:
        from onnxsim import quantize_ternary
    except ImportError as error:
        raise UnavailableError(f"pip install 'onnxsim>=0.8' ({error})") from error
    quantized = quantize_ternary(onnx.load_model_from_string(matmul_float32.model(layer)))
    if not any(node.op_type == "MatMulInteger" for node in quantized.graph.node):
        raise UnavailableError("quantize_ternary left the MatMul as it was")
    return bytes(quantized.SerializeToString())


PEERS = (onnx_peer("onnxsim quantize_ternary", model, max_error=5e-2, quantizes=True, bits=8),)
