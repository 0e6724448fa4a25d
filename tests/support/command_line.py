"""The command line in this process and as a process of its own, and the models it is tried on."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from onnx_ternary.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = EXAMPLES / "digits_mlp.onnx"
IMAGES = EXAMPLES / "digits_mlp.npz"
COMMAND = (sys.executable, "-m", "onnx_ternary")
_COLUMNS = 240


def run(
    *arguments: object, check: int | None = 0, columns: int = _COLUMNS
) -> subprocess.CompletedProcess[str]:
    """Run ``onnx-ternary`` in this process and expect an exit code.

    A process of its own takes ten times as long, nearly all of it for imports: `run_process` is for
    what this cannot show. An exception the command does not handle is the caller's.
    """
    words = [str(each) for each in arguments]
    with _streams() as (stdout, stderr), _settings_of_a_process(columns):
        code: object = None
        try:
            main(words, prog_name="onnx-ternary")
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), code
    done = subprocess.CompletedProcess(words, code, _text(stdout), _text(stderr))
    return _checked(done, check)


def run_process(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run ``onnx-ternary`` as a process of its own and expect an exit code."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": str(_COLUMNS)},
    )
    return _checked(done, check)


def one_model_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `run` convert many models in this process, where how they are shared out is no matter."""
    monkeypatch.setattr("onnx_ternary.conversion.batch.num_processors", lambda: 1)


def _checked(
    done: subprocess.CompletedProcess[str], code: int | None
) -> subprocess.CompletedProcess[str]:
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return done


@contextlib.contextmanager
def _streams() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        yield stdout, stderr


@contextlib.contextmanager
def _settings_of_a_process(columns: int) -> Iterator[None]:
    """What a command sets for its process is put back as it was."""
    before = logging.getLogRecordFactory()
    try:
        with mock.patch.dict(os.environ, COLUMNS=str(columns)):
            yield
    finally:
        logging.setLogRecordFactory(before)


def _text(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
