"""Reading models: tensors in external files stay there until they are used."""

from __future__ import annotations

import functools
import operator
import stat
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnx_ternary._walk import nodes_in
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.cycles import find_cycle
from onnx_ternary.model_files.external_data import external_protos, locate_external_data
from onnx_ternary.model_files.messages import deserialized, parts, why
from onnx_ternary.model_files.tensors import constant_tensors, external_tensors

SOURCE_MODE = "onnx_ternary.source_mode"
"""Metadata of a loaded model, never written: what everybody who may read its files may do."""

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
        if cycle := find_cycle(model):
            raise ModelError(f"The model is not valid ONNX: {cycle}.")
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
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(f"'{path}' is a directory, expected an ONNX model file.")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise ModelError(f"'{path}' is not an ordinary file, expected an ONNX model file.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"There is no file '{path}'.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"'{path}' cannot be read: {reason}.") from error
    proto = _parse(content, str(path))
    del content  # as large as the message
    model = _from_proto(proto, str(path))
    modes = locate_external_data(model, str(path), path)
    model.meta[SOURCE_MODE] = functools.reduce(operator.and_, modes, stat.S_IMODE(status.st_mode))
    data_files = frozenset(Path(tensor.path) for tensor in external_tensors(model))
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
        ModelError: if it is not a model, is damaged, holds what conversion would lose, or keeps
            tensors in files that are not below the current folder.
    """
    model = _from_proto(proto, name)
    locate_external_data(model, name, None)
    return model


def _from_proto(proto: onnx.ModelProto, name: str) -> ir.Model:
    if not proto.ir_version or not proto.HasField("graph"):
        raise ModelError(f"'{name}' is not an ONNX model: it has no graph.")
    if not proto.opset_import:
        raise ModelError(f"'{name}' is not a valid ONNX model: it imports no opset.")
    # onnx_ir reads neither of them, and would write a model without.
    if sparse := _sparse(proto):
        raise ModelError(f"'{name}' has {sparse}, which cannot be kept; store them as dense ones.")
    if proto.training_info:
        raise ModelError(f"'{name}' has training information, which cannot be kept; remove it.")
    try:
        model = deserialized(proto)
        # Tensors and attributes are read lazily; what no reader could read fails here.
        for tensor in constant_tensors(model):
            if tensor.dtype != ir.DataType.STRING:
                _ = tensor.shape.numpy(), tensor.nbytes
    except Exception as error:  # onnx_ir documents no narrower class
        raise ModelError(f"'{name}' is not a valid ONNX model: {why(error)}.") from error
    if (name_of := _undecodable(model)) is not None:
        raise ModelError(f"'{name}' is not a valid ONNX model: the name {name_of!r} is not UTF-8.")
    if cycle := find_cycle(model):
        raise ModelError(f"'{name}' is not a valid ONNX model: {cycle}.")
    # The other name of the default domain.
    for imports in (
        model.opset_imports,
        *(each.opset_imports for each in model.functions.values()),
    ):
        if "ai.onnx" in imports:
            imports.setdefault("", imports.pop("ai.onnx"))
    return model


def _undecodable(model: ir.Model) -> object | None:
    """A name that is not text: protobuf hands on bytes where a name is not UTF-8."""
    names: list[object] = [*model.opset_imports]
    for graph in (model.graph, *(each.graph for each in model.functions.values())):
        names += [value.name for value in (*graph.inputs, *graph.outputs)]
        names += graph.initializers
        for node in nodes_in(graph):
            names += [node.name, node.domain, node.op_type, node.overload, *node.attributes]
            names += [None if value is None else value.name for value in node.inputs]
            names += [value.name for value in node.outputs]
    return next((each for each in names if each is not None and not isinstance(each, str)), None)


def _sparse(proto: onnx.ModelProto) -> str:
    """What a model keeps as sparse tensors, in words; empty if nothing."""
    for part in parts(proto):
        if isinstance(part, onnx.GraphProto):
            if part.sparse_initializer:
                return "sparse initializers"
        elif any(each.HasField("sparse_tensor") or each.sparse_tensors for each in part.attribute):
            label = part.name or next(iter(part.output), "")
            return f"sparse tensors ({part.op_type} '{label}')"
    return ""


def why_invalid(model: AnyModel) -> str:
    """What onnx.checker has against a model; empty if nothing, or if it cannot tell."""
    if isinstance(model, ir.Model):
        return ""
    try:
        if isinstance(model, onnx.ModelProto):
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
        elif isinstance(model, bytes):
            proto = onnx.ModelProto.FromString(model)
        else:
            proto = onnx.load(model, load_external_data=False)
        # Of data in other files, loading has judged all there is; the checker refuses links.
        for tensor in external_protos(proto):
            tensor.CopyFrom(
                onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=(0,))
            )
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return ""


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
