"""Whether a file name may be taken, and what would be lost with the file that has it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

# The package ships no types, and its stubs are not among our development tools.
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.load import ModelFile, data_files


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
    """Refuses a name that is one of the original model's data files.

    Raises:
        ModelError: naming the file.
    """
    if path.resolve() in protected:
        raise ModelError(
            f"'{path}' cannot be written: the original model keeps tensors in it; give the result "
            "another name."
        )


def check_link(path: Path) -> None:
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


def check_unread(replaced: Iterable[Path], model: Path) -> None:
    """Refuses to replace data files that other models beside ``model`` keep tensors in.

    Raises:
        ModelError: naming the file and the other model.
    """
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


def data_names(target: Path, present: ModelFile | None) -> tuple[str, frozenset[Path]]:
    """The name of a new data file, and the files of ours that the model at ``target`` lets go.

    The new file never has the name of one that the present model reads, so that until the new
    model takes its name, a kill leaves the old model whole.

    Args:
        target: resolved path of the new model.
        present: the model that lies there now, if it has been read already.
    """
    names = (f"{target.name}.data", f"{target.name}.ternary.data")
    read: frozenset[Path] = frozenset()
    if present is not None:
        read = present.data_files
    elif target.exists():
        with suppress(ModelError):  # whatever it is, it opens no data file
            read = data_files(target)
    old = read & {target.parent / name for name in names}
    free = [name for name in names if target.parent / name not in old]
    # A model that reads both is not one we wrote; it loses one, as it would to any writer.
    return (free or names)[0], frozenset(old if free else ())
