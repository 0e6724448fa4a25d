"""Write docs/cli.md from the commands' own help, so that the page reads the same everywhere.

Usage: python .ci/cli_page.py [--check]

``--check`` writes nothing and fails where the page is not what the commands say.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from onnx_ternary.cli import COMMANDS
from onnx_ternary.cli import main as group

PAGE = Path(__file__).parents[1] / "docs/cli.md"
_BEGIN = "<!-- commands: begin -->\n"
_END = "<!-- commands: end -->\n"


def page(text: str) -> str:
    """The page with what stands between its marks written anew."""
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{_commands()}\n{_END}{after}"


def _commands() -> str:
    context = click.Context(group, info_name="onnx-ternary")
    return "\n".join(
        _command(click.Context(group.get_command(context, name), parent=context, info_name=name))
        for name in COMMANDS
    )


def _command(context: click.Context) -> str:
    """Heading, usage, help and options of one command."""
    usage = " ".join(context.command.collect_usage_pieces(context))
    help_text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(context.command.help or ""))
    rows = "".join(_rows(context))
    return (
        f"## {context.info_name}\n\n```text\n{context.command_path} {usage}\n```\n\n"
        f'{_escaped(help_text)}\n\n<div class="options" markdown>\n\n'
        f"| option | meaning | default |\n|---|---|---|\n{rows}\n</div>\n"
    )


def _rows(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:
        if not isinstance(parameter, click.Option):
            continue
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        default = parameter.get_help_extra(context).get("default", "")
        if parameter.is_flag:
            default = f"--{default}" if parameter.secondary_opts and default else ""
        yield (
            f"| {names}{_value(parameter, context)} | {_escaped(parameter.help or '')} "
            f"| {f'`{default}`' if default else ''} |\n"
        )


def _value(option: click.Option, context: click.Context) -> str:
    """What is given with an option, choices one by one."""
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + ", ".join(f"`{choice}`" for choice in option.type.choices)
    return f" {_escaped(option.make_metavar(context).replace(' RANGE', ''))}"


def _escaped(text: str) -> str:
    """Text for a table's cell: no markup of its own, no column of its own."""
    return re.sub(r"([|*<\[`])", r"\\\1", text)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if it differs")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    expected = page(text)
    if not check:
        PAGE.write_text(expected, encoding="utf-8")
    elif text != expected:
        raise SystemExit("docs/cli.md is not what the commands say; run 'python .ci/cli_page.py'.")


if __name__ == "__main__":
    main()
