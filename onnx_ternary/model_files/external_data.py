"""Which files a model may keep tensors in: what ONNX Runtime opens is read, and nothing else.

The rule of ONNX Runtime 1.32, for every command: a location is a relative path; with every link
followed it leads to an ordinary file below the model's folder or, where the model is a link, below
the folder of the file it links to (download caches keep models and data as links into one folder).
Hard links are ordinary files. A model in memory has the current folder.

A tensor is read from the file that was judged: links are followed once.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.messages import parts
from onnx_ternary.model_files.tensors import replace_external


class NoDataFile(Exception):  # noqa: N818 # a value with a reason, not an error of the program
    """Why nothing is read from a location; continues "keeps tensor 'w' in 'x', which"."""


def data_file(location: str, model: Path | None) -> Path:
    """The file a location stands for, every link followed.

    Args:
        location: as the model has it.
        model: path of the model; None for one in memory.

    Raises:
        NoDataFile: if it may not be read, is missing or no ordinary file.
    """
    try:
        if not location or "\0" in location:
            raise NoDataFile("is no name of a file")
        if Path(location).is_absolute():
            raise NoDataFile("is an absolute path; only files below the model's folder are read")
        parent = Path() if model is None else model.parent
        real = (parent / location).resolve()
        folders = {parent.resolve(), *(() if model is None else (model.resolve().parent,))}
        if not any(real.is_relative_to(folder) for folder in folders):
            raise NoDataFile("lies outside the model's folder")
        status = (parent / location).stat()
    except (RuntimeError, ValueError) as error:  # links in a circle, odd characters
        raise NoDataFile(f"is no name of a file ({error})") from error
    except OSError as error:
        raise NoDataFile(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise NoDataFile("is not an ordinary file")
    return real


def locate_external_data(model: ir.Model, name: str, path: Path | None) -> list[int]:
    """Judge where a model keeps tensors, without reading them, and let them lie there.

    Args:
        model: its external tensors become ones in the files their locations stand for.
        name: what messages call it.
        path: of the model; None for one in memory.

    Returns:
        The permissions of every file.

    Raises:
        ModelError: naming the tensor, if a file may not be read, is missing or no ordinary file, or
            is not as the tensor says.
    """
    files: dict[str, tuple[Path, os.stat_result]] = {}

    def located(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
        location = str(tensor.location)
        what = f"'{name}' keeps tensor '{tensor.name}' in '{location}'"
        if location not in files:
            try:
                real = data_file(location, path)
                files[location] = real, real.stat()
            except NoDataFile as reason:
                raise ModelError(f"{what}, which {reason}.") from reason
            except OSError as error:
                raise ModelError(f"{what}, which cannot be read: {error.strerror}.") from error
        real, status = files[location]
        _check_range(what, tensor, status.st_size)
        return ir.ExternalTensor(
            str(real),
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    replace_external(model, located)
    return [stat.S_IMODE(status.st_mode) for _, status in files.values()]


def _check_range(what: str, tensor: ir.ExternalTensor, size: int) -> None:
    start, num_bytes = tensor.offset or 0, tensor.length or tensor.nbytes
    if start < 0 or num_bytes != tensor.nbytes:
        raise ModelError(
            f"{what} at byte {start} with {num_bytes} bytes, but the tensor has {tensor.nbytes}."
        )
    if start + num_bytes > size:
        raise ModelError(
            f"{what} up to byte {start + num_bytes}, but the file has {size} bytes; it is cut "
            "short."
        )


def external_protos(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a message that lies in another file: of graphs, nodes and functions."""
    for part in parts(model):
        tensors = [*part.initializer] if isinstance(part, onnx.GraphProto) else []
        for attribute in part.attribute if isinstance(part, onnx.NodeProto) else ():
            tensors += [attribute.t] if attribute.HasField("t") else []
            tensors += attribute.tensors
        yield from (each for each in tensors if each.data_location == onnx.TensorProto.EXTERNAL)


def location_of(tensor: onnx.TensorProto) -> str:
    """The location of an external tensor; empty if it has none."""
    return next((str(each.value) for each in tensor.external_data if each.key == "location"), "")


def relocated(proto: onnx.ModelProto, model: Path | None) -> tuple[onnx.ModelProto, Path]:
    """A message whose external tensors are found from one folder, without links.

    A runtime that is handed a message and a folder opens what is below that folder only.

    Args:
        proto: of ``model``, or an edited copy; left as it is.
        model: path of the model; None for one in memory.

    Returns:
        A copy, and the folder its locations start from.

    Raises:
        ModelError: if a file may not be read.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensors = [*external_protos(copy)]
    real = {location: _data_file_of(location, model) for location in map(location_of, tensors)}
    if not real:
        return copy, Path()
    try:
        folder = Path(os.path.commonpath([path.parent for path in real.values()]))
    except ValueError as error:  # Windows
        raise ModelError(
            "The model's data files lie on several drives; copy them to one to verify it."
        ) from error
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(real[entry.value].relative_to(folder))
    return copy, folder


def stored_array(tensor: onnx.TensorProto, model: Path | None) -> NDArray[Any]:
    """A tensor's numbers; those in a data file are mapped.

    Args:
        tensor: of a message.
        model: path of the model; None for one in memory.

    Raises:
        ModelError: if its data file may not be read or is not as the tensor says.
    """
    found = ir.serde.deserialize_tensor(tensor)
    if isinstance(found, ir.ExternalTensor):
        what = f"Tensor '{tensor.name}' lies in '{found.location}'"
        real = _data_file_of(str(found.location), model)
        _check_range(what, found, real.stat().st_size)
        found = ir.ExternalTensor(
            str(real),
            found.offset,
            found.length,
            found.dtype,
            shape=ir.Shape(found.shape),
            name=tensor.name,
        )
    return found.numpy()


def _data_file_of(location: str, model: Path | None) -> Path:
    try:
        return data_file(location, model)
    except NoDataFile as reason:
        raise ModelError(f"Tensors lie in '{location}', which {reason}.") from reason
