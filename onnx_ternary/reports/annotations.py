"""Conversions that failed as GitHub's workflow commands, which reviewers see beside the change.

A binary file has no lines to comment on, so an annotation names the file alone. Names and messages
come from model files: no character of them controls a terminal, and what separates a command's
parts is escaped as the runner reads it, so that no text of a model is a command of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnx_ternary.errors import ExitCode, visible
from onnx_ternary.reports.outcome import Outcome

_TITLES = {
    ExitCode.ERROR: "Model not converted",
    ExitCode.VERIFICATION_FAILED: "Verification failed",
    ExitCode.REQUIREMENT_NOT_MET: "Requirement not met",
}


def annotate(outcomes: Iterable[Outcome]) -> str:
    """One ``::error`` line for each model whose exit code is not 0."""
    return "".join(
        f"::error file={_property(_in_repository(outcome.source))},"
        f"title={_property(_TITLES[outcome.exit_code])}::{_data(outcome.error)}\n"
        for outcome in outcomes
        if outcome.exit_code in _TITLES
    )


def _in_repository(path: Path) -> str:
    """The path as GitHub knows the file: relative to the checkout, where it lies in one."""
    root = os.environ.get("GITHUB_WORKSPACE")
    absolute = path.resolve()
    if root and absolute.is_relative_to(Path(root).resolve()):
        return absolute.relative_to(Path(root).resolve()).as_posix()
    return path.as_posix()


def _data(text: str) -> str:
    return visible(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
