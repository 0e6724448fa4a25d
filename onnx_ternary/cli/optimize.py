"""``onnx-ternary optimize``."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_ternary.cli._options import quiet_and_verbose, rewrite_options
from onnx_ternary.cli._output import Output, format_size
from onnx_ternary.cli._tables import print_notes, print_rewrites, print_verification
from onnx_ternary.convert import Conversion, Requirements, convert
from onnx_ternary.options import OptimizeOptions


@click.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path), required=False)
@rewrite_options
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
    help="Keep tensors in a file beside the model (auto: above 2 GB, or above 10 MB if the "
    "original does).",
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
@quiet_and_verbose
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
    out = Output(quiet, verbose)
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
    print_rewrites(out, conversion.report)
    print_notes(out, conversion.report)
    _print_conversion(out, conversion, None if dry_run else target)


def _print_conversion(out: Output, conversion: Conversion, target: Path | None) -> None:
    if conversion.bytes_after > conversion.bytes_before:
        out.warn("the converted model is larger than the original.")
    if not conversion.report.rewrites:
        done = "nothing was written" if target is None else "the model was written unchanged"
        out.warn(f"no product was rewritten; {done}.")
    if conversion.verification is not None:
        print_verification(out, conversion.verification)
    elif conversion.report.rewrites:
        out.warn(f"not verified: {conversion.verification_skipped}.")
    ratio = conversion.bytes_after / conversion.bytes_before
    where = "would be written" if target is None else str(target)
    out.console.print(
        f"{format_size(conversion.bytes_before)} -> {format_size(conversion.bytes_after)} "
        f"({ratio:.1%}): {where}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
