"""Ternary and binary neural networks in ONNX Runtime: smaller, faster, the same answers."""

from __future__ import annotations

from pathlib import Path

_here = Path(__file__).resolve().parent
# In a source tree graph_passes lies beside this package; installed, it lies inside.
if not (_here / "graph_passes").is_dir() and (_here.parent / "graph_passes/__init__.py").is_file():
    __path__.append(str(_here.parent))

from onnx_ternary._library import get_library_path  # noqa: E402

__version__ = "0.1.0"

__all__ = ["__version__", "get_library_path"]
