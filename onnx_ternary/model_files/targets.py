"""Whether a file name may be taken, and what would be lost with the file that has it."""

from __future__ import annotations

import filecmp
import hashlib
import mmap
import os
import re
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.load import ModelFile, data_files

if sys.platform != "win32":
    import fcntl

_DIGEST_LENGTH = 12
# They may well name a data file, and are no models.
_TEXTS = frozenset({".csv", ".html", ".json", ".log", ".md", ".txt", ".yaml", ".yml"})


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


def check_unprotected(path: Path, protected: Collection[Path]) -> None:
    """Refuse a name that is one of the original model's data files.

    Raises:
        ModelError: naming the file.
    """
    if path.resolve() in protected:
        raise ModelError(
            f"'{path}' cannot be written: the original model keeps tensors in it; give the result "
            "another name."
        )


def check_link(path: Path) -> None:
    """Refuse a link: readers look for data beside the link, not beside the file it leads to."""
    target = path.resolve()
    if target.parent != path.parent.resolve():
        raise ModelError(
            f"'{path}' cannot be written with external data: it is a link to '{target}', and the "
            "data would not lie beside the link; name the file itself."
        )


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """While open, no other conversion of this package writes ``target`` or its data.

    A lock file beside the target; the system lets go of it when the process ends, however it does.

    Raises:
        OSError: if the folder cannot be written.
    """
    if sys.platform == "win32":  # renaming onto a file that is open fails there
        yield
        return
    path = target.with_name(f".{target.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        lock = os.open(path, flags, 0o600)
        try:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever had it before removed the file, and a third one may have made another.
            if path.exists() and os.path.samestat(os.fstat(lock), path.stat()):
                break
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def data_name(target: Path, staged: Path, protected: Collection[Path]) -> str:
    """The name of the data file ``staged`` beside ``target``: one no file has but an equal one.

    Nothing is replaced: a file of that name may be read by a model of any name in any folder, and
    is read by the model at ``target`` until the new one has its name. What is ``protected`` is not
    shared either.

    Raises:
        ModelError: if a file has the name of this content and another content.
        OSError: if a file cannot be read.
    """
    plain = target.with_name(f"{target.name}.data")
    if not os.path.lexists(plain) or (plain not in protected and _is_equal(plain, staged)):
        return plain.name
    named = target.with_name(f"{target.name}.{_digest(staged)[:_DIGEST_LENGTH]}.data")
    if os.path.lexists(named) and not _is_equal(named, staged):
        raise ModelError(
            f"'{named}' cannot be written: a file of that name is there and holds something else; "
            "remove it or give the result another name."
        )
    return named.name


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _is_equal(path: Path, other: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    return filecmp.cmp(path, other, shallow=False)


def old_data(target: Path, present: ModelFile | None) -> frozenset[Path]:
    """Data files that only the model at ``target`` reads, as far as its folder tells.

    They are named for it, it reads them, no other name leads to them, and no other file of the
    folder is a model that reads them.

    Args:
        target: resolved path of the model.
        present: the model that lies there, if it has been read already.
    """
    read: frozenset[Path] = frozenset()
    if present is not None:
        read = present.data_files
    elif target.exists():
        with suppress(ModelError):  # whatever it is, it opens no data file
            read = data_files(target)
    pattern = re.compile(rf"{re.escape(target.name)}\.(?:[0-9a-z]+\.)?data")
    named = [
        path
        for path in read
        if path.parent == target.parent
        and pattern.fullmatch(path.name)
        and path.stat().st_nlink == 1
    ]
    return frozenset(path for path in named if not _has_other_reader(path, target, read))


def _has_other_reader(data: Path, model: Path, read: Collection[Path]) -> bool:
    """Whether a file beside ``model`` is a model that keeps tensors in ``data``, or may be one."""
    for other in data.parent.iterdir():
        if other in read or other.name == model.name or other.suffix in _TEXTS:
            continue
        try:
            status = other.stat()
            # A message of protobuf has at most 2 GB.
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size < 1 << 31:
                continue
            if _mentions(other, data.name) and data.resolve() in data_files(other):
                return True
        except (OSError, ModelError):
            return True
    return False


def _mentions(path: Path, name: str) -> bool:
    """Whether a file holds a text, without parsing what may be gigabytes."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content.find(os.fsencode(name)) >= 0
