"""``onnx-ternary optimize``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from onnx_ternary.building.model_folder import is_model_folder
from onnx_ternary.cli._options import quiet_and_verbose, rewrite_options, verification_options
from onnx_ternary.cli._output import Output
from onnx_ternary.cli._tables import (
    incomplete,
    print_notes,
    print_outcomes,
    print_rewrites,
    print_verification,
    unmatched,
)
from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.conversion.batch import (
    check_not_itself,
    convert_models,
    default_target,
    is_pattern,
)
from onnx_ternary.conversion.convert import convert_file
from onnx_ternary.conversion.report_files import ReportFiles
from onnx_ternary.conversion.settings import BatchSettings, ConversionSettings
from onnx_ternary.errors import visible
from onnx_ternary.model_files.targets import check_name
from onnx_ternary.options import OptimizeOptions, Requirements, VerificationOptions
from onnx_ternary.reports.outcome import Batch, Conversion
from onnx_ternary.reports.report import format_size


@click.command("optimize")
@click.argument("models", metavar="MODEL... [OUTPUT]", type=click.Path(), nargs=-1, required=True)
@rewrite_options
@verification_options
@click.option("--dry-run", is_flag=True, help="Report what would be done; write no model.")
@click.option("--in-place", is_flag=True, help="Replace every MODEL; there is no OUTPUT.")
@click.option(
    "--check",
    is_flag=True,
    help="Write no model; exit 4 if one has products that can be rewritten. There is no OUTPUT.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Models at a time, at most, if there are several (default: one per processor, as far as "
    "they fit into memory).",
)
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
@click.option(
    "--require-rewrite",
    is_flag=True,
    help="Exit 4 if there is nothing to rewrite, unless the model was converted before.",
)
@click.option(
    "--max-size-ratio",
    type=click.FloatRange(0.0, min_open=True),
    metavar="R",
    help="Exit 4 if the output is larger than R times the input, unless that was converted before.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as JSON, also where the command fails.",
)
@click.option(
    "--summary",
    "summary_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as Markdown, also where the command fails.",
)
@click.option(
    "--annotations",
    "annotations_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what went wrong as GitHub's workflow commands; printed in a job, they become "
    "annotations that name the model.",
)
@quiet_and_verbose
@click.pass_context
def optimize_command(
    ctx: click.Context,
    models: tuple[str, ...],
    options: OptimizeOptions,
    run_verify: bool | None,
    inputs: Path | None,
    verification: VerificationOptions,
    libraries: tuple[str, ...],
    dry_run: bool,
    in_place: bool,
    check: bool,
    jobs: int | None,
    require_rewrite: bool,
    max_size_ratio: float | None,
    report_path: Path | None,
    summary_path: Path | None,
    annotations_path: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Rewrite the ternary products of MODEL and write OUTPUT (default: MODEL.ternary.onnx).

    Many models are converted in one call if MODEL is a folder or a pattern ('models/**/*.onnx'),
    if there is more than one, if OUTPUT is a folder, or with --in-place or --check: each goes into
    the folder OUTPUT (default: beside the model). One that fails does not stop the others; the exit
    code is the most serious one, 3 before 1 before 4. A model that was converted before is copied
    as it is, or left alone where its output would be itself.

    If MODEL is a folder with genai_config.json and OUTPUT is given, its decoder is converted and
    OUTPUT becomes a new folder with everything onnxruntime-genai needs.
    """
    out = Output(quiet, verbose)
    sources, target, many = _read_arguments(models, in_place or check)
    dry_run = dry_run or check
    if check and run_verify is None:
        run_verify = False  # what is not written needs no proof
    with out.progress("Converting") as progress:
        settings = ConversionSettings(
            options,
            Requirements(require_rewrite, max_size_ratio, complete=check),
            Verifying(run_verify, inputs, verification, libraries, progress),
            ReportFiles(report_path, summary_path, annotations_path),
        )
        if many:
            batch = _convert_models(
                sources, target, BatchSettings(settings, in_place or check, dry_run, jobs)
            )
        else:
            model = Path(sources[0])
            output = None if dry_run else Path(target) if target else default_target(model)
            if output is not None and target is not None:
                _check_not_itself(model, output)
            if is_model_folder(model):
                from onnx_ternary.building.optimize_folder import optimize_folder

                conversion = optimize_folder(model, output, settings)
            else:
                conversion = convert_file(model, output, settings)
    if many:
        _print_batch(out, batch)
        ctx.exit(batch.exit_code)
    print_rewrites(out, conversion.report)
    print_notes(out, conversion.report)
    _print_conversion(out, conversion, output)


