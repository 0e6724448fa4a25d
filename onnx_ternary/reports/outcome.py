"""What became of one model: converted, left as it is, or refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnx_ternary.errors import ExitCode, OnnxTernaryError, visible
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.report import Report, format_size
from onnx_ternary.verification.report import VerificationReport

Status = Literal["converted", "unchanged", "already converted", "failed"]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did.

    Attributes:
        report: what was rewritten, what was not, and why.
        files: the files written, the model first; empty for a dry run.
        bytes_before: size of the original, external data included.
        bytes_after: size of the result; for a dry run, of what would be written.
        verification: the comparison of both models, or None.
        verification_skipped: why there is none, or an empty string.
    """

    report: Report
    files: tuple[Path, ...]
    bytes_before: int
    bytes_after: int
    verification: VerificationReport | None
    verification_skipped: str

    def __repr__(self) -> str:
        sizes = f"{format_size(self.bytes_before)} -> {format_size(self.bytes_after)}"
        checked = "not verified"
        if self.verification is not None:
            checked = f"verification {'passed' if self.verification.passed else 'failed'}"
        return f"<Conversion: {self.report.total()}, {sizes}, {checked}>"

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model of a call.

    Attributes:
        source: the model.
        target: where the result goes; None for a dry run.
        conversion: what was done and found; None where the model could not be converted at all.
        exit_code: what the command returns for this model alone.
        error: why it is not 0; empty if it is.
    """

    source: Path
    target: Path | None
    conversion: Conversion | None
    exit_code: ExitCode = ExitCode.DONE
    error: str = ""

    @classmethod
    def of_error(cls, source: Path, target: Path | None, error: OnnxTernaryError) -> Outcome:
        """The outcome of a conversion that raised ``error``."""
        return cls(source, target, error.conversion, error.exit_code, str(error))

    @property
    def status(self) -> Status:
        """What became of the model; an already converted one has nothing left to rewrite."""
        if self.exit_code != ExitCode.DONE or self.conversion is None:
            return "failed"
        report = self.conversion.report
        if report.changed:
            return "converted"
        return "already converted" if report.already_converted else "unchanged"

    def __repr__(self) -> str:
        found = self.error or (f"{self.conversion!r}" if self.conversion else "")
        source, first_line = visible(str(self.source)), visible(found.splitlines()[0])
        return f"<Outcome: '{source}' {self.status}, {first_line}>"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as JSON types, with the keys of `Conversion.to_dict` where there is one."""
        return {
            "source": str(self.source),
            "target": None if self.target is None else str(self.target),
            "status": self.status,
            "exit_code": int(self.exit_code),
            "error": self.error,
            **({} if self.conversion is None else self.conversion.to_dict()),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json_text(self.to_dict()) + "\n"


# Wrong answers before models nobody could look at, and these before wishes.
_SEVERITY = (
    ExitCode.VERIFICATION_FAILED,
    ExitCode.ERROR,
    ExitCode.REQUIREMENT_NOT_MET,
    ExitCode.DONE,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of every model of a call.

    Attributes:
        outcomes: one per model, in the order of the sources, models of a folder by name.
    """

    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> ExitCode:
        """The most serious exit code of a model: 3 before 1, before 4, before 0."""
        found = {outcome.exit_code for outcome in self.outcomes}
        return next((code for code in _SEVERITY if code in found), ExitCode.DONE)

    @property
    def counts(self) -> dict[str, int]:
        """Number of models by `Outcome.status`."""
        return dict(Counter(outcome.status for outcome in self.outcomes))

    @property
    def bytes_before(self) -> int:
        """Bytes of the models that did not fail, before."""
        return sum(done.bytes_before for done in self._done)

    @property
    def bytes_after(self) -> int:
        """Bytes of the models that did not fail, after."""
        return sum(done.bytes_after for done in self._done)

    @property
    def _done(self) -> list[Conversion]:
        done = (each.conversion for each in self.outcomes if each.exit_code == ExitCode.DONE)
        return [conversion for conversion in done if conversion is not None]

    def total(self) -> str:
        """All of it in a line."""
        counts = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        models = "model" if len(self.outcomes) == 1 else "models"
        total = f"{len(self.outcomes)} {models}: {counts}"
        if self.bytes_before:
            total += (
                f"; {format_size(self.bytes_before)} -> {format_size(self.bytes_after)} "
                f"({self.bytes_after / self.bytes_before:.1%})"
            )
        return total

    def __repr__(self) -> str:
        return f"<Batch: {self.total()}>"

    def to_dict(self) -> dict[str, Any]:
        """The batch as JSON types; ``models`` holds `Outcome.to_dict` of each."""
        return {
            "exit_code": int(self.exit_code),
            "counts": self.counts,
            "file_bytes_before": self.bytes_before,
            "file_bytes_after": self.bytes_after,
            "models": [outcome.to_dict() for outcome in self.outcomes],
        }
