"""Save what verification accepted, and nothing else: how `convert` and `export_file` end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from onnx_ternary.model_files.load import ModelFile
from onnx_ternary.model_files.save import copy_model, save
from onnx_ternary.options import ExternalData
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.report import VerificationReport
from onnx_ternary.verification.verify import MAX_VERIFIED_BYTES

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Verifying:
    """How the user wants a result verified.

    Attributes:
        asked: whether to; None for: where the model is not larger than `MAX_VERIFIED_BYTES`.
        inputs: arrays by name or an .npz file; None for generated ones.
        custom_op_libraries: other libraries whose operators the model uses.
        progress: called for each product.
    """

    asked: bool | None = None
    inputs: Inputs | None = None
    custom_op_libraries: Sequence[str | PathLike[str]] = ()
    progress: Progress | None = None

    def why_not(self, nothing: str, num_bytes: int, too_large: str) -> str:
        """Why a result is not verified; empty if it is.

        Args:
            nothing: why there is nothing to verify; empty if there is.
            num_bytes: size of the model that decides.
            too_large: what is said of a model that is too large, with its limit in GB as ``{}``.
        """
        if nothing:
            return nothing
        if self.asked is None and num_bytes > MAX_VERIFIED_BYTES:
            return too_large.format(f"{MAX_VERIFIED_BYTES / 1e9:g} GB")
        return "" if self.asked is None or self.asked else "not asked for"


class Acceptance:
    """One result on its way to its name, and what is known of it so far.

    Attributes:
        files: the files written, the model first; none before the result is accepted.
        bytes_after: size of the result, external data included; of the source before there is one.
        verification: the comparison with the source; None before it, and where there is none.
    """

    def __init__(self, source: ModelFile) -> None:
        self._source = source
        self.files: tuple[Path, ...] = ()
        self.bytes_after = source.num_bytes
        self.verification: VerificationReport | None = None

    def save(
        self,
        model: ir.Model | None,
        target: Path,
        *,
        external_data: ExternalData,
        check: Callable[[], None],
        compare: Callable[[Path], VerificationReport] | None,
        judge: Callable[[VerificationReport], None],
    ) -> None:
        """Write the result if it is accepted, all of it; else nothing.

        Args:
            model: the result; None if it is the source itself, which is copied.
            target: where it goes, the source's own path included.
            external_data: as in `OptimizeOptions`.
            check: raises what is wrong with the size.
            compare: compares the complete staged model with the source; None to leave it out.
            judge: raises what is wrong with the comparison.

        Raises:
            ModelError: as `model_files.save.save`; besides, what the three functions raise.
        """

        def accept(staged: Path, num_bytes: int) -> None:
            self.bytes_after = num_bytes
            check()
            if compare is not None:
                self.verification = compare(staged)
                judge(self.verification)

        if model is None:
            self.files = copy_model(self._source, target, accept=accept)
        else:
            self.files = save(
                model, target, external_data=external_data, accept=accept, source=self._source
            )
