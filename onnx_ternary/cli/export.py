"""``onnx-ternary export``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from onnx_ternary.cli._options import quiet_and_verbose, verification_options
from onnx_ternary.cli._output import Output, print_table
from onnx_ternary.cli._tables import incomplete, print_verification
from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.exporting.export import ExportedFile, ExportSettings, export_to
from onnx_ternary.exporting.exporter import ExportedProduct, Form
from onnx_ternary.options import ExternalData, VerificationOptions
from onnx_ternary.reports.report import format_size
from onnx_ternary.schema import OP_TYPE


@click.command("export")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(get_args(Form)),
    required=True,
    help="float: MatMul. matmulnbits: com.microsoft.MatMulNBits. qdq: DequantizeLinear -> MatMul.",
)
@click.option(
    "--bits",
    type=click.Choice(["2", "4"]),
    default="2",
    show_default=True,
    help="Of MatMulNBits: 4 runs in older versions of onnxruntime too.",
)
@click.option(
    "--accuracy-level",
    type=click.IntRange(0, 4),
    default=0,
    show_default=True,
    help="Of MatMulNBits: 4 lets onnxruntime round activations to int8, faster and less exact.",
)
@verification_options
@click.option(
    "--external-data",
    type=click.Choice(get_args(ExternalData)),
    default="auto",
    show_default=True,
    help="Keep tensors in a file beside the model (auto: above 2 GB).",
)
@quiet_and_verbose
def export_command(
    model: Path,
    output: Path,
    to: Form,
    bits: str,
    accuracy_level: int,
    run_verify: bool | None,
    inputs: Path | None,
    verification: VerificationOptions,
    libraries: tuple[str, ...],
    external_data: ExternalData,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write MODEL to OUTPUT with standard operators instead of this package's."""
    out = Output(quiet, verbose)
    with out.progress("Exporting") as progress:
        verifying = Verifying(run_verify, inputs, verification, libraries, progress)
        settings = ExportSettings(
            to, 2 if bits == "2" else 4, accuracy_level, external_data, verifying
        )
        done = export_to(model, output, settings)
    if not done.products:
        out.warn(f"the model has no {OP_TYPE} node; it was written unchanged.")
    else:
        _print_products(out, done.products)
    _print_result(out, done, output)


def _print_products(out: Output, products: tuple[ExportedProduct, ...]) -> None:
    rows = [
        {
            "node": product.node,
            "K x N": f"{product.K} x {product.N}",
            "type": product.dtype,
            "became": product.operator,
        }
        for product in products
    ]
    print_table(out.console, list(rows[0]), rows, narrow=["node", "became"])


def _print_result(out: Output, done: ExportedFile, output: Path) -> None:
    if done.verification is not None:
        print_verification(out, done.verification)
        for warning in incomplete(done.verification):
            out.warn(f"{warning}.")
    elif done.products:
        out.warn(f"not verified: {done.verification_skipped.rstrip('.')}.")
    sizes = f"{format_size(done.bytes_before)} -> {format_size(done.bytes_after)}: {output}"
    out.line(sizes)
