"""Convert a file: optimize, verify, check the user's requirements, and only then write."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from onnx_ternary.conversion.accepted import Acceptance, Verifying
from onnx_ternary.conversion.optimize import optimize_in_place
from onnx_ternary.conversion.report_files import ReportFiles, check_distinct
from onnx_ternary.conversion.settings import ConversionSettings
from onnx_ternary.errors import (
    ModelError,
    OnnxTernaryError,
    RequirementError,
    VerificationError,
)
from onnx_ternary.model_files.load import ModelFile, load
from onnx_ternary.model_files.targets import check_target
from onnx_ternary.model_files.tensors import Spool, external_tensors, release
from onnx_ternary.options import OptimizeOptions, Requirements, VerificationOptions
from onnx_ternary.reports.annotations import annotate
from onnx_ternary.reports.markdown import summarize
from onnx_ternary.reports.outcome import Conversion, Outcome
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.report import VerificationReport


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str] | None,
    options: OptimizeOptions | None = None,
    *,
    requirements: Requirements | None = None,
    verify_result: bool | None = None,
    inputs: Inputs | None = None,
    verification: VerificationOptions | None = None,
    custom_op_libraries: Sequence[str | PathLike[str]] = (),
    report_path: str | PathLike[str] | None = None,
    summary_path: str | PathLike[str] | None = None,
    annotations_path: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Convert the model in ``source`` and write it to ``target``, or write nothing.

    A model with nothing to rewrite is copied as it is.

    Args:
        source: an ONNX file.
        target: where the result goes, ``source`` itself included; None for a dry run.
        options: None for the defaults.
        requirements: None for none.
        verify_result: compare the result with its original. True: both models as a whole, and
            nothing is written where onnxruntime runs no part of the original. None: the same up to
            `MAX_VERIFIED_BYTES`, each product alone above; what cannot be compared is reported.
            False: not at all. In every case products run alone where the original does not run.
        inputs: inputs to verify with, by name or in an .npz file; None for generated ones.
        verification: how they are compared; None for the defaults.
        custom_op_libraries: other libraries whose operators the model uses, as `verify` takes
            them.
        report_path: where `Outcome.to_dict` goes as JSON, after everything else. It says what went
            wrong, so it is written too where this function raises one of the errors below.
        summary_path: where the report goes as Markdown, under the same rule.
        annotations_path: where what went wrong goes as GitHub's workflow commands, likewise.
        progress: called for each product with its name, its index and their number, once while
            converting and once more while verifying.

    Raises:
        LibraryError: if a library is missing or cannot be loaded.
        ModelError: if a file cannot be read or written, or the model is not valid.
        RequirementError: if a requirement is not met.
        VerificationError: if the converted model's answers are not within the stated bounds.
    """
    settings = ConversionSettings.of(
        options,
        requirements,
        Verifying.of(verify_result, inputs, verification, custom_op_libraries, progress),
        ReportFiles.of(report_path, summary_path, annotations_path),
    )
    return convert_file(Path(source), None if target is None else Path(target), settings)


def convert_file(
    source: Path, target: Path | None, settings: ConversionSettings, file: ModelFile | None = None
) -> Conversion:
    """Convert a model as `convert` does.

    Args:
        source: an ONNX file.
        target: where the result goes; None for a dry run.
        settings: how.
        file: the model in ``source``, for editing, if it has been read already.

    Raises:
        OnnxTernaryError: as `convert`.
    """
    check_distinct(settings.files.by_name(), [source, target])
    with settings.files.staged() as write_texts:

        def write(outcome: Outcome) -> None:
            write_texts(outcome.to_json, lambda: summarize(outcome), lambda: annotate([outcome]))

        try:
            with _scratch_folder(target) as scratch:
                conversion = _convert(file or load(source), target, settings, scratch)
        except OnnxTernaryError as error:
            write(Outcome.of_error(source, target, error))
            raise
        write(Outcome(source, target, conversion))
    return conversion


def _convert(
    file: ModelFile, target: Path | None, settings: ConversionSettings, scratch: Path
) -> Conversion:
    source, verifying = file.path, settings.verifying
    result = optimize_in_place(
        file.model, source, settings.options, progress=verifying.progress, spool=Spool(scratch)
    )
    report = result.report
    skipped = verifying.why_not("" if report.changed else "nothing was rewritten")
    found = Acceptance(file)

    def done(files: tuple[Path, ...]) -> Conversion:
        return Conversion(
            report,
            files,
            file.num_bytes,
            found.bytes_after,
            found.verification,
            skipped or found.not_verified,
        )

    def compare(staged: Path) -> VerificationReport:
        return verifying.compare(file, staged, file.num_bytes, result.options.tolerance)

    try:
        found.save(
            result.model if report.changed or target is None else None,
            scratch / source.name if target is None else target,
            external_data=result.external_data,
            check=lambda: _check_requirements(settings.requirements, source, done(())),
            compare=None if skipped else compare,
            judge=_judge,
            required=bool(verifying.asked),
        )
    except (RequirementError, VerificationError) as error:
        error.conversion = done(())
        raise
    finally:
        # Windows removes no file that is mapped.
        for tensor in external_tensors(result.model):
            release(tensor)
    return done(() if target is None else found.files)


def _judge(verification: VerificationReport) -> None:
    if not verification.passed:
        raise VerificationError(verification.summary())


def _check_requirements(requirements: Requirements, source: Path, found: Conversion) -> None:
    rewrites = found.report.rewrites
    if found.report.already_converted and not rewrites:
        return
    if requirements.complete and rewrites:
        raise RequirementError(
            f"'{source}' is not converted: {len(rewrites)} of its products can be rewritten, the "
            f"first is '{rewrites[0].node}'; convert it with 'onnx-ternary optimize'."
        )
    if requirements.rewrite and not rewrites:
        raise RequirementError(
            f"No product of '{source}' was rewritten, but a rewrite is required; "
            f"'onnx-ternary inspect {source}' says why each one stayed."
        )
    limit = requirements.max_size_ratio
    before, after = found.bytes_before, found.bytes_after
    if limit is not None and after > limit * before:
        raise RequirementError(
            f"'{source}' would go from {before} to {after} bytes, {after / before:.3f} of its "
            f"size; at most {limit:g} is required."
        )


@contextmanager
def _scratch_folder(target: Path | None) -> Iterator[Path]:
    """A folder on the target's disk, gone afterwards; without a target, the system's."""
    place: tuple[str | None, Path | None] = (None, None)
    if target is not None:
        check_target(target)
        place = (f".{target.resolve().name}.", target.resolve().parent)
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=place[0], dir=place[1], ignore_cleanup_errors=True
        )
    except OSError as error:
        raise ModelError(f"'{target}' cannot be written: {error.strerror}.") from error
    with folder as name:
        yield Path(name)
