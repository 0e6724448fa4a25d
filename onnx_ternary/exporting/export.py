"""The way back: a converted model, in memory or in a file, as standard operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir

from onnx_ternary.errors import ModelError, VerificationError
from onnx_ternary.exporting.exporter import ExportedProduct, Exporter, Form
from onnx_ternary.model_files.load import data_files, file_bytes, from_bytes, from_proto, load
from onnx_ternary.model_files.save import copy_model, to_proto
from onnx_ternary.model_files.save import save as save_model
from onnx_ternary.model_files.tensors import constant_bytes
from onnx_ternary.options import ExternalData
from onnx_ternary.verification.inputs import Inputs
from onnx_ternary.verification.report import VerificationReport
from onnx_ternary.verification.verify import DEFAULT_TOLERANCES, MAX_VERIFIED_BYTES, verify


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A model without `TernaryIndexedMatMul`.

    Attributes:
        model: the exported model; its weights are decoded when they are read or written.
        products: what was exported, in graph order.
    """

    model: ir.Model
    products: tuple[ExportedProduct, ...]

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


def export(
    model: str | PathLike[str] | bytes | onnx.ModelProto | ir.Model,
    *,
    to: Form = "float",
    bits: Literal[2, 4] = 2,
    accuracy_level: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportResult:
    """Replace every `TernaryIndexedMatMul` by standard operators with the same weights.

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
    if to not in get_args(Form):
        raise ValueError(f"to = {to!r}, expected one of: {', '.join(get_args(Form))}")
    if bits not in (2, 4):
        raise ValueError(f"bits = {bits!r}, expected 2 or 4")
    if accuracy_level not in range(5):
        raise ValueError(f"accuracy_level = {accuracy_level!r}, expected from 0 to 4")
    if isinstance(model, ir.Model):
        exported = model.clone()
    elif isinstance(model, onnx.ModelProto):
        exported = from_proto(model)
    elif isinstance(model, bytes):
        exported = from_bytes(model)
    else:
        exported = load(model)
    products = Exporter(exported, to, bits, accuracy_level).run(progress)
    return ExportResult(exported, tuple(products))


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
    custom_op_libraries: Sequence[str | PathLike[str]] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> ExportedFile:
    """Export the model in ``source`` and write it to ``target``, or write nothing.

    A model without `TernaryIndexedMatMul` is copied as it is.

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
    source, target = Path(source), Path(target)
    result = export(source, to=to, bits=bits, accuracy_level=accuracy_level, progress=progress)
    bytes_before = file_bytes(source)
    skipped = _why_not_verified(verify_result, result)
    checked: dict[str, Any] = {"verification": None, "bytes_after": 0}

    def accept(staged: Path) -> None:
        checked["bytes_after"] = file_bytes(staged)
        if not skipped:
            checked["verification"] = _verified(
                staged, source, inputs, custom_op_libraries, progress
            )

    if result.products:
        in_place = target.resolve() == source.resolve()
        files = save_model(
            result.model,
            target,
            external_data=external_data,
            accept=accept,
            protected=() if in_place else data_files(source),
        )
    else:
        files = copy_model(source, target, accept=accept)
    return ExportedFile(
        result.products,
        files,
        bytes_before,
        checked["bytes_after"],
        checked["verification"],
        skipped,
    )


def _why_not_verified(asked: bool | None, result: ExportResult) -> str:
    if not result.products:
        return "nothing was exported"
    if asked is None and constant_bytes(result.model) > MAX_VERIFIED_BYTES:
        return f"the result is larger than {MAX_VERIFIED_BYTES / 1e9:g} GB; use --verify to do it"
    return "" if asked is None or asked else "not asked for"


def _verified(
    exported: Path,
    converted: Path,
    inputs: Inputs | None,
    custom_op_libraries: Sequence[str | PathLike[str]],
    progress: Callable[[str, int, int], None] | None,
) -> VerificationReport:
    """The comparison: what the exported model computes is what the op is held against."""
    try:
        report = verify(
            exported,
            converted,
            inputs=inputs,
            custom_op_libraries=custom_op_libraries,
            progress=progress,
        )
    except ModelError as error:
        raise ModelError(
            f"The exported model (here the original) cannot be compared with '{converted}': "
            f"{error} Without verification (--no-verify) it is written all the same."
        ) from error
    if not report.passed:
        raise VerificationError(f"The exported model gives other answers: {report.summary()}")
    for product in report.products:
        # Held against the rule's reference, not against the exported product; both round alike.
        limit = DEFAULT_TOLERANCES.get(product.dtype, 0.0)
        if "int8" in product.compared_with and product.max_difference_from_original > limit:
            raise VerificationError(
                f"The exported product '{product.node}' differs from the converted one by "
                f"{product.max_difference_from_original:.3g} relative, at most {limit:g} is right."
            )
    return report
