"""From a ternary checkpoint to a model folder for onnxruntime-genai (docs/llm.md)."""

from __future__ import annotations

from onnx_ternary.building.build import BuildResult, build
from onnx_ternary.building.optimize_folder import is_model_folder, optimize_folder
from onnx_ternary.building.options import BuildOptions
from onnx_ternary.building.verification import BuildVerification

__all__ = [
    "BuildOptions",
    "BuildResult",
    "BuildVerification",
    "build",
    "is_model_folder",
    "optimize_folder",
]
