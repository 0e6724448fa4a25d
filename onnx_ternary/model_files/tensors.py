"""The constant tensors of a model: where they lie, their size, and moving them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from numpy.typing import NDArray

from onnx_ternary._walk import graphs_in, nodes_in, owners_in
from onnx_ternary.errors import ModelError

_MIN_SPOOLED_BYTES = 1 << 16


def constant_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every initializer and every tensor attribute, in all graphs and functions."""
    for owner in owners_in(model):
        for graph in graphs_in(owner):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield value.const_value
    for owner in owners_in(model):
        for node in nodes_in(owner):
            for attr in node.attributes.values() if node.attributes else ():
                yield from _tensors_of(attr)


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
    """Ask the system to read an external tensor's bytes; return at once."""
    if not isinstance(tensor, ir.ExternalTensor) or not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError, ValueError):
        # Opening a pipe would wait; loading a model has looked, a model in memory may name one.
        if not Path(tensor.path).is_file():
            return
        with Path(tensor.path).open("rb") as file:
            os.posix_fadvise(
                file.fileno(), tensor.offset or 0, tensor.length or 0, os.POSIX_FADV_WILLNEED
            )


@contextmanager
def embedded(model: ir.Model) -> Iterator[None]:
    """While open, external tensors are tensors in memory."""
    undo = replace_external(model, in_memory)
    try:
        yield
    finally:
        undo()


def replace_external(
    model: ir.Model,
    make: Callable[[ir.ExternalTensor], ir.TensorProtocol],
    *,
    initializers: bool = True,
) -> Callable[[], None]:
    """Put another tensor in the place of each external one; all of them, or none if one fails.

    Args:
        model: is edited.
        make: gives the other tensor.
        initializers: whether initializers are replaced, or tensors of nodes alone.

    Returns:
        A function that puts the old ones back.
    """
    values = [
        (value, held)
        for owner in owners_in(model)
        for graph in graphs_in(owner)
        for value in graph.initializers.values()
        if initializers and isinstance(held := value.const_value, ir.ExternalTensor)
    ]
    owners: tuple[ir.Graph | ir.Function, ...] = (model.graph, *model.functions.values())
    attributes = [
        (node, attr)
        for owner in owners
        for node in nodes_in(owner)
        if node.attributes
        for attr in node.attributes.values()
        if any(isinstance(each, ir.ExternalTensor) for each in _tensors_of(attr))
    ]
    new_tensors = [make(held) for _, held in values]
    new_attributes = [_with_tensors(attr, make) for _, attr in attributes]
    for (value, _), tensor in zip(values, new_tensors, strict=True):
        value.const_value = tensor
    for (node, _), attribute in zip(attributes, new_attributes, strict=True):
        node.attributes[attribute.name] = attribute

    def undo() -> None:
        for value, held in values:
            value.const_value = held
        for node, attr in attributes:
            node.attributes[attr.name] = attr

    return undo


def _tensors_of(attr: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attr.is_ref():
        return ()
    if attr.type == ir.AttributeType.TENSOR:
        return (attr.as_tensor(),)
    return attr.as_tensors() if attr.type == ir.AttributeType.TENSORS else ()


def _with_tensors(attr: ir.Attr, make: Callable[[ir.ExternalTensor], ir.TensorProtocol]) -> ir.Attr:
    made = [
        make(each) if isinstance(each, ir.ExternalTensor) else each for each in _tensors_of(attr)
    ]
    if attr.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attr.name, made[0], doc_string=attr.doc_string)
    return ir.AttrTensors(attr.name, made, doc_string=attr.doc_string)


def in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """The same tensor with its numbers at hand, mapped."""
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
