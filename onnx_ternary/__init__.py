"""Ternary and binary neural networks in ONNX Runtime: smaller, faster, the same answers.

What this module exports is imported at its first use: a command pays for what it needs alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from onnx_ternary import _source_tree as _source_tree  # first: the others import graph_passes
from onnx_ternary._version import __version__

if TYPE_CHECKING:
    from onnx_ternary.building.build import BuildResult, build
    from onnx_ternary.building.options import BuildOptions
    from onnx_ternary.conversion.batch import convert_many
    from onnx_ternary.conversion.convert import convert
    from onnx_ternary.conversion.optimize import OptimizeResult, optimize
    from onnx_ternary.exporting.export import ExportedFile, ExportResult, export, export_file
    from onnx_ternary.native.kernels import list_kernels
    from onnx_ternary.native.library_path import get_library_path
    from onnx_ternary.options import OptimizeOptions, Requirements, VerificationOptions
    from onnx_ternary.reports.outcome import Batch, Conversion, Outcome
    from onnx_ternary.runtime import InferenceSession, register
    from onnx_ternary.verification.report import VerificationReport
    from onnx_ternary.verification.verify import verify

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
    "VerificationOptions",
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

# The imports above by name, and the modules docs/api.md names, by the folder they are reached from.
_MODULES = {
    "Batch": "reports.outcome",
    "BuildOptions": "building.options",
    "BuildResult": "building.build",
    "Conversion": "reports.outcome",
    "ExportResult": "exporting.export",
    "ExportedFile": "exporting.export",
    "InferenceSession": "runtime",
    "OptimizeOptions": "options",
    "OptimizeResult": "conversion.optimize",
    "Outcome": "reports.outcome",
    "Requirements": "options",
    "VerificationOptions": "options",
    "VerificationReport": "verification.report",
    "build": "building.build",
    "convert": "conversion.convert",
    "convert_many": "conversion.batch",
    "export": "exporting.export",
    "export_file": "exporting.export",
    "get_library_path": "native.library_path",
    "list_kernels": "native.kernels",
    "optimize": "conversion.optimize",
    "register": "runtime",
    "verify": "verification.verify",
}
_FOLDERS = {
    "bench": "bench",
    "building": "building.verification",
    "errors": "errors",
    "genai_bench": "genai_bench",
    "reports": "reports.report",
    "runtime": "runtime",
    "verification": "verification.report",
}

if not TYPE_CHECKING:  # a type checker reads the imports, and refuses every other name

    def __getattr__(name: str) -> object:
        """Import what a name stands for, once."""
        if name in _MODULES:
            value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            globals()[name] = value
            return value
        if name in _FOLDERS:
            import_module(f"{__name__}.{_FOLDERS[name]}")
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_FOLDERS})
