"""The command line: ``onnx-ternary optimize | inspect | verify | info``.

Exit codes are a contract: 0 done, 1 error, 2 usage, 3 verification failed, 4 a requirement not met.
Nothing is written unless the code is 0.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import IntEnum
from functools import wraps
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import onnx_ternary
from onnx_ternary import model_io
from onnx_ternary.convert import Conversion, Requirements, convert
from onnx_ternary.errors import OnnxTernaryError, RequirementError, VerificationError
from onnx_ternary.nodes import check_indices
from onnx_ternary.optimize import OptimizeOptions, optimize
from onnx_ternary.report import Report
from onnx_ternary.schema import OP_TYPE
from onnx_ternary.verify import VerificationReport, verify

_NARROW_COLUMNS = 100


class ExitCode(IntEnum):
    """What the process returns."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    VERIFICATION_FAILED = 3
    REQUIREMENT_NOT_MET = 4


class _Group(click.Group):
    """Turns this package's errors into a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VerificationError as error:
            code, message = ExitCode.VERIFICATION_FAILED, str(error)
        except RequirementError as error:
            code, message = ExitCode.REQUIREMENT_NOT_MET, str(error)
        except OnnxTernaryError as error:
            code, message = ExitCode.ERROR, str(error)
        click.echo(f"Error: {message}", err=True)
        return ctx.exit(code)


class _Output:
    """Where a command prints; ``quiet`` keeps errors and warnings, ``verbose`` adds detail."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self.console = _console(quiet)
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


def _console(quiet: bool = False) -> Console:
    """Standard output; a log or a pipe has room for whole table rows."""
    console = Console(quiet=quiet)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def _table(*columns: str) -> Table:
    """A table whose cells fold where they are too long: names are never cut."""
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Adds text as it is: names may look like markup."""
    table.add_row(*map(Text, cells))


def _quiet_and_verbose(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("-v", "--verbose", is_flag=True, help="More detail.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Errors and warnings only.")(command)


def _rewrite_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that decide what is rewritten and how; the command gets `OptimizeOptions`."""
    options = [
        click.option(
            "--include",
            multiple=True,
            metavar="GLOB",
            help="Only nodes whose name matches (may be given more than once).",
        ),
        click.option(
            "--exclude", multiple=True, metavar="GLOB", help="Not nodes whose name matches."
        ),
        click.option(
            "--format",
            "index_format",
            type=click.Choice(["packed", "rsr"]),
            default="packed",
            show_default=True,
            help="Index format: packed (fast, small) or rsr (the layout of arXiv 2411.06360).",
        ),
        click.option(
            "--storage",
            type=click.Choice(["2bit", "dense", "1bit", "planes", "base3"]),
            help="Storage of the index; the default is 2bit (1bit for binary weights) or planes.",
        ),
        click.option(
            "--block-width",
            type=click.IntRange(1, 16),
            help="rsr: columns a block (default: auto).",
        ),
        click.option("--algorithm", type=click.Choice(["rsr", "rsr++"]), help="rsr: which one."),
        click.option(
            "--activation",
            type=click.Choice(["keep", "int8"]),
            default="keep",
            show_default=True,
            help="int8 quantises each activation row (BitNet W1.58A8): faster, answers change.",
        ),
        click.option(
            "--tolerance",
            type=click.FloatRange(0.0),
            default=0.0,
            show_default=True,
            help="Admit weights this far from ternary, relative to the scale; 0 means exact.",
        ),
        click.option(
            "--min-elements",
            type=click.IntRange(0),
            default=OptimizeOptions().min_elements,
            show_default=True,
            help="Leave products with fewer weights alone.",
        ),
    ]

    @wraps(command)
    def with_options(**arguments: Any) -> None:
        names = arguments.keys() & {field.name for field in fields(OptimizeOptions)}
        chosen = {name: arguments.pop(name) for name in names}
        try:
            arguments["options"] = OptimizeOptions(**chosen)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        command(**arguments)

    result: Callable[..., None] = with_options
    for option in reversed(options):
        result = option(result)
    return result


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(onnx_ternary.__version__, prog_name="onnx-ternary")
def main() -> None:
    """Make ONNX models with ternary weights smaller and faster, with the same answers."""


