"""The exceptions onnx-ternary raises, all derived from `OnnxTernaryError`.

Every message names the place (file, node or tensor), what was expected, what was found and what
to do next.
"""


class OnnxTernaryError(Exception):
    """Base class of every error this package raises on purpose."""


class ModelError(OnnxTernaryError):
    """A model cannot be read, is not valid ONNX, or cannot be written."""


class IndexFormatError(OnnxTernaryError, ValueError):
    """Index tensors or attributes break the rules of docs/index_format.md."""


class LibraryError(OnnxTernaryError, RuntimeError):
    """The C++ library is missing, cannot be loaded or refused a call."""


class VerificationError(OnnxTernaryError):
    """The converted model does not give the original's answers within the stated bounds."""


class RequirementError(OnnxTernaryError):
    """A condition the user set (for example ``--require-rewrite``) is not met."""
