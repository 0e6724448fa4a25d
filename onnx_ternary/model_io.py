"""Read and write models: lazily, and never half a file."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from numpy.typing import NDArray

from onnx_ternary._cycles import find_cycle
from onnx_ternary.errors import ModelError
from onnx_ternary.options import ExternalData

# A protobuf message must stay below 2 GiB; the graph itself needs some of that.
MAX_EMBEDDED_BYTES = 2**31 - 64 * 2**20
# Above it, a model whose tensors lie beside it keeps them there, where they can be mapped.
MAX_JOINED_BYTES = 10_000_000
# What the system maps is page-aligned, so the kernels read such tensors in place.
ALIGNMENT = 4096
_MIN_EXTERNAL_BYTES = 1024
_MIN_SPOOLED_BYTES = 1 << 16
_UNKNOWN_DOMAIN = "onnx_ternary.unknown"
# In the default domain; ONNX has none, or has it in later opsets only.
_ONNXRUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})


def load(path: str | PathLike[str]) -> ir.Model:
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
    model = from_bytes(content, str(path))
    for tensor in external_tensors(model):
        tensor.base_dir = str(path.parent)
    check_external_data(model, str(path))
    return model


def from_bytes(content: bytes, name: str = "model") -> ir.Model:
    """Deserialize a model; ``name`` is what messages call it.

    Raises:
        ModelError: if it is not an ONNX model, is cut short, or as `from_proto`.
    """
    try:
        proto = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ModelError(
            f"'{name}' is not an ONNX model, or is cut short or damaged ({error})."
        ) from error
    return from_proto(proto, name)


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


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for each in attribute.graphs:
                yield from _graphs(each)


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def why_invalid(model: str | PathLike[str] | bytes | onnx.ModelProto | ir.Model) -> str:
    """What onnx.checker has against a model; empty if nothing, or if it cannot tell."""
    if isinstance(model, ir.Model):
        return ""
    try:
        in_memory = isinstance(model, (bytes, onnx.ModelProto))
        onnx.checker.check_model(model if in_memory else os.fspath(model))
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return ""


def constant_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every initializer and every tensor attribute, in all graphs and functions."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    owners: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    for owner in owners:
        for node in ir.traversal.RecursiveGraphIterator(owner):
            for attr in node.attributes.values():
                if attr.is_ref():
                    continue
                if attr.type == ir.AttributeType.TENSOR:
                    yield attr.as_tensor()
                elif attr.type == ir.AttributeType.TENSORS:
                    yield from attr.as_tensors()


def constant_bytes(model: ir.Model) -> int:
    """Bytes of all constant tensors; a tensor that occurs twice counts twice, as in the file."""
    return sum(
        int(tensor.nbytes)
        for tensor in constant_tensors(model)
        if tensor.dtype != ir.DataType.STRING
    )


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every constant tensor that lies in another file."""
    return (each for each in constant_tensors(model) if isinstance(each, ir.ExternalTensor))


class Spool:
    """Tensors on their way to a result, in a file of `folder` instead of in memory.

    They are read, mapped, until the folder goes; saving a model copies them.
    """

    _NAME = "tensors"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, array: NDArray[Any], name: str) -> ir.TensorProtocol:
        """``array`` as a tensor; small ones stay in memory.

        Raises:
            ModelError: if the file cannot be written.
        """
        tensor = ir.Tensor(array, name=name)
        if array.nbytes < _MIN_SPOOLED_BYTES:
            return tensor
        try:
            with (self._folder / self._NAME).open("ab") as file:
                offset = file.tell()
                file.write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise ModelError(f"'{self._folder}' cannot be written: {error.strerror}.") from error
        return ir.ExternalTensor(
            self._NAME,
            offset,
            array.nbytes,
            tensor.dtype,
            shape=ir.Shape(array.shape),
            name=name,
            base_dir=self._folder,
        )


