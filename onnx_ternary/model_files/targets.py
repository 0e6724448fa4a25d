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

import onnx

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.load import ModelFile, data_files

if sys.platform != "win32":
    import fcntl

    _LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_DIGEST_LENGTH = 12
# Of a ModelProto, whichever of its fields stands first: what a text that names a data file hardly
# begins with.
_FIRST_BYTES = frozenset(
    (field.number << 3 | (field.type != field.TYPE_INT64) * 2) & 0x7F | (field.number > 15) << 7
    for field in onnx.ModelProto.DESCRIPTOR.fields
)


def check_name(path: Path) -> None:
    """Look whether a path can lead to a file, whether there is one or not.

    Raises:
        ModelError: if it is a link to itself, too long, or holds a NUL character.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever opens it says so
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"'{path}' is no name of a file: {reason}.") from error


def check_target(path: Path) -> None:
    """Look whether a model can take this name, without writing.

    Raises:
        ModelError: if it has no folder, is something else than a file, or as `check_name`.
    """
    check_name(path)
    try:
        os.fspath(path.resolve()).encode()
    except UnicodeEncodeError as error:
        raise ModelError(
            f"'{path}' cannot be written: onnx reads no file whose name is not UTF-8; give another "
            "name."
        ) from error
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
    path = _lock_of(target)
    while True:
        lock = os.open(path, _LOCK_FLAGS | os.O_CREAT, 0o600)
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


def remove_left_lock(target: Path) -> None:
    """Remove the lock file of a process that was killed, unless another one has the lock by now."""
    if sys.platform == "win32":
        return
    path = _lock_of(target)
    with suppress(OSError):  # there is none, or somebody has it
        lock = os.open(path, _LOCK_FLAGS)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), path.stat()):
                path.unlink()
        finally:
            os.close(lock)


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


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
    """Data files that only the model at ``target`` reads, as far as the folders above tell.

    They are named for it, it reads them, no other name leads to them, and no other file of its
    folder, nor of one above, is a model that reads them. Models elsewhere cannot: runtimes read
    below a model's own folder.

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
    try:
        others = _others(target, read)
    except OSError:  # what lies beside them is not known
        return frozenset()
    return frozenset(path for path in named if not any(_may_read(other, path) for other in others))


def _others(model: Path, read: Collection[Path]) -> list[Path]:
    """Files beside a model and in the folders above it, without those it reads."""
    found = list(model.parent.iterdir())
    with suppress(OSError):  # whoever may not list a folder has no models there
        for folder in model.parent.parents:
            found += folder.iterdir()
    return [each for each in found if each != model and each not in read]


def _may_read(other: Path, data: Path) -> bool:
    """Whether a file is a model that keeps tensors in ``data``, or may be one."""
    try:
        status = other.stat()
        # A message of protobuf has at most 2 GB.
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size < 1 << 31:
            return False
        return _mentions(other, data.name) and data in data_files(other)
    except ModelError:
        return True
    except OSError:
        return other.parent == data.parent or other.suffix == ".onnx"


def _mentions(path: Path, name: str) -> bool:
    """Whether a file begins as a model and holds a text, without parsing what may be gigabytes."""
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return content[0] in _FIRST_BYTES and content.find(os.fsencode(name)) >= 0
