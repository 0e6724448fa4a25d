"""The exceptions onnx-ternary raises, all derived from `OnnxTernaryError`.

Every message names the place (file, node or tensor), what was expected, what was found and what
to do next. Names come from model files: `visible` is how they are shown, in messages and everywhere
else.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Any, ClassVar

MAX_NAME = 300
"""Characters of a name that are shown."""

_MAX_TEXT = 4_000
# Between two quotation marks or apostrophes stands a name, or as many words of a message.
_MAX_BETWEEN_QUOTES = 1_000
_MAX_QUOTES = 100
# What CI services take for their own commands in a log: GitHub's runner reads '::error::' at the
# start of a line, spaces before it or not, and '##[error]' anywhere; others read '##vso[' and
# '##teamcity['.
_COMMAND = re.compile(r"^( *):(?=:)|#(?=#\w*\[)")


def visible(text: str, max_characters: int = _MAX_TEXT) -> str:
    """Text with names from models or files in it, for a terminal, a log or a page.

    Args:
        text: anything.
        max_characters: of the text. What is longer loses its middle, and before that do names in
            quotation marks.

    Returns:
        One line of printable characters. All others (control and bidirectional characters, line
        breaks, bytes of file names that are no UTF-8) appear as in Python's source, and no line
        that starts with this text, or holds it, is a command of a CI service.
    """
    if max(max_characters, _MAX_BETWEEN_QUOTES) < len(text) and 2 <= text.count("'") < _MAX_QUOTES:
        before, *quoted, after = text.split("'")
        text = "'".join((before, *map(_cut_name, quoted), after))
    text = _cut(text, max_characters)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else _escape(each) for each in text)
    return _COMMAND.sub(lambda found: f"{found[1] or ''}{_escape_ascii(found[0][-1])}", text)


def _cut_name(quoted: str) -> str:
    return quoted if len(quoted) <= _MAX_BETWEEN_QUOTES else _cut(quoted, MAX_NAME)


def _cut(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}…{text[len(text) - half + 1 :]}"


def _escape(character: str) -> str:
    # What is no character of text (U+00A0 and others are not printable either) has an escape.
    return character.encode("unicode_escape").decode("ascii")


def _escape_ascii(character: str) -> str:
    return f"\\x{ord(character):02x}"


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

    def __str__(self) -> str:
        return visible(super().__str__())


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