def release(tensor: ir.TensorProtocol | None) -> None:
    """Let go of the mapped file, if the tensor is external."""
    if isinstance(tensor, ir.ExternalTensor):
        # Somebody else may hold a view of the mapping, which then lives on.
        with suppress(BufferError):
            tensor.release()


def prefetch(tensor: ir.TensorProtocol | None) -> None:
    """Ask the system to read an external tensor's bytes; returns at once."""
    if not isinstance(tensor, ir.ExternalTensor) or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError), Path(tensor.path).open("rb") as file:
        os.posix_fadvise(
            file.fileno(), tensor.offset or 0, tensor.length or 0, os.POSIX_FADV_WILLNEED
        )


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
    return sum(each.stat().st_size for each in {Path(path).resolve(), *data_files(path)})


def data_files(path: str | PathLike[str]) -> frozenset[Path]:
    """Resolved paths of the files a model keeps tensors in, its own not among them.

    Raises:
        ModelError: as `load`.
    """
    return frozenset(Path(tensor.path).resolve() for tensor in external_tensors(load(path)))


def copy(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    accept: Callable[[Path], None] | None = None,
) -> tuple[Path, ...]:
    """Copy a model as it is; one with external data is written again, beside its new data file.

    Args:
        source: the model.
        target: its new name; the same as ``source`` leaves the file alone.
        accept: as in `save`.

    Returns:
        The files written, the model first.

    Raises:
        ModelError: as `load` and `save`.
    """
    source, target = Path(source), Path(target)
    model = load(source)
    others = data_files(source)
    if others and source.resolve() != target.resolve():
        return save(model, target, external_data="always", accept=accept, protected=others)
    check_target(target)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            if accept is not None:
                accept(source)
            if target.exists() and target.samefile(source):
                return (target,)
            staged = Path(folder) / target.name
            shutil.copyfile(source, staged)
            staged.replace(target.resolve())
    except OSError as error:
        raise ModelError(f"'{target}' cannot be written: {error.strerror or error}.") from error
    return (target,)


def check_target(path: Path) -> None:
    """Look whether a model can take this name, without writing.

    Raises:
        ModelError: if it has no folder, or is something else than a file.
    """
    if not path.parent.is_dir():
        raise ModelError(f"'{path}' cannot be written: there is no folder '{path.parent}'.")
    if path.is_dir():
        raise ModelError(f"'{path}' cannot be written: it is a directory.")
    if path.exists() and not path.is_file():
        raise ModelError(f"'{path}' cannot be written: it is not an ordinary file.")


def _check_unprotected(path: Path, protected: Collection[Path]) -> None:
    if path.resolve() in protected:
        raise ModelError(
            f"'{path}' cannot be written: the original model keeps tensors in it; give the result "
            "another name."
        )


def _check_link(path: Path) -> None:
    """Readers look for data beside the name they were given, not beside what it links to."""
    target = path.resolve()
    if target.parent != path.parent.resolve():
        raise ModelError(
            f"'{path}' cannot be written with external data: it is a link to '{target}', and the "
            "data would not lie beside the link; name the file itself."
        )


def _other_reader(data: Path, model: Path) -> Path | None:
    """A model beside ``model`` that keeps tensors in ``data``, or that cannot be asked."""
    for other in sorted(data.parent.glob("*.onnx")):
        if other.name == model.name or not other.is_file():
            continue
        try:
            if _mentions(other, data.name) and data.resolve() in data_files(other):
                return other
        except (OSError, ModelError):
            return other
    return None


def _check_unread(replaced: Iterable[Path], model: Path) -> None:
    for path in replaced:
        if path.exists() and (other := _other_reader(path, model)) is not None:
            raise ModelError(
                f"'{path}' cannot be written: '{other}' keeps tensors in it, or cannot be read; "
                "give the result another name."
            )


