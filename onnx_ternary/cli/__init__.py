"""The command line: ``onnx-ternary build | optimize | inspect | verify | export | bench | info``.

Exit codes are a contract: 0 done, 1 error, 2 usage, 3 verification failed, 4 a requirement not met.
A model is written only where its own code is 0; reports and summaries say what went wrong, so they
are written with 1, 3 and 4 too. SIGTERM gives 143, as from a shell.
"""

from __future__ import annotations

import io
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import click

from onnx_ternary import _onnxruntime
from onnx_ternary._logs import show_names_in_logs
from onnx_ternary._version import __version__
from onnx_ternary.errors import OnnxTernaryError, visible

COMMANDS = ("build", "optimize", "inspect", "verify", "export", "bench", "info")


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


def _take_every_character() -> None:
    """Streams that cannot write a character (``LANG=C``) write its escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Group(click.Group):
    """A group of commands that turns this package's errors into messages and exit codes.

    The module of a command is imported where the command is asked for, and no other.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{cmd_name}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; of a model in its place the error says what to type."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if not args[0].endswith(".onnx"):
                raise
            command = shlex.join(["onnx-ternary", "optimize", *args])
            message = f"{error.format_message()} To convert a model: {command}"
            raise click.UsageError(message, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of this package becomes its exit code."""
        _onnxruntime.without_telemetry()
        show_names_in_logs()
        _take_every_character()
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
@click.version_option(__version__, prog_name="onnx-ternary")
def main() -> None:
    """Make ONNX models with ternary weights smaller and faster, with the same answers."""
