"""``onnx-ternary bench``."""

from __future__ import annotations

from pathlib import Path

import click

from onnx_ternary.bench import BenchSettings, format_seconds, time_models
from onnx_ternary.cli._options import input_options
from onnx_ternary.cli._output import make_console, print_line, print_table
from onnx_ternary.genai_bench import GenaiBenchSettings, bench_folders, describe
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.report import format_size


@click.command("bench")
@click.argument("model", type=click.Path(path_type=Path), required=False)
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
@click.option(
    "--genai",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Time a model folder in onnxruntime-genai instead of a MODEL: tokens per second of "
    "reading and of writing, load time and memory.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The folder that --genai's is compared with.",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="With --genai: length of the prompt, random tokens.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(2),
    default=16,
    show_default=True,
    help="With --genai: how many tokens are written in a round.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def bench_command(
    context: click.Context,
    model: Path | None,
    converted: Path | None,
    inputs: Path | None,
    libraries: tuple[str, ...],
    seed: int,
    threads: int,
    rounds: int,
    max_difference: float,
    folder: Path | None,
    against: Path | None,
    prompt_tokens: int,
    new_tokens: int,
    as_json: bool,
) -> None:
    """Time MODEL against CONVERTED (default: MODEL, converted to a temporary file).

    With --genai, time a folder for onnxruntime-genai, or two in turns.
    """
    if folder is not None:
        _refuse(context, ("model", "converted", "inputs", "libraries", "max_difference"), "--genai")
        _time_folders(
            folder,
            against,
            GenaiBenchSettings(threads, rounds, prompt_tokens, new_tokens, seed),
            as_json,
        )
        return
    _refuse(context, ("against", "prompt_tokens", "new_tokens"), "a MODEL, without --genai")
    if model is None:
        raise click.UsageError("MODEL is missing; name an ONNX file, or give --genai FOLDER.")
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


def _refuse(context: click.Context, names: tuple[str, ...], what: str) -> None:
    """Raise UsageError for a parameter that has no meaning here."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and given is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.get_error_hint(context)} does not go with {what}.")


def _time_folders(
    folder: Path, against: Path | None, settings: GenaiBenchSettings, as_json: bool
) -> None:
    result = bench_folders(folder, against, settings)
    if as_json:
        click.echo(json_text(result.to_dict()))
        return
    console = make_console()
    rows = [{"folder": folder.name, **describe(result.folder, result.rates(result.folder))}]
    if against is not None and result.against is not None:
        rates = result.rates(result.against)
        rows.insert(0, {"folder": against.name, **describe(result.against, rates)})
    print_table(console, list(rows[0]), rows)
    for line in result.verdict().splitlines():  # no name is in it
        print_line(console, line)
