"""Tensors on their way into one external data file, page-aligned, none kept in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnx_ternary.errors import ModelError

ALIGNMENT = 4096
_MIN_EXTERNAL_BYTES = 1024


class TensorFile:
    """A writer of tensors, one behind the other, that remembers where each one is.

    Args:
        path: of the data file; None counts bytes and writes nothing.

    Attributes:
        tensors: the initializers by name, external or, below 1 KiB, in themselves.
        num_bytes: the size of the file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.tensors: dict[str, TensorProto] = {}
        self.num_bytes = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> TensorFile:
        if self.path is not None:
            try:
                self._file = self.path.open("wb")
            except OSError as error:
                raise ModelError(f"'{self.path}' cannot be written: {error.strerror}.") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, name: str, array: NDArray[Any]) -> str:
        """Write one tensor and return its name.

        Raises:
            ModelError: if the file cannot be written.
        """
        if array.nbytes < _MIN_EXTERNAL_BYTES:
            self.tensors[name] = numpy_helper.from_array(array, name)
            return name
        return self.add_parts(name, array.dtype, array.shape, [array])

    def add_parts(
        self,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        parts: Iterable[NDArray[Any]],
    ) -> str:
        """Write one tensor in parts along its first axis and return its name.

        Raises:
            ModelError: if the file cannot be written.
        """
        self._write(bytes(-self.num_bytes % ALIGNMENT))
        offset = self.num_bytes
        for part in parts:
            self._write(np.ascontiguousarray(part.astype(dtype, copy=False)))
        tensor = TensorProto(
            name=name,
            dims=shape,
            data_type=helper.np_dtype_to_tensor_dtype(dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {
            "location": "" if self.path is None else self.path.name,
            "offset": str(offset),
            "length": str(self.num_bytes - offset),
        }
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
        self.tensors[name] = tensor
        return name

    def _write(self, content: bytes | NDArray[Any]) -> None:
        data = content if isinstance(content, bytes) else content.view(np.uint8).data
        self.num_bytes += memoryview(data).nbytes
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            raise ModelError(f"'{self.path}' cannot be written: {error.strerror}.") from error


def digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of tensors, as `nodes.index_digest` computes it of a node's."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
