"""How much a model takes on disk, told without parsing what may be gigabytes."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePath

# The entry of a tensor's external_data that names the file: field 1, "location"; field 2, its name.
_LOCATION = b"\x0a\x08location\x12"
_MAX_NAME_BYTES = 4096


def stored_bytes(path: Path) -> int:
    """Bytes of a model file and of the data files it names, found by searching its bytes.

    Serializers write field 1 before field 2, but need not: where one does not, and where a name is
    no file below the model's folder, the data file is not counted.

    Returns:
        The sum; 0 where the file cannot be read.
    """
    try:
        if not path.is_file():
            return 0
        data = {path.parent / name for name in _locations(path)}
        return path.stat().st_size + sum(each.stat().st_size for each in data if each.is_file())
    except (OSError, ValueError):  # not readable; empty, or names that the system refuses
        return 0


def _locations(path: Path) -> Iterator[PurePath]:
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        at = content.find(_LOCATION)
        while at >= 0:
            at += len(_LOCATION)
            # The length is a varint; two bytes are enough for any name.
            size, first = content[at : at + 2].ljust(2, b"\0"), at + 1
            length = size[0]
            if length >= 0x80:
                length, first = (length & 0x7F) | size[1] << 7, at + 2
            if length <= _MAX_NAME_BYTES:
                name = PurePath(content[first : first + length].decode(errors="ignore"))
                if name.name and not name.is_absolute() and ".." not in name.parts:
                    yield name
            at = content.find(_LOCATION, first)
