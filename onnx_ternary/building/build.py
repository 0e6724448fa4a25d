"""From a checkpoint to a folder that onnxruntime-genai runs: all of it, or nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from onnx_ternary.building.checkpoint import Checkpoint
from onnx_ternary.building.config import DecoderConfig
from onnx_ternary.building.embedding import embedding_config
from onnx_ternary.building.genai_folder import MODEL, genai_config, write_folder
from onnx_ternary.building.gguf_file import GgufFile, is_gguf
from onnx_ternary.building.graph import decoder_model, function_bodies
from onnx_ternary.building.options import BuildOptions
from onnx_ternary.building.source import Source
from onnx_ternary.building.tensor_file import TensorFile
from onnx_ternary.building.verification import BuildVerification, verify_build
from onnx_ternary.building.weights import (
    HEAD,
    Blocks,
    Float,
    Progress,
    StoredWeights,
    Ternary,
    store_weights,
)
from onnx_ternary.conversion.staged_text import staged_text
from onnx_ternary.errors import ModelError, VerificationError
from onnx_ternary.model_files.targets import check_name
from onnx_ternary.op.body_nodes import NoBody
from onnx_ternary.reports.json_text import json_text
from onnx_ternary.reports.report import format_size

# From here on a float head is most of what a token costs.
_LARGE_HEAD_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What `build` did.

    Attributes:
        files: the files written, the model first; empty for a dry run.
        num_bytes: bytes of the model and its data; for a dry run, of what would be written.
        activation: ``float`` or ``int8``: what the ternary products of the layers do.
        products: every product, as JSON types: name, K, N, kind, bytes and, where it stays float,
            the reason.
        notes: whatever else a user should know.
        seconds: how long building took, without verification.
        verification: the comparison with the checkpoint, or None.
    """

    files: tuple[Path, ...]
    num_bytes: int
    activation: str
    products: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    seconds: float
    verification: BuildVerification | None

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {
            "files": [str(path) for path in self.files],
            "file_bytes": self.num_bytes,
            "activation": self.activation,
            "products": list(self.products),
            "notes": list(self.notes),
            "seconds": self.seconds,
            "verification": self.verification.to_dict() if self.verification else None,
        }


def build(
    checkpoint: str | PathLike[str],
    out: str | PathLike[str] | None,
    options: BuildOptions | None = None,
    *,
    verify_result: bool = True,
    report_path: str | PathLike[str] | None = None,
    progress: Progress | None = None,
    tokenizer: str | PathLike[str] | None = None,
) -> BuildResult:
    """Build a folder for onnxruntime-genai from a ternary checkpoint, or write nothing.

    The folder gets model.onnx and its data, genai_config.json, the tokenizer's files and a copy of
    the operator library. One tensor at a time is in memory.

    Args:
        checkpoint: a folder with config.json and safetensors files, or a GGUF file: BitNet, Llama
            or Qwen3 with packed or plain ternary weights (docs/llm.md).
        out: a folder that does not exist or is empty; None for a dry run.
        options: None for the defaults.
        verify_result: compare every product, and the first layers, with the checkpoint before the
            folder gets its name.
        report_path: where `BuildResult.to_dict` goes as JSON.
        progress: called with a weight's name, its index and their number, once while building and
            once more while verifying.
        tokenizer: the folder that has the tokenizer's files; a GGUF file needs one, None takes the
            checkpoint's.

    Raises:
        LibraryError: if the operator library is missing or cannot be loaded.
        ModelError: if the checkpoint cannot be read, is of a kind that is not implemented, or holds
            no ternary matrix, or the folder cannot be written.
        VerificationError: if the built model is not within the stated bounds.
    """
    options = options or BuildOptions()
    report = None if report_path is None else Path(report_path)
    with staged_text(report, "report") as write_report:
        source = _source(Path(checkpoint), tokenizer)
        config = _config(source, options)
        if out is None:
            result = _dry_run(source, config, options, progress)
        else:
            with staged_folder(Path(out)) as folder:
                result = _build(source, config, options, folder, verify_result, progress)
            result = _moved(result, Path(out))
        write_report(lambda: json_text(result.to_dict()) + "\n")
    return result


def _source(checkpoint: Path, tokenizer: str | PathLike[str] | None) -> Source:
    check_name(checkpoint)
    if is_gguf(checkpoint):
        return GgufFile(checkpoint, tokenizer)
    return Checkpoint(checkpoint, tokenizer)


def _config(source: Source, options: BuildOptions) -> DecoderConfig:
    if options.task == "embedding":
        return embedding_config(source, options.pooling)
    if options.pooling != "auto":
        raise ModelError("A pooling is of text embeddings; give --task embedding with --pooling.")
    config = DecoderConfig.read(source.json("config.json"))
    genai_config(source, config, "")  # what it lacks is said before the work
    return config


