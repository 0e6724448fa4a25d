"""What stands in front of a GGUF file's tensors: metadata, and where each tensor lies.

Read here and not by the gguf library, because files are untrusted and large: the library makes
objects of every word of a vocabulary, and refuses a file for one tensor of a type it does not know.
Arrays are skipped, every count and length is bounded, every tensor has to lie within the file.

Source: the specification of GGUF, versions 2 and 3 (ggml, docs/gguf.md).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from onnx_ternary.errors import ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Formats of scalars by their number.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}
_MAX_ENTRIES = 1 << 16
_MAX_ELEMENTS = 1 << 24
_MAX_NAME = 1 << 16
_MAX_KEPT_STRING = 1 << 16
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's place.

    Attributes:
        name: in the file.
        shape: outermost dimension first.
        kind: number of its type.
        offset: of its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors.

    Attributes:
        values: scalars and short strings by key; arrays and long strings are None.
        tensors: by name.
        num_bytes: size of the file.
    """

    values: dict[str, Any]
    tensors: dict[str, GgufTensor]
    num_bytes: int


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelError: if the file cannot be read or breaks the format.
    """
    try:
        with path.open("rb") as file:
            return _Parser(path, file, os.fstat(file.fileno()).st_size).header()
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error


class _Parser:
    def __init__(self, path: Path, file: BinaryIO, num_bytes: int) -> None:
        self._path = path
        self._file = file
        self._num_bytes = num_bytes

    def header(self) -> GgufHeader:
        if self._file.read(4) != MAGIC:
            raise self._error("has no GGUF at its beginning")
        version = self._number("I")
        if version not in _VERSIONS:
            what = "of the other byte order" if version & 0xFFFF == 0 else f"version {version}"
            raise self._error(f"is {what}; expected version 2 or 3, little-endian")
        num_tensors, num_values = self._count("tensors"), self._count("metadata entries")
        values: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._name("metadata")
            if key in values:
                raise self._error(f"has the metadata key '{key}' twice")
            values[key] = self._value(self._number("I"))
        found = [self._tensor() for _ in range(num_tensors)]
        start = self._aligned(self._file.tell(), values.get("general.alignment", 32))
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                raise self._error(f"has the tensor '{name}' twice")
            tensors[name] = GgufTensor(name, shape, kind, start + offset)
        return GgufHeader(values, tensors, self._num_bytes)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._name("a tensor")
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"gives tensor '{name}' {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        if 0 in shape:
            raise self._error(f"gives tensor '{name}' shape {shape}")
        return name, shape, self._number("I"), self._number("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._error(f"has metadata of the unknown type {kind}")
        element, count = self._number("I"), self._number("Q")
        if count > _MAX_ELEMENTS or element == _ARRAY:
            raise self._error(f"has an array of {count} elements of type {element} as metadata")
        if element in _SCALARS:
            self._skip(count * struct.calcsize("<" + _SCALARS[element]))
        elif element == _STRING:
            for _ in range(count):
                self._skip(self._number("Q"))
        else:
            raise self._error(f"has metadata of the unknown type {element}")
        return None

    def _string(self) -> str | None:
        length = self._number("Q")
        if length > _MAX_KEPT_STRING:
            self._skip(length)
            return None
        return self._text(length, "metadata")

    def _name(self, of: str) -> str:
        length = self._number("Q")
        if length > _MAX_NAME:
            raise self._error(f"has a name of {length} bytes of {of}")
        return self._text(length, of)

    def _text(self, length: int, of: str) -> str:
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"has text that is no UTF-8 in {of}") from error

    def _count(self, of: str) -> int:
        count = self._number("Q")
        if count > _MAX_ENTRIES:
            raise self._error(f"has {count} {of}, at most {_MAX_ENTRIES} are read")
        return count

    def _number(self, form: str) -> int:
        return int(self._unpack(form))

    def _unpack(self, form: str) -> Any:
        (value,) = struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))
        return value

    def _bytes(self, count: int) -> bytes:
        found = self._file.read(count)
        if len(found) != count:
            raise self._error("ends within its header")
        return found

    def _skip(self, count: int) -> None:
        place = self._file.tell() + count
        if place > self._num_bytes:
            raise self._error("ends within its header")
        self._file.seek(place)

    def _aligned(self, place: int, alignment: Any) -> int:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"has general.alignment {alignment!r}, expected a power of two")
        return -(-place // alignment) * alignment

    def _error(self, what: str) -> ModelError:
        return ModelError(f"'{self._path}' {what}; it is no GGUF file this package can read.")
