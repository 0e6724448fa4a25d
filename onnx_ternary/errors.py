"""The exceptions onnx-ternary raises, all derived from `OnnxTernaryError`.

Every message names the place (file, node or tensor), what was expected, what was found and what
to do next.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """What the command line returns."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    VERIFICATION_FAILED = 3
    REQUIREMENT_NOT_MET = 4


class OnnxTernaryError(Exception):
    """Base class of every error this package raises on purpose.

    Attributes:
        exit_code: what the command line returns for it.
        conversion: where `convert` refused to write a model it had already converted, the
            `onnx_ternary.Conversion` of what it did and found; no file was written. None elsewhere.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR
    conversion: Any = None


class ModelError(OnnxTernaryError):
    """A model cannot be read, is not valid ONNX, or cannot be written."""


class NotComparedError(ModelError):
    """Nothing of a model could be verified, because onnxruntime runs no part of the original."""


class IndexFormatError(OnnxTernaryError, ValueError):
    """Index tensors or attributes break the rules of docs/index_format.md."""


class LibraryError(OnnxTernaryError, RuntimeError):
    """The C++ library is missing, cannot be loaded or refused a call."""


class VerificationError(OnnxTernaryError):
    """The converted model does not give the original's answers within the stated bounds."""

    exit_code = ExitCode.VERIFICATION_FAILED


class RequirementError(OnnxTernaryError):
    """A condition the user set (for example ``--require-rewrite``) is not met."""

    exit_code = ExitCode.REQUIREMENT_NOT_MET
