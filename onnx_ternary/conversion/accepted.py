"""Save what verification accepted, and nothing else: how `convert` and `export_file` end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from onnx_ternary.errors import NotComparedError, RequirementError
from onnx_ternary.model_files.load import ModelFile
from onnx_ternary.model_files.save import copy_model, save
from onnx_ternary.options import ExternalData, VerificationOptions
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.report import VerificationReport
from onnx_ternary.verification.settings import VerifySettings
from onnx_ternary.verification.verify import MAX_VERIFIED_BYTES, compare_models

_TOO_LARGE = (
    "the whole models were not compared, as they are larger than "
    f"{MAX_VERIFIED_BYTES / 1e9:g} GB: --verify does it, in the memory of both"
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Verifying:
    """How the user wants a result verified.

    Attributes:
        asked: whether to; None for: as far as it is possible.
        inputs: arrays by name or an .npz file; None for generated ones.
        options: how models are compared.
        custom_op_libraries: other libraries whose operators the model uses.
        progress: called for each product.
    """

    asked: bool | None = None
    inputs: Inputs | None = None
    options: VerificationOptions = field(default_factory=VerificationOptions)
    custom_op_libraries: Sequence[str | PathLike[str]] = ()
    progress: Progress | None = None

    @classmethod
    def of(
        cls,
        asked: bool | None,
        inputs: Inputs | None,
        options: VerificationOptions | None,
        custom_op_libraries: Sequence[str | PathLike[str]],
        progress: Progress | None,
    ) -> Verifying:
        """What a public function is asked for, defaults filled in."""
        options = options or VerificationOptions()
        return cls(asked, inputs, options, tuple(custom_op_libraries), progress)

    def why_not(self, nothing: str) -> str:
        """Why a result is not verified; empty if it is.

        Args:
            nothing: why there is nothing to verify; empty if there is.

        Raises:
            RequirementError: if a verification is required but not asked for.
        """
        if nothing:
            return nothing
        if self.asked is False and self.options.require_whole:
            raise RequirementError(
                "A verification of the whole is required, but none was asked for (--no-verify)."
            )
        return "" if self.asked is None or self.asked else "not asked for"

    def compare(
        self,
        original: ModelFile | Path,
        converted: ModelFile | Path,
        num_bytes: int,
        weight_tolerance: float,
    ) -> VerificationReport:
        """Compare a result with its source: as a whole, product by product where it is large.

        Args:
            original: what is right.
            converted: what is held against it.
            num_bytes: size of the model that decides.
            weight_tolerance: what conversion was allowed to change a weight by.

        Raises:
            NotComparedError: if onnxruntime runs no part of the original.
            OnnxTernaryError: as `verify`.
        """
        alone = num_bytes > MAX_VERIFIED_BYTES and not (self.asked or self.options.require_whole)
        settings = VerifySettings(
            self.options,
            None if alone else self.inputs,
            weight_tolerance=weight_tolerance,
            products_only=alone,
            custom_op_libraries=self.custom_op_libraries,
            progress=self.progress,
        )
        report = compare_models(original, converted, settings)
        if alone:
            report = replace(report, not_whole=_TOO_LARGE, notes=(*report.notes, _TOO_LARGE))
        return report


class Acceptance:
    """One result on its way to its name, and what is known of it so far.

    Attributes:
        files: the files written, the model first; none before the result is accepted.
        bytes_after: size of the result, external data included; of the source before there is one.
        verification: the comparison with the source; None before it, and where there is none.
        not_verified: why there is none, where onnxruntime runs no part of the source.
    """

    def __init__(self, source: ModelFile) -> None:
        self._source = source
        self.files: tuple[Path, ...] = ()
        self.bytes_after = source.num_bytes
        self.verification: VerificationReport | None = None
        self.not_verified = ""

    def save(
        self,
        model: ir.Model | None,
        target: Path,
        *,
        external_data: ExternalData,
        check: Callable[[], None],
        compare: Callable[[Path], VerificationReport] | None,
        judge: Callable[[VerificationReport], None],
        required: bool = False,
    ) -> None:
        """Write the result if it is accepted, all of it; else nothing.

        Args:
            model: the result; None if it is the source itself, which is copied.
            target: where it goes, the source's own path included.
            external_data: as in `OptimizeOptions`.
            check: raises what is wrong with the size.
            compare: compares the complete staged model with the source; None to leave it out.
            judge: raises what is wrong with the comparison.
            required: whether a source of which onnxruntime runs no part is an error.

        Raises:
            ModelError: as `model_files.save.save`; besides, what the three functions raise.
        """

        def accept(staged: Path, num_bytes: int) -> None:
            self.bytes_after = num_bytes
            check()
            if compare is None:
                return
            try:
                self.verification = compare(staged)
            except NotComparedError as error:
                if required:
                    raise
                self.not_verified = str(error)
            else:
                judge(self.verification)

        if model is None:
            self.files = copy_model(self._source, target, accept=accept)
        else:
            self.files = save(
                model, target, external_data=external_data, accept=accept, source=self._source
            )