def _mentions(path: Path, name: str) -> bool:
    """Whether a file holds a text, without parsing what may be gigabytes."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(os.fsencode(name)) >= 0


def save(
    model: ir.Model,
    path: str | PathLike[str],
    *,
    external_data: ExternalData = "auto",
    accept: Callable[[Path], None] | None = None,
    protected: Collection[Path] = (),
) -> tuple[Path, ...]:
    """Write a model, all of it or nothing.

    Everything is written to a temporary folder beside the target and checked with onnx.checker
    before it takes the target's name, so converting a file in place is safe. Large tensors go to
    ``<name>.data`` (page-aligned) if ``external_data`` says so; with ``auto``, only when the model
    would not fit into one file. Where the model that is replaced reads that file, they go to
    ``<name>.ternary.data``, and the old file is removed once the new model has its name, unless it
    is protected or another model in the folder reads it.

    Args:
        model: what to write.
        path: where to.
        external_data: ``auto``, ``always`` or ``never``.
        accept: called with the path of the complete staged model before it takes the target's
            name; what it raises stops the writing.
        protected: resolved paths that must not be replaced or removed, as `data_files` gives them.

    Returns:
        The files written, the model first.

    Raises:
        ModelError: if the target cannot be written, the model is not valid, it does not fit into
            one file and ``external_data`` is ``never``, or its data would lie in another folder
            than ``path``, a link. No file is left behind.
    """
    path = Path(path)
    check_target(path)
    size = constant_bytes(model)
    external = external_data == "always" or (external_data == "auto" and size > MAX_EMBEDDED_BYTES)
    if not external and size > MAX_EMBEDDED_BYTES:
        raise ModelError(
            f"'{path}' cannot be written: {size} bytes of tensors do not fit into one file; allow "
            "external data."
        )
    if external:
        _check_link(path)
    # Links in the target's place keep pointing where they do.
    target = path.resolve()
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.",
            dir=target.parent,
            ignore_cleanup_errors=True,  # once the model has its name, nothing has failed
        ) as temporary:
            staged = Path(temporary) / target.name
            data, old_data = _data_names(target)
            _write(model, staged, data if external else None)
            _check(staged)
            if accept is not None:
                accept(staged)
            names = [target.name]
            if (Path(temporary) / data).exists():
                names.append(data)
            for name in names:
                _check_unprotected(target.parent / name, protected)
            _check_unread([target.parent / name for name in names[1:]], target)
            _move(Path(temporary), target.parent, names)
            removed = [
                each
                for each in old_data.difference(protected)
                if _other_reader(each, target) is None
            ]
            for each in removed:
                with suppress(OSError):  # the new model has its name
                    each.unlink()
            _forget_replaced_data(model, [target.parent / data, *removed])
            return tuple(path.parent / name for name in (path.name, *names[1:]))
    except OSError as error:
        # numpy says how much of a tensor it wrote, not why it stopped.
        reason = error.strerror or f"the disk is full or a limit was met ({error})"
        raise ModelError(f"'{path}' cannot be written: {reason}.") from error


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as one message, external tensors included.

    Raises:
        ModelError: if its tensors take 2 GB or more, or cannot be read.
    """
    size = constant_bytes(model)
    if size > MAX_EMBEDDED_BYTES:
        raise ModelError(f"{size} bytes of tensors do not fit into one message; save the model.")
    try:
        with _embedded(model):
            return ir.to_proto(model)
    except (OSError, ValueError, EncodeError, ir.serde.SerdeError) as error:
        raise ModelError(f"The model cannot be serialized: {error}") from error


def _data_names(target: Path) -> tuple[str, frozenset[Path]]:
    """The name of a new data file, and the files of ours that the model at ``target`` lets go.

    The new file never has the name of one that the present model reads, so that until the new
    model takes its name, a kill leaves the old model whole.
    """
    names = (f"{target.name}.data", f"{target.name}.ternary.data")
    try:
        read = data_files(target) if target.exists() else frozenset()
    except ModelError:
        read = frozenset()  # whatever it is, it opens no data file
    old = read & {target.parent / name for name in names}
    free = [name for name in names if target.parent / name not in old]
    # A model that reads both is not one we wrote; it loses one, as it would to any writer.
    return (free or names)[0], frozenset(old if free else ())