@main.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path), required=False)
@_rewrite_options
@click.option(
    "--verify/--no-verify",
    "run_verify",
    default=None,
    help="Compare both models in onnxruntime before the output is written. Default: on for models "
    "up to 2 GB.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Inputs for the verification, an .npz by input name (default: generated).",
)
@click.option("--dry-run", is_flag=True, help="Report what would be done; write nothing.")
@click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Keep tensors in a file beside the model (auto: above 2 GB).",
)
@click.option(
    "--function-body/--no-function-body",
    default=True,
    show_default=True,
    help="Carry a definition in standard operators, so that the model runs without the library.",
)
@click.option("--require-rewrite", is_flag=True, help="Exit 4 if there is nothing to rewrite.")
@click.option(
    "--max-size-ratio",
    type=click.FloatRange(0.0, min_open=True),
    metavar="R",
    help="Exit 4 if the output is larger than R times the input.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as JSON.",
)
@_quiet_and_verbose
def optimize_command(
    model: Path,
    output: Path | None,
    options: OptimizeOptions,
    run_verify: bool | None,
    inputs: Path | None,
    dry_run: bool,
    require_rewrite: bool,
    max_size_ratio: float | None,
    report_path: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Rewrite the ternary products of MODEL and write OUTPUT (default: MODEL.ternary.onnx)."""
    out = _Output(quiet, verbose)
    target = output or model.with_suffix(".ternary.onnx")
    with out.progress("Converting") as progress:
        conversion = convert(
            model,
            None if dry_run else target,
            options,
            requirements=Requirements(rewrite=require_rewrite, max_size_ratio=max_size_ratio),
            verify_result=run_verify,
            inputs=inputs,
            report_path=report_path,
            progress=progress,
        )
    _print_rewrites(out, conversion.report)
    _print_notes(out, conversion.report)
    _print_conversion(out, conversion, None if dry_run else target)


@main.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@_rewrite_options
@click.option("--deep", is_flag=True, help="Check every index already in the model, code by code.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@_quiet_and_verbose
def inspect_command(
    model: Path,
    options: OptimizeOptions,
    deep: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Say for every product of MODEL whether it would be rewritten, and if not, why."""
    out = _Output(quiet, verbose)
    with out.progress("Reading") as progress:
        report = optimize(model, options, progress=progress).report
    checked = check_indices(model_io.load(model)) if deep else ()
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    _print_rewrites(out, report)
    _print_notes(out, report)
    if deep:
        out.console.print(f"{len(checked)} indices checked, none damaged.", highlight=False)


@main.command("verify")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("converted", type=click.Path(path_type=Path))
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Inputs, an .npz by input name (default: generated from --seed).",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--weight-tolerance",
    type=click.FloatRange(0.0),
    default=0.0,
    show_default=True,
    help="The --tolerance CONVERTED was made with; outputs then get no verdict.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_quiet_and_verbose
def verify_command(
    original: Path,
    converted: Path,
    inputs: Path | None,
    seed: int,
    weight_tolerance: float,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare CONVERTED with ORIGINAL in onnxruntime, product by product and end to end."""
    out = _Output(quiet, verbose)
    with out.progress("Comparing") as progress:
        report = verify(
            original,
            converted,
            inputs=inputs,
            seed=seed,
            weight_tolerance=weight_tolerance,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    elif report.passed or out.verbose:
        _print_verification(out, report)
    if not report.passed:
        raise VerificationError(report.summary())
    if not report.products and not report.num_nested_products:
        out.warn(f"'{converted}' has no TernaryIndexedMatMul node; are the arguments swapped?")


@main.command("info")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info_command(as_json: bool) -> None:
    """List the kernels: built, supported by this processor, selected for a number of rows."""
    kernels = onnx_ternary.list_kernels()
    if as_json:
        click.echo(json.dumps(kernels, indent=2))
        return
    console = _console()
    console.print(f"onnx-ternary {onnx_ternary.__version__}", highlight=False)
    console.print(f"library: {onnx_ternary.get_library_path()}", highlight=False, soft_wrap=True)
    console.print(f"processor: {', '.join(kernels['cpu']) or 'baseline'}", highlight=False)
    table = _table("kernel", "format", "activation", "isa", "supported", "selected for rows")
    for kernel in kernels["kernels"]:
        rows = [
            f"{row['rows_min']}-{row['rows_max'] or ''}"
            for row in kernels["selection"]
            if row["kernel"] == kernel["name"]
        ]
        _add_row(
            table,
            kernel["name"],
            kernel["index_format"],
            kernel["activation"],
            kernel["isa"],
            "yes" if kernel["supported"] else "no",
            ", ".join(rows),
        )
    console.print(table)


def _print_rewrites(out: _Output, report: Report) -> None:
    headings = ["node", "operator", "K x N", "weights", "before", "after"]
    headings += ["graph", "index", "changed by"] if out.verbose else []
    headings += ["result"]
    rows: list[dict[str, str]] = [
        {
            "node": rewrite.node,
            "operator": rewrite.pattern,
            "K x N": f"{rewrite.K} x {rewrite.N}",
            "weights": f"{rewrite.alphabet}, scale {rewrite.scale}",
            "before": _size(rewrite.bytes_before),
            "after": _size(rewrite.bytes_after),
            "graph": rewrite.graph,
            "index": f"{rewrite.index_format} {rewrite.storage}, {rewrite.activation}",
            "changed by": f"{rewrite.max_relative_change:.3g}",
            "result": "rewritten",
        }
        for rewrite in report.rewrites
    ]
    rows += [
        {
            "node": kept.node,
            "operator": kept.op_type,
            "graph": kept.graph,
            "result": f"stays: {kept.reason}",
        }
        for kept in report.rejections
    ]
    rows += [
        {"node": name, "operator": OP_TYPE, "result": "already converted"}
        for name in report.already_converted
    ]
    if not rows:
        out.console.print("The model has no matrix products.")
        return
    # A narrow terminal gets what matters most; the report has the rest.
    if out.console.width < _NARROW_COLUMNS:
        headings = ["node", "K x N", "result"]
    shown = [heading for heading in headings if any(heading in row for row in rows)]
    table = _table(*shown)
    for row in rows:
        _add_row(table, *(row.get(heading, "") for heading in shown))
    out.console.print(table)


def _print_notes(out: _Output, report: Report) -> None:
    for note in report.notes:
        out.console.print("Note:", note, markup=False, highlight=False, soft_wrap=True)


def _print_conversion(out: _Output, conversion: Conversion, target: Path | None) -> None:
    if conversion.bytes_after > conversion.bytes_before:
        out.warn("the converted model is larger than the original.")
    if not conversion.report.rewrites:
        done = "nothing was written" if target is None else "the model was written unchanged"
        out.warn(f"no product was rewritten; {done}.")
    if conversion.verification is not None:
        _print_verification(out, conversion.verification)
    elif conversion.report.rewrites:
        out.warn(f"not verified: {conversion.verification_skipped}.")
    ratio = conversion.bytes_after / conversion.bytes_before
    where = "would be written" if target is None else str(target)
    out.console.print(
        f"{_size(conversion.bytes_before)} -> {_size(conversion.bytes_after)} "
        f"({ratio:.1%}): {where}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _print_verification(out: _Output, report: VerificationReport) -> None:
    if out.verbose:
        table = _table("product", "rows", "largest error / bound", "result", "compared with")
        for product in report.products:
            _add_row(
                table,
                product.node,
                str(product.rows),
                f"{product.worst_error_over_bound:.3g}",
                product.status,
                product.compared_with or product.reason,
            )
        out.console.print(table)
        for note in report.notes:
            out.console.print("Note:", note, markup=False, highlight=False, soft_wrap=True)
    out.console.print(report.summary(), markup=False, highlight=False, soft_wrap=True)


def _size(num_bytes: int) -> str:
    """A size in the unit that gives three significant digits, powers of 1000."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


if __name__ == "__main__":
    sys.exit(main())