def _check_not_itself(model: Path, output: Path) -> None:
    try:
        check_not_itself(model, output)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _convert_models(sources: tuple[str, ...], target: str | None, settings: BatchSettings) -> Batch:
    try:
        return convert_models(sources, target, settings)
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error


def _read_arguments(
    models: tuple[str, ...], without_output: bool
) -> tuple[tuple[str, ...], str | None, bool]:
    """Sources, output, and whether they are many; as cp reads its arguments."""
    for each in models:
        check_name(Path(each))
    if without_output:
        return models, None, True
    if len(models) == 1:
        return models, None, _is_many(models[0])
    if _is_one_folder(models):
        return models[:1], models[1], False
    *sources, output = models
    many = len(sources) > 1 or _is_many(sources[0]) or Path(output).is_dir()
    many = many or output.endswith("/")
    if many and not Path(output).is_dir() and (Path(output).exists() or output.endswith(".onnx")):
        raise click.UsageError(
            f"'{output}' has to be a folder, because many models are converted; name one, or use "
            "--in-place."
        )
    return tuple(sources), output, many


def _is_one_folder(models: tuple[str, ...]) -> bool:
    """Whether MODEL is a folder of onnxruntime-genai, and OUTPUT there."""
    return len(models) == 2 and is_model_folder(models[0])


def _is_many(source: str) -> bool:
    return Path(source).is_dir() or is_pattern(source)


def _print_batch(out: Output, batch: Batch) -> None:
    for outcome in batch.outcomes:
        if out.verbose and outcome.conversion is not None:
            out.line(str(outcome.source), "bold")
            print_rewrites(out, outcome.conversion.report)
            print_notes(out, outcome.conversion.report)
            if outcome.conversion.verification is not None:
                print_verification(out, outcome.conversion.verification)
    print_outcomes(out, batch.outcomes)
    out.line(batch.total())
    reports = [each.conversion.report for each in batch.outcomes if each.conversion is not None]
    for warning in unmatched(*reports):
        out.warn(f"{warning}.")
    for outcome in batch.outcomes:
        if outcome.error:
            click.echo(visible(f"Error: {outcome.error}"), err=True)
        elif outcome.conversion is not None:
            for warning in _warnings(outcome.conversion, outcome.target):
                out.warn(f"'{outcome.source}': {warning}.")


def _print_conversion(out: Output, conversion: Conversion, target: Path | None) -> None:
    for warning in (*unmatched(conversion.report), *_warnings(conversion, target)):
        out.warn(f"{warning}.")
    if conversion.verification is not None:
        print_verification(out, conversion.verification)
    ratio = conversion.bytes_after / conversion.bytes_before
    where = "would be written" if target is None else str(target)
    out.line(
        f"{format_size(conversion.bytes_before)} -> {format_size(conversion.bytes_after)} "
        f"({ratio:.1%}): {where}"
    )


def _warnings(conversion: Conversion, target: Path | None) -> Iterator[str]:
    report = conversion.report
    if conversion.bytes_after > conversion.bytes_before:
        yield "the converted model is larger than the original"
    if not report.changed and not report.already_converted:
        done = "nothing was written" if target is None else "the model was written unchanged"
        yield f"no product was rewritten; {done}"
    if report.changed and conversion.verification is None:
        yield f"not verified: {conversion.verification_skipped.rstrip('.')}"
    if conversion.verification is not None:
        yield from incomplete(conversion.verification)
