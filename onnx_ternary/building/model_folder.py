"""What a folder for onnxruntime-genai is known by; apart, because every conversion asks."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

CONFIG = "genai_config.json"


def is_model_folder(path: str | PathLike[str]) -> bool:
    """Whether a folder is one for onnxruntime-genai."""
    return (Path(path) / CONFIG).is_file()
