"""What the commands print with: consoles, tables, progress bars and sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from onnx_ternary.errors import MAX_NAME, visible

_NARROW_COLUMNS = 100
# Less has no room for numbers beside reasons.
_TINY_COLUMNS = 60
_NUMBERS = frozenset(
    ("before", "after", "ratio", "rows", "largest error / bound", "changed by", "rewritten")
)
# What a reader has to look at stands out; everything else has the terminal's own color.
_STYLES = {
    "rewritten": "green",
    "converted": "green",
    "passed": "green",
    "failed": "red",
    "stays": "yellow",
    "quantized": "yellow",
}


class Output:
    """Where a command prints; ``quiet`` keeps errors and warnings, ``verbose`` adds detail."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self.console = make_console(quiet)
        self.errors = _plain_console(stderr=True)
        self.verbose = verbose
        self.quiet = quiet

    @contextmanager
    def progress(self, description: str) -> Iterator[Callable[[str, int, int], None]]:
        """A bar on stderr; yields ``update(node_name, done, total)``."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[node]}", markup=False),
        )
        hidden = self.quiet or not self.errors.is_terminal
        with Progress(*columns, console=self.errors, transient=True, disable=hidden) as bar:
            task = bar.add_task(description, total=None, node="")

            def update(node: str, done: int, total: int) -> None:
                shown = visible(node, MAX_NAME)
                bar.update(task, completed=done, total=total, node=shown)

            yield update

    def line(self, text: str, style: str = "") -> None:
        """Print one line, whatever names are in it."""
        print_line(self.console, text, style)

    def warn(self, message: str) -> None:
        print_line(self.errors, f"Warning: {message}", "yellow")


def make_console(quiet: bool = False) -> Console:
    """Standard output; a log or a pipe has room for whole table rows."""
    console = _plain_console(quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def _plain_console(**options: bool) -> Console:
    """A console to which brackets, colons and numbers of names mean nothing."""
    return Console(markup=False, emoji=False, highlight=False, **options)  # type: ignore[arg-type]


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print one line, whatever names are in it."""
    console.print(Text(visible(text), style), soft_wrap=True)


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    *,
    narrow: Sequence[str] = (),
) -> None:
    """Rows under the headings for which any row has something.

    Args:
        console: where to.
        headings: the columns, the result last.
        rows: text by heading, in which names are nothing but text. It folds where it is wider
            than its column.
        narrow: the columns on a narrow terminal, of which a very narrow one leaves out the numbers;
            empty for all columns.
    """
    if narrow and console.width < _NARROW_COLUMNS:
        headings = narrow
        if console.width < _TINY_COLUMNS:
            headings = [heading for heading in narrow if heading not in _NUMBERS]
    shown = [heading for heading in headings if any(row.get(heading) for row in rows)]
    if not shown:
        return
    table = Table(box=box.ROUNDED, header_style="bold")
    for heading in shown:
        justify: JustifyMethod = "right" if heading in _NUMBERS else "left"
        # A size in two lines is hard to read; names and reasons make room.
        no_wrap = heading in _NUMBERS
        table.add_column(heading, overflow="fold", justify=justify, no_wrap=no_wrap)
    for row in rows:
        *others, last = (row.get(heading, "") for heading in shown)
        names = [Text(visible(each, MAX_NAME)) for each in others]
        table.add_row(*names, Text(visible(last), style=_STYLES.get(last.split(":")[0], "")))
    console.print(table)