def _build(
    source: Source,
    config: DecoderConfig,
    options: BuildOptions,
    folder: Path,
    verify_result: bool,
    progress: Progress | None,
) -> BuildResult:
    started = time.monotonic()
    with TensorFile(folder / f"{MODEL}.data") as file:
        weights = store_weights(source, config, options, file, progress)
    model = decoder_model(config, weights, file.tensors, with_body=options.function_body)
    try:
        (folder / MODEL).write_bytes(model.SerializeToString())
    except OSError as error:
        raise ModelError(f"'{folder / MODEL}' cannot be written: {error.strerror}.") from error
    notes = write_folder(source, config, folder)
    seconds = time.monotonic() - started
    verification = None
    if verify_result:
        verification = verify_build(source, config, weights, file.tensors, folder, progress)
        if not verification.passed:
            raise VerificationError(f"{verification.summary()} Nothing was written.")
    files = sorted((each for each in folder.iterdir()), key=lambda each: (each.name != MODEL, each))
    num_bytes = (folder / MODEL).stat().st_size + file.num_bytes
    return _result(weights, options, files, num_bytes, notes, seconds, verification)


def _dry_run(
    source: Source, config: DecoderConfig, options: BuildOptions, progress: Progress | None
) -> BuildResult:
    started = time.monotonic()
    with TensorFile(None) as file:
        weights = store_weights(source, config, options, file, progress)
    model = decoder_model(config, weights, file.tensors, with_body=options.function_body)
    num_bytes = file.num_bytes + model.ByteSize()
    return _result(weights, options, [], num_bytes, [], time.monotonic() - started, None)


def _result(
    weights: StoredWeights,
    options: BuildOptions,
    files: list[Path],
    num_bytes: int,
    notes: list[str],
    seconds: float,
    verification: BuildVerification | None,
) -> BuildResult:
    products = tuple(_row(name, each) for name, each in weights.products.items())
    layers = [name for name in weights.products if name != HEAD]
    int8 = any(
        isinstance(each, Ternary) and each.attributes.activation == "int8"
        for each in map(weights.products.__getitem__, layers)
    )
    return BuildResult(
        tuple(files),
        num_bytes,
        "int8" if int8 else "float",
        products,
        (*notes, *_notes(weights, options)),
        seconds,
        verification,
    )


def _row(name: str, product: Ternary | Float | Blocks) -> dict[str, Any]:
    if isinstance(product, Ternary):
        attributes = product.attributes
        return {
            "name": name,
            "kind": "ternary" if attributes.alphabet == "ternary" else "binary",
            "K": attributes.K,
            "N": attributes.N,
            "scale": product.scale_kind,
            "activation": attributes.activation,
            "bytes": product.num_bytes,
        }
    if isinstance(product, Blocks):
        sizes = {key: product.attributes[key] for key in ("K", "N", "bits")}
        return {"name": name, "kind": "MatMulNBits", **sizes, "bytes": product.num_bytes}
    return {
        "name": name,
        "kind": "float",
        "K": product.K,
        "N": product.N,
        "bytes": product.num_bytes,
        "reason": product.reason,
    }


def _notes(weights: StoredWeights, options: BuildOptions) -> Iterator[str]:
    for name, product in weights.products.items():
        if isinstance(product, Float) and name != HEAD:
            yield f"'{name}' stays float: it {product.reason}"
    if options.function_body and isinstance(body := function_bodies(weights), NoBody):
        yield f"the model carries no body of standard operators: {body.reason}"
    head = weights.products.get(HEAD)
    if weights.shared_table is not None:
        yield "the embedding reads rows of the head's index; there is no other table"
    if isinstance(head, Float) and head.num_bytes > _LARGE_HEAD_BYTES:
        # A byte and its share of a block's scale and zero point instead of four.
        saved = head.num_bytes - head.num_bytes * (1 + 5 / 32) / 4
        yield (
            f"the head stays float32, {format_size(head.num_bytes)} that every token reads; "
            f"--head int8 saves {format_size(int(saved))} of memory and changes logits by its "
            "rounding (docs/llm.md)"
        )


def _moved(result: BuildResult, folder: Path) -> BuildResult:
    files = tuple(folder / each.name for each in result.files)
    return BuildResult(
        files,
        result.num_bytes,
        result.activation,
        result.products,
        result.notes,
        result.seconds,
        result.verification,
    )


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name at the end, and is removed on any failure."""
    check_name(out)
    target = out.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(
            f"'{out}' exists and is not an empty folder; give another name, or remove it first."
        )
    if not target.parent.is_dir():
        raise ModelError(f"'{out}' cannot be written: there is no folder '{target.parent}'.")
    try:
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ModelError(f"'{out}' cannot be written: {error.strerror}.") from error
    try:
        yield staged
        try:
            staged.chmod(0o777 & ~_umask())
            if target.exists():
                target.rmdir()
            staged.rename(target)
        except OSError as error:
            raise ModelError(f"'{out}' cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _umask() -> int:
    """What new folders get; mkdtemp gives them to their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe"
        probe.mkdir()
        return 0o777 & ~probe.stat().st_mode
