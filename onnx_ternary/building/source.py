"""Where the weights of a model are read, whatever kind of file they lie in."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnx_ternary.errors import ModelError

_BYTES_AT_ONCE = 1 << 24


class Source(ABC):
    """Tensors by the names transformers gives them, read one at a time, and a configuration.

    Attributes:
        folder: the checkpoint's folder or file, as messages name it.
        tokenizer: the folder that has the tokenizer's files.
    """

    folder: Path
    tokenizer: Path

    @abstractmethod
    def __contains__(self, name: str) -> bool: ...

    @abstractmethod
    def __iter__(self) -> Iterator[str]: ...

    @abstractmethod
    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """What a JSON file of a checkpoint says; empty where it is missing and not required.

        Raises:
            ModelError: if it is missing and required, or is not a JSON object.
        """

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Raise ModelError if there is no such tensor."""

    @abstractmethod
    def dtype(self, name: str) -> np.dtype[Any]:
        """float32, float16, bfloat16 or, packed, uint8.

        Raises:
            ModelError: if there is no such tensor, or it has another dtype.
        """

    @abstractmethod
    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """A tensor, or some of its rows, in its own dtype.

        Raises:
            ModelError: as `dtype`, or if the tensor cannot be read.
        """

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """A matrix some rows at a time, at most 16 MiB each, or one row.

        Raises:
            ModelError: as `read`.
        """
        shape, dtype = self.shape(name), self.dtype(name)
        step = max(1, _BYTES_AT_ONCE // (dtype.itemsize * max(1, int(np.prod(shape[1:])))))
        for start in range(0, shape[0], step):
            yield self.read(name, start, start + step)


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing and not required.

    Raises:
        ModelError: if it is missing and required, or is not a JSON object.
    """
    content = _parsed(path, {}, required)
    if not isinstance(content, dict):
        raise ModelError(f"'{path}' holds no JSON object; download it again.")
    return content


def read_json_list(path: Path, *, required: bool = True) -> list[Any]:
    """The list in a JSON file; empty where the file is missing and not required.

    Raises:
        ModelError: if it is missing and required, or is not a JSON list.
    """
    content = _parsed(path, [], required)
    if not isinstance(content, list):
        raise ModelError(f"'{path}' holds no JSON list; download it again.")
    return content


def _parsed(path: Path, default: Any, required: bool) -> Any:
    if not path.is_file() and not required:
        return default
    try:
        if path.exists() and not path.is_file():  # reading a pipe may never end
            raise ModelError(f"'{path}' is not an ordinary file.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{path}' is not JSON ({error}); download it again.") from error
