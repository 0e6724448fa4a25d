"""The way back: a converted model, in memory or in a file, as standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal, get_args

import onnx
import onnx_ir as ir

from onnx_ternary.conversion.accepted import Acceptance, Verifying
from onnx_ternary.errors import ModelError, NotComparedError, VerificationError
from onnx_ternary.exporting.exporter import ExportedProduct, Exporter, Form
from onnx_ternary.model_files.load import AnyModel, ModelFile, any_model, load
from onnx_ternary.model_files.save import save as save_model
from onnx_ternary.model_files.save import to_proto
from onnx_ternary.model_files.tensors import constant_bytes
from onnx_ternary.options import ExternalData, VerificationOptions
from onnx_ternary.reports.report import format_size
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.outputs import DEFAULT_TOLERANCES
from onnx_ternary.verification.report import VerificationReport


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A model without operators of this package.

    Attributes:
        model: the exported model; its weights are decoded when they are read or written.
        products: what was exported, in graph order.
    """

    model: ir.Model
    products: tuple[ExportedProduct, ...]

    def __repr__(self) -> str:
        return f"<ExportResult: {len(self.products)} products exported>"

    def save(
        self, path: str | PathLike[str], *, external_data: ExternalData = "auto"
    ) -> tuple[Path, ...]:
        """Write the model, all of it or nothing; the source's own path is fine.

        Returns:
            The files written, the model first.

        Raises:
            ModelError: as `onnx_ternary.model_files.save.save`.
        """
        return save_model(self.model, path, external_data=external_data)

    def to_proto(self) -> onnx.ModelProto:
        """The model as a message with all tensors in it.

        Raises:
            ModelError: if it is too large for one message.
        """
        return to_proto(self.model)


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What `export_file` did.

    Attributes:
        products: as in `ExportResult`.
        files: the files written, the model first.
        bytes_before: size of the converted model, external data included.
        bytes_after: size of the exported one.
        verification: the comparison of both models, the exported one as the original; or None.
        verification_skipped: why there is none, or an empty string.
    """

    products: tuple[ExportedProduct, ...]
    files: tuple[Path, ...]
    bytes_before: int
    bytes_after: int
    verification: VerificationReport | None
    verification_skipped: str

    def __repr__(self) -> str:
        sizes = f"{format_size(self.bytes_before)} -> {format_size(self.bytes_after)}"
        return f"<ExportedFile: {len(self.products)} products exported, {sizes}>"


@dataclass(frozen=True, slots=True)
class ExportSettings:
    """What `export_file` is asked for; `export` knows the first three.

    Attributes:
        to: ``float``, ``matmulnbits`` or ``qdq``.
        bits: of MatMulNBits' codes.
        accuracy_level: of MatMulNBits.
        external_data: as in `OptimizeOptions`.
        verifying: how the result is verified; its `progress` is called while exporting, too.

    Raises:
        ValueError: on construction, for an unknown choice.
    """

    to: Form = "float"
    bits: Literal[2, 4] = 2
    accuracy_level: int = 0
    external_data: ExternalData = "auto"
    verifying: Verifying = field(default_factory=Verifying)

    def __post_init__(self) -> None:
        if self.to not in get_args(Form):
            raise ValueError(f"to = {self.to!r}, expected one of: {', '.join(get_args(Form))}")
        if self.bits not in (2, 4):
            raise ValueError(f"bits = {self.bits!r}, expected 2 or 4")
        if self.accuracy_level not in range(5):
            raise ValueError(f"accuracy_level = {self.accuracy_level!r}, expected from 0 to 4")


def export(
    model: AnyModel,
    *,
    to: Form = "float",
    bits: Literal[2, 4] = 2,
    accuracy_level: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportResult:
    """Replace every product and gather of this package by standard operators, same weights.

    The op's function, its domain and this package's metadata go as well.

    Args:
        model: a path, a serialized model, or a model in memory, which is left as it is.
        to: ``float`` (MatMul), ``matmulnbits`` (com.microsoft.MatMulNBits) or ``qdq``
            (DequantizeLinear and MatMul).
        bits: of MatMulNBits' codes.
        accuracy_level: of MatMulNBits: the type ONNX Runtime may round its inputs to. 0 leaves
            them as they are, 4 is int8.
        progress: called before each product with its name, its index and their number.

    Raises:
        ModelError: if the model cannot be read, or a product has no place in the form asked for.
        IndexFormatError: if an index is damaged.
        ValueError: for an unknown choice.
    """
    settings = ExportSettings(to, bits, accuracy_level, verifying=Verifying(progress=progress))
    return _export_in_place(any_model(model), settings)


def _export_in_place(model: ir.Model, settings: ExportSettings) -> ExportResult:
    exporter = Exporter(model, settings.to, settings.bits, settings.accuracy_level)
    return ExportResult(model, tuple(exporter.run(settings.verifying.progress)))


def export_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    to: Form = "float",
    bits: Literal[2, 4] = 2,
    accuracy_level: int = 0,
    external_data: ExternalData = "auto",
    verify_result: bool | None = None,
    inputs: Inputs | None = None,
    verification: VerificationOptions | None = None,
    custom_op_libraries: Sequence[str | PathLike[str]] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportedFile:
    """Export the model in ``source`` and write it to ``target``, or write nothing.

    A model without operators of this package is copied as it is.

    Args:
        source: a converted ONNX file.
        target: where the result goes, ``source`` itself included.
        to: as in `export`.
        bits: as in `export`.
        accuracy_level: as in `export`.
        external_data: as in `OptimizeOptions`.
        verify_result: compare both models in onnxruntime; None for: where the exported one's
            tensors take at most `MAX_VERIFIED_BYTES`.
        inputs: inputs to verify with, by name or in an .npz file; None for generated ones.
        verification: how they are compared; None for the defaults.
        custom_op_libraries: other libraries whose operators the model uses, as `verify` takes
            them.
        progress: called for each product, once while exporting and once more while verifying.

    Raises:
        ModelError: as `export`, or if a file cannot be written, or onnxruntime cannot run one of
            the models.
        LibraryError: if a library is missing or cannot be loaded.
        IndexFormatError: if an index is damaged.
        VerificationError: if the answers of the two models differ by more than the stated bounds.
        ValueError: for an unknown choice.
    """
    verifying = Verifying.of(verify_result, inputs, verification, custom_op_libraries, progress)
    settings = ExportSettings(to, bits, accuracy_level, external_data, verifying)
    return export_to(Path(source), Path(target), settings)


def export_to(source: Path, target: Path, settings: ExportSettings) -> ExportedFile:
    """Export a file as `export_file` does.

    Args:
        source: a converted ONNX file.
        target: where the result goes.
        settings: how.

    Raises:
        OnnxTernaryError: as `export_file`.
    """
    file, verifying = load(source), settings.verifying
    result = _export_in_place(file.model, settings)
    skipped = verifying.why_not("" if result.products else "nothing was exported")
    found = Acceptance(file)
    found.save(
        result.model if result.products else None,
        target,
        external_data=settings.external_data,
        check=lambda: None,  # an export may take any size
        compare=None
        if skipped
        else lambda staged: _compared(staged, file, verifying, constant_bytes(result.model)),
        judge=_judge,
        required=bool(verifying.asked),
    )
    return ExportedFile(
        result.products,
        found.files,
        file.num_bytes,
        found.bytes_after,
        found.verification,
        skipped or found.not_verified,
    )


def _compared(
    exported: Path, converted: ModelFile, verifying: Verifying, num_bytes: int
) -> VerificationReport:
    """The comparison: what the exported model computes is what the op is held against."""
    try:
        # The export holds the converted model's own weights.
        return verifying.compare(exported, converted, num_bytes, weight_tolerance=0.0)
    except NotComparedError:
        raise
    except ModelError as error:
        raise ModelError(
            f"The exported model (here the original) cannot be compared with '{converted.path}': "
            f"{error} Without verification (--no-verify) it is written all the same."
        ) from error


def _judge(report: VerificationReport) -> None:
    if not report.passed:
        raise VerificationError(f"The exported model gives other answers: {report.summary()}")
    for product in report.products:
        # Held against the rule's reference, not against the exported product; both round alike.
        limit = DEFAULT_TOLERANCES.get(product.dtype, 0.0)
        if product.compared_with.is_rule and product.max_difference_from_original > limit:
            raise VerificationError(
                f"The exported product '{product.node}' differs from the converted one by "
                f"{product.max_difference_from_original:.3g} relative, at most {limit:g} is right."
            )
