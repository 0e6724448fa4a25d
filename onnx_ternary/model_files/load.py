"""Reading models: tensors in external files stay there until they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.tensors import constant_tensors, external_tensors

AnyModel: TypeAlias = str | PathLike[str] | bytes | onnx.ModelProto | ir.Model
"""What users may give as a model: its path, the model serialized, or in memory."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model in a file, parsed once for all who ask about it.

    Attributes:
        path: the file.
        proto: the message in it; tensors in external files are not read.
        model: the same for editing; its tensors are those of ``proto``, and external ones are
            mapped when they are first used.
        data_files: resolved paths of the files it keeps tensors in, its own not among them.
        num_bytes: size of the file and of its data files.
    """

    path: Path
    proto: onnx.ModelProto
    model: ir.Model
    data_files: frozenset[Path]
    num_bytes: int


def any_model(model: AnyModel) -> ir.Model:
    """A model for editing, whatever it is given as; one in memory is left as it is.

    Raises:
        ModelError: as `load`, `from_bytes` and `from_proto`.
    """
    if isinstance(model, ir.Model):
        return model.clone()
    if isinstance(model, onnx.ModelProto):
        return from_proto(model)
    if isinstance(model, bytes):
        return from_bytes(model)
    return load(model).model


def load(path: str | PathLike[str]) -> ModelFile:
    """Read a model; tensors in external files are mapped when they are first used.

    Raises:
        ModelError: if the file is missing, is not an ONNX model, is cut short, or if external
            data it refers to is missing or too short.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"'{path}' is a directory, expected an ONNX model file.")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no file '{path}'.") from error
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    proto = _parse(content, str(path))
    del content  # as large as the message
    model = from_proto(proto, str(path))
    for tensor in external_tensors(model):
        tensor.base_dir = str(path.parent)
    check_external_data(model, str(path))
    data_files = frozenset(Path(tensor.path).resolve() for tensor in external_tensors(model))
    num_bytes = sum(each.stat().st_size for each in {path.resolve(), *data_files})
    return ModelFile(path, proto, model, data_files, num_bytes)


def from_bytes(content: bytes, name: str = "model") -> ir.Model:
    """Deserialize a model; ``name`` is what messages call it.

    Raises:
        ModelError: if it is not an ONNX model, is cut short, or as `from_proto`.
    """
    return from_proto(_parse(content, name), name)


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ModelError(
            f"'{name}' is not an ONNX model, or is cut short or damaged ({error})."
        ) from error
    return proto


def from_proto(proto: onnx.ModelProto, name: str = "model") -> ir.Model:
    """Deserialize a ModelProto; ``name`` is what messages call it.

    Raises:
        ModelError: if it is not a model, is damaged, or holds what conversion would lose.
    """
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"'{name}' is not an ONNX model: it has no graph.")
    if not proto.opset_import:
        raise ModelError(f"'{name}' is not a valid ONNX model: it imports no opset.")
    # onnx_ir reads neither of them, and would write a model without.
    if any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        raise ModelError(
            f"'{name}' has sparse initializers, which cannot be kept; store them as dense ones."
        )
    if proto.training_info:
        raise ModelError(f"'{name}' has training information, which cannot be kept; remove it.")
    try:
        model = ir.from_proto(proto)
        # Tensors and attributes are looked at lazily; those no reader could read fail here.
        for tensor in constant_tensors(model):
            if tensor.dtype != ir.DataType.STRING:
                _ = tensor.shape.numpy(), tensor.nbytes
    except Exception as error:  # onnx_ir documents no narrower class
        cause = error.__cause__ or error
        raise ModelError(f"'{name}' is not a valid ONNX model: {cause}") from error
    # The other name of the default domain.
    for imports in (
        model.opset_imports,
        *(each.opset_imports for each in model.functions.values()),
    ):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
    return model


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for each in attribute.graphs:
                yield from _graphs(each)


def why_invalid(model: AnyModel) -> str:
    """What onnx.checker has against a model; empty if nothing, or if it cannot tell."""
    if isinstance(model, ir.Model):
        return ""
    try:
        in_memory = isinstance(model, (bytes, onnx.ModelProto))
        onnx.checker.check_model(model if in_memory else os.fspath(model))
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return ""


def check_external_data(model: ir.Model, name: str) -> None:
    """Look for every external file, without reading it.

    Raises:
        ModelError: naming the tensor, if a file is missing or ends before the tensor does.
    """
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model):
        path = tensor.path
        if path not in sizes:
            try:
                sizes[path] = Path(path).stat().st_size
            except OSError as error:
                raise ModelError(
                    f"'{name}' keeps tensor '{tensor.name}' in '{path}', which cannot be read: "
                    f"{error.strerror}."
                ) from error
        end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
        if end > sizes[path]:
            raise ModelError(
                f"'{name}' keeps tensor '{tensor.name}' in '{path}' up to byte {end}, but "
                f"the file has {sizes[path]} bytes; it is cut short."
            )


def file_bytes(path: str | PathLike[str]) -> int:
    """Bytes of a model file and of the files it keeps tensors in.

    Raises:
        ModelError: as `load`.
    """
    return load(path).num_bytes


def data_files(path: str | PathLike[str]) -> frozenset[Path]:
    """Resolved paths of the files a model keeps tensors in, its own not among them.

    Raises:
        ModelError: as `load`.
    """
    return load(path).data_files
