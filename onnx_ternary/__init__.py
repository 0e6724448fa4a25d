"""Ternary and binary neural networks in ONNX Runtime: smaller, faster, the same answers."""

from __future__ import annotations

from onnx_ternary import _source_tree as _source_tree  # first: the others import graph_passes
from onnx_ternary._version import __version__
from onnx_ternary.building import BuildOptions, BuildResult, build
from onnx_ternary.conversion.batch import convert_many
from onnx_ternary.conversion.convert import convert
from onnx_ternary.conversion.optimize import OptimizeResult, optimize
from onnx_ternary.exporting.export import ExportedFile, ExportResult, export, export_file
from onnx_ternary.native.kernels import list_kernels as list_kernels
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
