"""The command line: ``onnx-ternary build | optimize | inspect | verify | export | bench | info``.

Exit codes are a contract: 0 done, 1 error, 2 usage, 3 verification failed, 4 a requirement not met.
A model is written only where its own code is 0; reports and summaries say what went wrong, so they
are written with 1, 3 and 4 too. SIGTERM gives 143, as from a shell.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

import onnx_ternary
from onnx_ternary import _onnxruntime
from onnx_ternary._logs import show_names_in_logs
from onnx_ternary.cli._output import take_every_character
from onnx_ternary.cli.bench import bench_command
from onnx_ternary.cli.build import build_command
from onnx_ternary.cli.export import export_command
from onnx_ternary.cli.info import info_command
from onnx_ternary.cli.inspect import inspect_command
from onnx_ternary.cli.optimize import optimize_command
from onnx_ternary.cli.verify import verify_command
from onnx_ternary.errors import OnnxTernaryError, visible


@contextmanager
def _cleaned_up_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that staged files go."""

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    # Python lets the main thread alone set handlers.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Group(click.Group):
    """A group of commands that turns this package's errors into messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of this package becomes its exit code."""
        _onnxruntime.without_telemetry()
        show_names_in_logs()
        take_every_character()
        try:
            with _cleaned_up_on_sigterm():
                return super().invoke(ctx)
        except click.MissingParameter:
            raise
        except click.UsageError as error:  # of arguments, which may be names of files
            raise click.UsageError(visible(error.format_message()), error.ctx) from error
        except OnnxTernaryError as error:
            click.echo(visible(f"Error: {error}"), err=True)
            return ctx.exit(error.exit_code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(onnx_ternary.__version__, prog_name="onnx-ternary")
def main() -> None:
    """Make ONNX models with ternary weights smaller and faster, with the same answers."""


_COMMANDS = (
    build_command,
    optimize_command,
    inspect_command,
    verify_command,
    export_command,
    bench_command,
    info_command,
)
for _command in _COMMANDS:
    main.add_command(_command)
