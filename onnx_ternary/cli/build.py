"""``onnx-ternary build``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import click

from onnx_ternary.building.build import BuildResult, build
from onnx_ternary.building.options import (
    BuildActivation,
    BuildOptions,
    HeadChoice,
    PoolingChoice,
    Task,
)
from onnx_ternary.cli._options import quiet_and_verbose
from onnx_ternary.cli._output import Output, print_table
from onnx_ternary.reports.report import format_size


@click.command("build")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the tokenizer's files are (default: CHECKPOINT); needed for a GGUF file.",
)
@click.option(
    "--activation",
    type=click.Choice(get_args(BuildActivation)),
    default="auto",
    show_default=True,
    help="int8 quantizes the activations of ternary products as BitNet b1.58 does; auto does so "
    "where the checkpoint was trained so (quant_method bitnet).",
)
@click.option(
    "--head",
    type=click.Choice(get_args(HeadChoice)),
    default="keep",
    show_default=True,
    help="Store a float head in 8 or 4 bits (MatMulNBits): smaller and faster, logits change.",
)
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    default="generation",
    show_default=True,
    help="embedding builds a model that gives a vector per text (BitNet-embedding on Qwen3).",
)
@click.option(
    "--pooling",
    type=click.Choice(get_args(PoolingChoice)),
    default="auto",
    show_default=True,
    help="Of an embedding: the mean over its tokens, or the last one; auto asks modules.json.",
)
@click.option(
    "--function-body/--no-function-body",
    default=True,
    show_default=True,
    help="Carry a definition of the operator in standard operators.",
)
@click.option(
    "--verify/--no-verify",
    "run_verify",
    default=True,
    show_default=True,
    help="Compare products and the first layers with the checkpoint before OUT is written.",
)
@click.option("--dry-run", is_flag=True, help="Report what would be done; write no folder.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as JSON.",
)
@quiet_and_verbose
def build_command(
    checkpoint: Path,
    out: Path | None,
    tokenizer: Path | None,
    activation: BuildActivation,
    head: HeadChoice,
    task: Task,
    pooling: PoolingChoice,
    function_body: bool,
    run_verify: bool,
    dry_run: bool,
    report_path: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Build a model folder OUT for onnxruntime-genai from a ternary CHECKPOINT.

    CHECKPOINT is a folder with config.json and safetensors files, or a GGUF file, of a BitNet,
    Llama or Qwen3 model whose weights are ternary or binary, packed or not. OUT gets the model,
    genai_config.json, the tokenizer's files and a copy of the operator library.
    """
    if out is None and not dry_run:
        raise click.UsageError("OUT is missing; name a new folder, or give --dry-run.")
    output = Output(quiet, verbose)
    with output.progress("Building") as progress:
        result = build(
            checkpoint,
            None if dry_run else out,
            BuildOptions(activation, head, function_body, task, pooling),
            verify_result=run_verify,
            report_path=report_path,
            progress=progress,
            tokenizer=tokenizer,
        )
    _print(output, result, out)


def _print(output: Output, result: BuildResult, out: Path | None) -> None:
    if output.verbose:
        rows = [
            {
                "weight": row["name"],
                "K x N": f"{row['K']} x {row['N']}",
                "scale": row.get("scale", ""),
                "size": format_size(row["bytes"]),
                "result": row["kind"],
            }
            for row in result.products
        ]
        print_table(output.console, ["weight", "K x N", "scale", "size", "result"], rows)
    kinds = Counter(row["kind"] for row in result.products)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    output.line(
        f"{len(result.products)} products: {counts}; ternary layers take {result.activation}."
    )
    if result.verification is not None:
        output.line(result.verification.summary())
    elif result.files:
        output.warn("not verified: not asked for.")
    for note in result.notes:
        output.line(f"Note: {note}.")
    where = f"{out}, built in {result.seconds:.0f} s" if result.files else "would be written"
    output.line(f"{format_size(result.num_bytes)}: {where}")
