"""What the commands print with: consoles, tables, progress bars and sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


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


def make_table(*columns: str, numbers: Collection[str] = ()) -> Table:
    """A table whose cells fold where they are too long: names are never cut."""
    table = Table(box=box.ROUNDED, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    return table


def add_row(table: Table, *cells: str, last_style: str = "") -> None:
    """Adds text as it is: names may look like markup."""
    *others, last = cells
    table.add_row(*map(Text, others), Text(last, style=last_style))
