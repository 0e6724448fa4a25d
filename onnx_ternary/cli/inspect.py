"""``onnx-ternary inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_ternary.cli._options import quiet_and_verbose, rewrite_options
from onnx_ternary.cli._output import Output
from onnx_ternary.cli._tables import print_notes, print_rewrites, unmatched
from onnx_ternary.conversion.optimize import optimize
from onnx_ternary.conversion.report_files import check_distinct
from onnx_ternary.conversion.staged_text import staged_text
from onnx_ternary.model_files.load import load
from onnx_ternary.op.nodes import check_indices
from onnx_ternary.options import OptimizeOptions
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.page import render_page
from onnx_ternary.verification.function_check import check_function_body


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@rewrite_options
@click.option(
    "--deep",
    is_flag=True,
    help="Check every index already in the model, code by code, and its function body.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--html",
    "html_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a page with the bytes of every product, before and after.",
)
@quiet_and_verbose
def inspect_command(
    model: Path,
    options: OptimizeOptions,
    deep: bool,
    as_json: bool,
    html_path: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Say for every product of MODEL whether it would be rewritten, and if not, why."""
    out = Output(quiet, verbose)
    check_distinct({"page": html_path}, [model])
    with staged_text(html_path, "page") as write_page:
        with out.progress("Reading") as progress:
            report = optimize(model, options, progress=progress).report
        write_page(lambda: render_page(model.name, report))
    checked = check_indices(load(model).model) if deep else ()
    if deep:
        check_function_body(model)
    if as_json:
        click.echo(json_text(report.to_dict()))
        return
    print_rewrites(out, report)
    print_notes(out, report)
    for warning in unmatched(report):
        out.warn(f"{warning}.")
    if deep:
        out.line(f"{len(checked)} indices checked, none damaged.")
