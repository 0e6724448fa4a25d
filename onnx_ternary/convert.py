"""Convert a file: optimise, verify, check the user's requirements, and only then write."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnx_ternary import model_io
from onnx_ternary._verify_inputs import Inputs
from onnx_ternary.errors import ModelError, RequirementError, VerificationError
from onnx_ternary.optimize import OptimizeOptions, optimize
from onnx_ternary.report import Report
from onnx_ternary.verify import VerificationReport, verify

# Verification holds the original in memory, its products' inputs and outputs beside it.
MAX_VERIFIED_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Requirements:
    """What must hold for a conversion to count.

    Attributes:
        rewrite: At least one product is rewritten.
        max_size_ratio: The output's size divided by the input's, at most; None for no limit.
    """

    rewrite: bool = False
    max_size_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did.

    Attributes:
        report: What was rewritten, what was not, and why.
        files: The files written, the model first; empty for a dry run.
        bytes_before: Size of the original, external data included.
        bytes_after: Size of the result; for a dry run, of what would be written.
        verification: The comparison of both models, or None.
        verification_skipped: Why there is none, or an empty string.
    """

    report: Report
    files: tuple[Path, ...]
    bytes_before: int
    bytes_after: int
    verification: VerificationReport | None
    verification_skipped: str

    def to_dict(self) -> dict[str, Any]:
        """The conversion as JSON types."""
        return {
            "files": [str(path) for path in self.files],
            "file_bytes_before": self.bytes_before,
            "file_bytes_after": self.bytes_after,
            "verification": self.verification.to_dict() if self.verification else None,
            "verification_skipped": self.verification_skipped,
            **self.report.to_dict(),
        }


def convert(
    source: str | PathLike[str],
    target: str | PathLike[str] | None,
    options: OptimizeOptions | None = None,
    *,
    requirements: Requirements | None = None,
    verify_result: bool | None = None,
    inputs: Inputs | None = None,
    report_path: str | PathLike[str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Conversion:
    """Convert the model in ``source`` and write it to ``target``, or write nothing.

    A model with nothing to rewrite is copied as it is.

    Args:
        source: An ONNX file.
        target: Where the result goes, ``source`` itself included; None for a dry run.
        options: None for the defaults.
        requirements: None for none.
        verify_result: Compare both models in onnxruntime; None for: where the model is not larger
            than `MAX_VERIFIED_BYTES`.
        inputs: Inputs to verify with, by name or in an .npz file; None for generated ones.
        report_path: Where `Conversion.to_dict` goes as JSON, after everything else.
        progress: Called for each product with its name, its index and their number, once while
            converting and once more while verifying.

    Raises:
        ModelError: If a file cannot be read or written, or the model is not valid.
        RequirementError: If a requirement is not met.
        VerificationError: If the converted model's answers are not within the stated bounds.
    """
    report = None if report_path is None else Path(report_path)
    for model in (source, target):
        if report is not None and model is not None and report.resolve() == Path(model).resolve():
            raise ModelError(f"The report '{report}' would replace the model; give another name.")
    with (
        _staged_json(report) as write_report,
        _scratch_folder(None if target is None else Path(target)) as scratch,
    ):
        conversion = _convert(
            Path(source),
            None if target is None else Path(target),
            options,
            requirements or Requirements(),
            verify_result,
            inputs,
            progress,
            scratch,
        )
        write_report(conversion.to_dict())
    return conversion


def _convert(
    source: Path,
    target: Path | None,
    options: OptimizeOptions | None,
    requirements: Requirements,
    verify_result: bool | None,
    inputs: Inputs | None,
    progress: Callable[[str, int, int], None] | None,
    scratch: Path,
) -> Conversion:
    result = optimize(source, options, progress=progress, spool=model_io.Spool(scratch))
    if requirements.rewrite and not result.report.rewrites:
        raise RequirementError(
            f"No product of '{source}' was rewritten, but a rewrite is required; "
            f"'onnx-ternary inspect {source}' says why each one stayed."
        )
    bytes_before = model_io.file_bytes(source)
    changed = bool(result.report.rewrites or result.report.requantised)
    skipped = _why_not_verified(verify_result, changed, bytes_before)
    checked: dict[str, Any] = {"verification": None, "bytes_after": 0}

    def accept(staged: Path) -> None:
        size = model_io.file_bytes(staged)
        checked["bytes_after"] = size
        limit = requirements.max_size_ratio
        if limit is not None and size > limit * bytes_before:
            raise RequirementError(
                f"'{source}' would go from {bytes_before} to {size} bytes, "
                f"{size / bytes_before:.3f} of its size; at most {limit:g} is required."
            )
        if not skipped:
            verification = verify(
                source,
                staged,
                inputs=inputs,
                weight_tolerance=result.options.tolerance,
                progress=progress,
            )
            if not verification.passed:
                raise VerificationError(verification.summary())
            checked["verification"] = verification

    files: tuple[Path, ...] = ()
    if target is None:
        staged = scratch / source.name
        model_io.save(result.model, staged, external_data=result.external_data)
        accept(staged)
    elif changed:
        in_place = target.resolve() == source.resolve()
        files = model_io.save(
            result.model,
            target,
            external_data=result.external_data,
            accept=accept,
            protected=() if in_place else model_io.data_files(source),
        )
    else:
        files = model_io.copy(source, target, accept=accept)
    return Conversion(
        result.report,
        files,
        bytes_before,
        checked["bytes_after"],
        checked["verification"],
        skipped,
    )


def _why_not_verified(asked: bool | None, rewritten: bool, num_bytes: int) -> str:
    if not rewritten:
        return "nothing was rewritten"
    if asked is None and num_bytes > MAX_VERIFIED_BYTES:
        return f"the model is larger than {MAX_VERIFIED_BYTES / 1e9:g} GB; use --verify to do it"
    return "" if asked is None or asked else "not asked for"


@contextmanager
def _scratch_folder(target: Path | None) -> Iterator[Path]:
    """A folder on the target's disk, gone afterwards; without a target, the system's."""
    if target is not None:
        model_io.check_target(target)
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=None if target is None else f".{target.name}.",
            dir=None if target is None else target.resolve().parent,
        )
    except OSError as error:
        raise ModelError(f"'{target}' cannot be written: {error.strerror}.") from error
    with folder as name:
        yield Path(name)


@contextmanager
def _staged_json(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a report before the work, give it its name after; nothing stays behind on failure."""
    if path is None:
        yield lambda content: None
        return
    # A pipe or a terminal is written to, not replaced.
    ordinary = path.is_file() or not path.exists()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", dir=path.resolve().parent if ordinary else None
        )
    except OSError as error:
        raise ModelError(f"The report '{path}' cannot be written: {error.strerror}.") from error
    with folder as name:
        staged = Path(name) / path.name

        def write(content: dict[str, Any]) -> None:
            text = json.dumps(content, indent=2) + "\n"
            try:
                (staged if ordinary else path).write_text(text, encoding="utf-8")
                if ordinary:
                    staged.replace(path.resolve())
            except OSError as error:
                raise ModelError(
                    f"The report '{path}' cannot be written: {error.strerror}."
                ) from error

        yield write
