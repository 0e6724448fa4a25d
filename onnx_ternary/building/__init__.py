"""From a ternary checkpoint to a model folder for onnxruntime-genai (docs/llm.md)."""

from __future__ import annotations

from .build import BuildResult, build
from .options import BuildOptions
from .verification import BuildVerification

__all__ = ["BuildOptions", "BuildResult", "BuildVerification", "build"]