def _write(model: ir.Model, path: Path, data_name: str | None) -> None:
    try:
        with _embedded(model, initializers=data_name is None):
            if data_name is not None:
                ir.save(
                    model,
                    path,
                    format="protobuf",
                    external_data=data_name,
                    size_threshold_bytes=_MIN_EXTERNAL_BYTES,
                    alignment=ALIGNMENT,
                    align_threshold=ALIGNMENT,
                )
            else:
                ir.save(model, path, format="protobuf")
    except (EncodeError, ValueError, ir.serde.SerdeError) as error:
        cause = error.__cause__ or error
        raise ModelError(f"'{path.name}' cannot be written: {cause}") from error


@contextmanager
def _embedded(model: ir.Model, *, initializers: bool = True) -> Iterator[None]:
    """While open, external tensors of nodes, and of ``initializers``, are tensors in memory."""
    values = [
        (value, value.const_value)
        for graph in model.graphs()
        for value in graph.initializers.values()
        if initializers and isinstance(value.const_value, ir.ExternalTensor)
    ]
    owners: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    attributes = [
        (node, attr, held)
        for owner in owners
        for node in ir.traversal.RecursiveGraphIterator(owner)
        for attr in node.attributes.values()
        if not attr.is_ref()
        and attr.type == ir.AttributeType.TENSOR
        and isinstance(held := attr.as_tensor(), ir.ExternalTensor)
    ]
    try:
        for value, tensor in values:
            value.const_value = _in_memory(tensor)
        for node, attr, held in attributes:
            node.attributes[attr.name] = ir.AttrTensor(attr.name, _in_memory(held))
        yield
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attr, _ in attributes:
            node.attributes[attr.name] = attr


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _forget_replaced_data(model: ir.Model, replaced: list[Path]) -> None:
    """Make tensors that lay in a replaced file fail when read, instead of giving other numbers."""
    for tensor in external_tensors(model):
        if Path(tensor.path).resolve() in replaced:
            tensor.invalidate()


def _check(path: Path) -> None:
    error = _checker_error(path)
    if error.startswith("No Op registered for"):
        # A copy in which onnxruntime's operators are nobody's says what else is wrong.
        stand_in = path.with_name(f"{path.name}.checked")
        proto = onnx.load(path, load_external_data=False)
        proto.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
        for function in proto.functions:
            function.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
        for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
            for node in _all_nodes(nodes):
                if node.domain in ("", "ai.onnx") and node.op_type in _ONNXRUNTIME_OPERATORS:
                    node.domain = _UNKNOWN_DOMAIN
        stand_in.write_bytes(proto.SerializeToString())
        error = _checker_error(stand_in)
        stand_in.unlink()
    # Users' models have outputs of unknown rank; every runtime takes them.
    if error and "Field 'shape' of 'type' is required but missing" not in error:
        raise ModelError(f"The model '{path.name}' is not valid ONNX: {error}")


def _checker_error(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        return str(error)
    return ""


def _move(source: Path, folder: Path, names: list[str]) -> None:
    """Give staged files their names; the model, first of ``names``, last.

    A failure before the model has its name puts the replaced data file back.
    """
    model, *data = names
    # Noted before they are done: an interrupt may come in between.
    restore: list[tuple[Path, Path]] = []
    added: list[tuple[Path, Path]] = []
    try:
        for name in data:
            if (folder / name).exists():
                kept = source / f"{name}.replaced"
                restore.append((kept, folder / name))
                (folder / name).replace(kept)
            added.append((source / name, folder / name))
            (source / name).replace(folder / name)
        if (folder / model).exists():
            shutil.copymode(folder / model, source / model)
        (source / model).replace(folder / model)
    except BaseException:  # an interrupt too
        if (source / model).exists():  # else the new model has its name, and reads the new data
            for staged, new in added:
                if not staged.exists():
                    new.unlink(missing_ok=True)
            for kept, original in restore:
                if kept.exists():
                    kept.replace(original)
        raise
