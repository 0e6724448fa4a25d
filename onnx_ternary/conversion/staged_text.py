"""Text files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name

Text: TypeAlias = Callable[[], str]
"""Makes a text."""


@contextmanager
def staged_text(path: Path | None, what: str) -> Iterator[Callable[[Text], None]]:
    """Open a file before the work, so that the work is not lost to a bad name.

    Args:
        path: None for no file.
        what: what messages call it, ``report``.

    Yields:
        A function that writes what another one makes, and gives the file its name. The text of no
        file is not made, and nothing stays behind where the function is not called.

    Raises:
        ModelError: if the file cannot be written.
    """
    if path is None:
        yield lambda make: None
        return
    check_name(path)
    if not path.parent.is_dir():
        raise ModelError(
            f"The {what} '{path}' cannot be written: there is no folder '{path.parent}'."
        )
    # A pipe or a terminal is written to, not replaced.
    ordinary = path.is_file() or not path.exists()
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", dir=path.resolve().parent if ordinary else None
        )
    except OSError as error:
        raise ModelError(f"The {what} '{path}' cannot be written: {error.strerror}.") from error
    with folder as name:
        staged = Path(name) / path.name

        def write(make: Text) -> None:
            text = make()
            try:
                (staged if ordinary else path).write_text(text, encoding="utf-8")
                if ordinary:
                    staged.replace(path.resolve())
            except OSError as error:
                raise ModelError(
                    f"The {what} '{path}' cannot be written: {error.strerror}."
                ) from error

        yield write
