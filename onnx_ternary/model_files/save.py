"""Writing models: all of a model or nothing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.external_data import external_protos, location_of
from onnx_ternary.model_files.load import SOURCE_MODE, ModelFile
from onnx_ternary.model_files.messages import has_map_types, restore_map_types, why
from onnx_ternary.model_files.targets import (
    check_link,
    check_target,
    check_unprotected,
    data_name,
    locked,
    old_data,
)
from onnx_ternary.model_files.tensors import (
    constant_bytes,
    embedded,
    external_tensors,
    in_memory,
    replace_external,
)
from onnx_ternary.options import ExternalData

# A protobuf message must stay below 2 GiB; the graph itself needs some of that.
MAX_EMBEDDED_BYTES = 2**31 - 64 * 2**20
# What the system maps is page-aligned, so the kernels read such tensors in place.
ALIGNMENT = 4096
_MIN_EXTERNAL_BYTES = 1024
# Given a complete model that has not taken its name yet, and the bytes of its files.
Accept: TypeAlias = Callable[[Path, int], None]
_UNKNOWN_DOMAIN = "onnx_ternary.unknown"
# In the default domain; ONNX has none, or has it in later opsets only.
_ONNXRUNTIME_OPERATORS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and the nodes of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def copy_model(
    source: ModelFile,
    target: str | PathLike[str],
    *,
    accept: Accept | None = None,
) -> tuple[Path, ...]:
    """Copy a model as it is; one with external data is written again, beside its new data file.

    Args:
        source: the model; nobody has changed ``source.model``.
        target: its new name; the same as ``source.path`` leaves the file alone.
        accept: as in `save`.

    Returns:
        The files written, the model first.

    Raises:
        ModelError: as `save`.
    """
    target = Path(target)
    if source.data_files and source.path.resolve() != target.resolve():
        return save(source.model, target, external_data="always", accept=accept, source=source)
    check_target(target)
    try:
        real = target.resolve()
        with (
            locked(real),
            tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=real.parent) as folder,
        ):
            if accept is not None:
                accept(source.path, source.num_bytes)
            if target.exists() and target.samefile(source.path):
                return (target,)
            staged = Path(folder) / target.name
            shutil.copyfile(source.path, staged)
            staged.chmod(_mode(staged, real, source.model))
            staged.replace(real)
    except OSError as error:
        raise ModelError(f"'{target}' cannot be written: {error.strerror or error}.") from error
    return (target,)


def save(
    model: ir.Model,
    path: str | PathLike[str],
    *,
    external_data: ExternalData = "auto",
    accept: Accept | None = None,
    source: ModelFile | None = None,
) -> tuple[Path, ...]:
    """Write a model, all of it or nothing.

    Everything is written to a temporary folder beside the target and checked with onnx.checker
    before it takes the target's name, so converting a file in place is safe. Large tensors go to
    ``<name>.data`` (page-aligned) if ``external_data`` says so; with ``auto``, only when the model
    would not fit into one file. Where another file has that name, they go to
    ``<name>.<digest>.data``; no data file is replaced. Those of ours that the replaced model reads
    are removed once the new model has its name, unless they are protected or another model in the
    folder reads them. Of several writers of one target each waits for the one before.

    A file that is replaced keeps its permissions, and so do its data's; a new file is no more
    readable than the files ``model`` was loaded from.

    Args:
        model: what to write.
        path: where to.
        external_data: ``auto``, ``always`` or ``never``.
        accept: called with the complete staged model before it takes the target's name; what it
            raises stops the writing.
        source: the file the model was read from. Unless ``path`` is that file, its data files are
            protected: they are neither replaced nor removed.

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
        check_link(path)
    # Links in the target's place keep pointing where they do.
    target = path.resolve()
    in_place = source is not None and source.path.resolve() == target
    protected = frozenset() if source is None or in_place else source.data_files
    try:
        with (
            locked(target),
            tempfile.TemporaryDirectory(
                prefix=f".{target.name}.",
                dir=target.parent,
                ignore_cleanup_errors=True,  # once the model has its name, nothing has failed
            ) as temporary,
        ):
            staged = Path(temporary) / target.name
            check_unprotected(target, protected)
            names = _stage(model, staged, target, protected, external=external)
            _check(staged)
            if accept is not None:
                accept(staged, sum((Path(temporary) / name).stat().st_size for name in names))
            old = old_data(target, source if in_place else None)
            old = old.difference(protected, (target.parent / each for each in names))
            _move(Path(temporary), target.parent, names)
            for each in old:
                with suppress(OSError):  # the new model has its name
                    each.unlink()
            _forget_replaced_data(model, list(old))
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
        with embedded(model):
            proto = ir.to_proto(model)
        restore_map_types(model, proto)
        return proto
    except (OSError, ValueError, EncodeError, ir.serde.SerdeError) as error:
        raise ModelError(f"The model cannot be serialized: {why(error)}.") from error


