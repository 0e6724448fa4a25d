"""The constant tensors of a model: where they lie, their size, and moving them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

# The package ships no types, and its stubs are not among our development tools.
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError

_MIN_SPOOLED_BYTES = 1 << 16


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
def embedded(model: ir.Model, *, initializers: bool = True) -> Iterator[None]:
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
