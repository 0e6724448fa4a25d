"""Index formats: building, decoding and checking the tensors of a weight matrix."""

from __future__ import annotations

from onnx_ternary.index.build import Index, build_index, decode_index
from onnx_ternary.index.validate import validate_index

__all__ = ["Index", "build_index", "decode_index", "validate_index"]