def _write(model: ir.Model, path: Path, data_name: str | None) -> None:
    try:
        places: Mapping[str, str] = {}
        if data_name is None:
            with embedded(model):
                ir.save(model, path, format="protobuf")
        else:
            with _attributes_among_initializers(model) as places:
                ir.save(
                    model,
                    path,
                    format="protobuf",
                    external_data=data_name,
                    size_threshold_bytes=_MIN_EXTERNAL_BYTES,
                    alignment=ALIGNMENT,
                    align_threshold=ALIGNMENT,
                )
        if places or has_map_types(model):
            proto = onnx.load(path, load_external_data=False)
            _take_places(proto, places)
            restore_map_types(model, proto)
            onnx.save(proto, path)
    except (EncodeError, ValueError, ir.serde.SerdeError) as error:
        raise ModelError(f"'{path.name}' cannot be written: {why(error)}.") from error


@contextmanager
def _attributes_among_initializers(model: ir.Model) -> Iterator[Mapping[str, str]]:
    """While open, large external tensors of nodes are initializers, which saving makes external.

    Yields:
        The initializer's name by the location that the node's tensor has meanwhile.
    """
    initializers = model.graph.initializers
    taken = {value.name for value in model.graph.inputs}
    taken.update(value.name for node in model.graph for value in node.outputs)
    places: dict[str, str] = {}

    def moved(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        if tensor.nbytes <= _MIN_EXTERNAL_BYTES:
            return in_memory(tensor)
        place = name = f"onnx_ternary.attribute.{len(places)}"
        while name in taken or name in initializers:
            name += "'"
        places[place] = name
        initializers[name] = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        return ir.ExternalTensor(
            place, None, None, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
        )

    undo = replace_external(model, moved, initializers=False)
    try:
        yield places
    finally:
        undo()
        for name in places.values():
            del initializers[name]


def _take_places(proto: onnx.ModelProto, places: Mapping[str, str]) -> None:
    """Let tensors of nodes lie where the initializers lie that stood for them, and remove those."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for tensor in external_protos(proto):
        name = places.get(location_of(tensor))
        if name is not None:
            del tensor.external_data[:]
            tensor.external_data.extend(stored[name].external_data)
    for name in places.values():
        proto.graph.initializer.remove(stored[name])
    # Saving describes initializers as values too.
    described = set(places.values())
    others = [value for value in proto.graph.value_info if value.name not in described]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(others)


def _stage(
    model: ir.Model, staged: Path, target: Path, protected: Collection[Path], *, external: bool
) -> list[str]:
    """Write a model and its data into a folder of their own; return the names they will have."""
    name = f"{target.name}.data"
    _write(model, staged, name if external else None)
    mode = _mode(staged, target, model)
    data = staged.with_name(name)
    if not data.exists():
        staged.chmod(mode)
        return [target.name]
    new_name = data_name(target, data, protected)
    if new_name != name:
        proto = onnx.load(staged, load_external_data=False)
        for tensor in external_protos(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = new_name
        staged.write_bytes(proto.SerializeToString())
        data = data.rename(staged.with_name(new_name))
    staged.chmod(mode)
    data.chmod(mode)
    return [target.name, new_name]


def _mode(staged: Path, target: Path, model: ir.Model) -> int:
    """Permissions for what takes the name ``target``."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    given = stat.S_IMODE(staged.stat().st_mode)
    allowed: int = model.meta.get(SOURCE_MODE, given)
    return given & (allowed | stat.S_IWUSR)


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

    A data file that is there already is an equal one. A failure before the model has its name
    takes the data away again.
    """
    model, *data = names
    added: list[tuple[Path, Path]] = []
    try:
        for name in data:
            if not os.path.lexists(folder / name):
                # Noted before it is done: an interrupt may come in between.
                added.append((source / name, folder / name))
                (source / name).replace(folder / name)
        (source / model).replace(folder / model)
    except BaseException:  # an interrupt too
        if (source / model).exists():  # else the new model has its name, and reads the new data
            for staged, new in added:
                if not staged.exists():
                    new.unlink(missing_ok=True)
        raise
