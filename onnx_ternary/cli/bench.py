"""``onnx-ternary bench``."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_ternary.bench import BenchSettings, format_seconds, time_models
from onnx_ternary.cli._options import input_options
from onnx_ternary.cli._output import make_console, print_line, print_table
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.report import format_size


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("converted", type=click.Path(path_type=Path), required=False)
@input_options
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of either session.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=25,
    show_default=True,
    help="How often each model is timed; fewer than 15 give no answer.",
)
@click.option(
    "--max-difference",
    type=click.FloatRange(0.0),
    default=0.1,
    show_default=True,
    help="Exit 3 if the outputs differ by more, relative to their largest magnitude.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def bench_command(
    model: Path,
    converted: Path | None,
    inputs: Path | None,
    libraries: tuple[str, ...],
    seed: int,
    threads: int,
    rounds: int,
    max_difference: float,
    as_json: bool,
) -> None:
    """Time MODEL against CONVERTED (default: MODEL, converted to a temporary file)."""
    settings = BenchSettings(
        inputs,
        seed,
        threads,
        rounds,
        max_difference=max_difference,
        custom_op_libraries=libraries,
    )
    result = time_models(model, converted, settings)
    if as_json:
        click.echo(json_text(result.to_dict()))
        return
    console = make_console()
    rows = [
        {
            "model": name,
            "a run": format_seconds(speed.median),
            "spread": f"{speed.spread:.0%}",
            "load": format_seconds(speed.load_median),
            "size": format_size(speed.file_bytes),
        }
        for name, speed in (("original", result.original), ("converted", result.converted))
    ]
    print_table(console, list(rows[0]), rows)
    for name, source in result.inputs.items():
        print_line(console, f"{name}: {source}")
    for line in result.verdict().splitlines():  # no name is in it
        print_line(console, line)
