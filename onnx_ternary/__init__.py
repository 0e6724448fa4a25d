"""Ternary and binary neural networks in ONNX Runtime: smaller, faster, the same answers."""

from __future__ import annotations

from pathlib import Path

_here = Path(__file__).resolve().parent
# In a source tree graph_passes lies beside this package; installed, it lies inside.
if not (_here / "graph_passes").is_dir() and (_here.parent / "graph_passes/__init__.py").is_file():
    __path__.append(str(_here.parent))

# In this order: a module that is loaded first would hide the function of its name.
from onnx_ternary._library import get_library_path  # noqa: E402
from onnx_ternary._native import kernels as list_kernels  # noqa: E402
from onnx_ternary._version import __version__  # noqa: E402
from onnx_ternary.batch import Batch, convert_many  # noqa: E402
from onnx_ternary.building import BuildOptions, BuildResult, build  # noqa: E402
from onnx_ternary.convert import Conversion, Requirements, convert  # noqa: E402
from onnx_ternary.export import ExportedFile, ExportResult, export, export_file  # noqa: E402
from onnx_ternary.optimize import OptimizeOptions, OptimizeResult, optimize  # noqa: E402
from onnx_ternary.outcome import Outcome  # noqa: E402
from onnx_ternary.runtime import InferenceSession, register  # noqa: E402
from onnx_ternary.verify import VerificationReport, verify  # noqa: E402

__all__ = [
    "Batch",
    "BuildOptions",
    "BuildResult",
    "Conversion",
    "ExportResult",
    "ExportedFile",
    "InferenceSession",
    "OptimizeOptions",
    "OptimizeResult",
    "Outcome",
    "Requirements",
    "VerificationReport",
    "__version__",
    "build",
    "convert",
    "convert_many",
    "export",
    "export_file",
    "get_library_path",
    "list_kernels",
    "optimize",
    "register",
    "verify",
]
