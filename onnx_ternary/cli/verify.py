"""``onnx-ternary verify``."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_ternary.cli._options import comparison_options, input_options, quiet_and_verbose
from onnx_ternary.cli._output import Output
from onnx_ternary.cli._tables import incomplete, print_verification
from onnx_ternary.errors import VerificationError
from onnx_ternary.options import VerificationOptions
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.verification.settings import VerifySettings
from onnx_ternary.verification.verify import compare_models


@click.command("verify")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("converted", type=click.Path(path_type=Path))
@input_options
@comparison_options
@click.option(
    "--weight-tolerance",
    type=click.FloatRange(0.0),
    help="The --tolerance CONVERTED was made with; outputs then get no verdict. Default: what "
    "its metadata says.",
)
@click.option(
    "--products",
    "products_only",
    is_flag=True,
    help="Run each product alone, on random activations: for models that do not fit into memory. "
    "Outputs are not compared.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@quiet_and_verbose
def verify_command(
    original: Path,
    converted: Path,
    inputs: Path | None,
    verification: VerificationOptions,
    libraries: tuple[str, ...],
    seed: int,
    weight_tolerance: float | None,
    products_only: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Compare CONVERTED with ORIGINAL in onnxruntime, product by product and end to end."""
    out = Output(quiet, verbose)
    with out.progress("Comparing") as progress:
        settings = VerifySettings(
            verification,
            inputs,
            seed,
            weight_tolerance=weight_tolerance,
            products_only=products_only,
            custom_op_libraries=libraries,
            progress=progress,
        )
        report = compare_models(original, converted, settings)
    if as_json:
        click.echo(json_text(report.to_dict()))
    elif report.passed or out.verbose:
        print_verification(out, report)
    if not report.passed:
        raise VerificationError(report.summary())
    for warning in incomplete(report):
        out.warn(f"{warning}.")
    if not report.products and not report.num_nested_products:
        out.warn(f"'{converted}' has no TernaryIndexedMatMul node; are the arguments swapped?")
