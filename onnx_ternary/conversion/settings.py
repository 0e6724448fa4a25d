"""What `convert` and `convert_many` are asked for, in one value that is handed on."""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx_ternary.conversion.accepted import Verifying
from onnx_ternary.conversion.report_files import ReportFiles
from onnx_ternary.options import OptimizeOptions, Requirements


@dataclass(frozen=True, slots=True)
class ConversionSettings:
    """How a model is converted, and when the result counts.

    Attributes:
        options: how it is rewritten.
        requirements: what must hold.
        verifying: how the result is verified; its `progress` is called while converting, too.
        files: where reports go.
    """

    options: OptimizeOptions = field(default_factory=OptimizeOptions)
    requirements: Requirements = field(default_factory=Requirements)
    verifying: Verifying = field(default_factory=Verifying)
    files: ReportFiles = field(default_factory=ReportFiles)

    @classmethod
    def of(
        cls,
        options: OptimizeOptions | None,
        requirements: Requirements | None,
        verifying: Verifying,
        files: ReportFiles,
    ) -> ConversionSettings:
        """What a public function is asked for, defaults filled in."""
        return cls(options or OptimizeOptions(), requirements or Requirements(), verifying, files)


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How many models are converted in one call.

    Attributes:
        each: how each model is converted; reports and `progress` are of the whole batch.
        in_place: replace each model by the converted one.
        dry_run: write no model.
        jobs: models at a time, at most; None for the number of processors.
    """

    each: ConversionSettings = field(default_factory=ConversionSettings)
    in_place: bool = False
    dry_run: bool = False
    jobs: int | None = None
