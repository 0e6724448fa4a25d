"""What became of one model: converted, left as it is, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onnx_ternary.errors import ExitCode, OnnxTernaryError

if TYPE_CHECKING:
    from onnx_ternary.conversion.convert import Conversion

Status = Literal["converted", "unchanged", "already converted", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model of a call.

    Attributes:
        source: The model.
        target: Where the result goes; None for a dry run.
        conversion: What was done and found; None where the model could not be converted at all.
        exit_code: What the command returns for this model alone.
        error: Why it is not 0; empty if it is.
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
        return json.dumps(self.to_dict(), indent=2) + "\n"
