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

_NARROW_COLUMNS = 100
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
        self.errors = Console(stderr=True)
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
            yield lambda node, done, total: bar.update(task, completed=done, total=total, node=node)

    def warn(self, message: str) -> None:
        self.errors.print(
            "Warning:", message, style="yellow", markup=False, highlight=False, soft_wrap=True
        )


def make_console(quiet: bool = False) -> Console:
    """Standard output; a log or a pipe has room for whole table rows."""
    console = Console(quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


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
        rows: text by heading, printed as it is: names may look like markup. It folds where it is
            too long, names are never cut.
        narrow: the columns on a narrow terminal; empty for all columns.
    """
    if narrow and console.width < _NARROW_COLUMNS:
        headings = narrow
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
        table.add_row(*map(Text, others), Text(last, style=_STYLES.get(last.split(":")[0], "")))
    console.print(table)
