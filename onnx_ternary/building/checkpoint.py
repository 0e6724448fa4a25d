"""A checkpoint folder: config.json, and tensors in one safetensors file or in indexed shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401  registers bfloat16, which safetensors looks up by name
import numpy as np
from numpy.typing import NDArray

from onnx_ternary.building.source import Source, read_json
from onnx_ternary.errors import ModelError
from onnx_ternary.model_files.targets import check_name

if TYPE_CHECKING:
    from safetensors import safe_open

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8"}


class Checkpoint(Source):
    """Tensors by name, read one at a time.

    A file is mapped only while a tensor is read, so that its pages do not stay in memory.

    Args:
        folder: holds config.json and safetensors files, as `save_pretrained` writes them.
        tokenizer: the folder that has the tokenizer's files; None for ``folder``.

    Raises:
        ModelError: if a file is missing or cannot be read, or the safetensors library is missing.
    """

    def __init__(
        self, folder: str | PathLike[str], tokenizer: str | PathLike[str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.tokenizer = self.folder if tokenizer is None else Path(tokenizer)
        check_name(self.folder)
        if not self.folder.is_dir():
            raise ModelError(
                f"'{self.folder}' is not a folder; expected a checkpoint with config.json and "
                "safetensors files."
            )
        self._open: type[safe_open] = _safe_open()
        files = dict(self._locate())
        # A body that was saved without a head has names without the body's.
        self._prefix = "model." if "embed_tokens.weight" in files else ""
        self._files = {f"{self._prefix}{name}": path for name, path in files.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """A JSON file of the folder; empty where it is missing and not required.

        Raises:
            ModelError: if it is missing and required, or is not a JSON object.
        """
        return read_json(self.folder / name, required=required)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raise ModelError if there is no such tensor."""
        with self._reader(name) as reader:
            return tuple(reader.get_slice(self._stored(name)).get_shape())

    def dtype(self, name: str) -> np.dtype[Any]:
        """float32, float16, bfloat16 or uint8.

        Raises:
            ModelError: if there is no such tensor, or it has another dtype.
        """
        with self._reader(name) as reader:
            found = reader.get_slice(self._stored(name)).get_dtype()
        if found not in _DTYPES:
            raise ModelError(
                f"Tensor '{name}' of '{self._files[name]}' is {found}; expected float32, float16, "
                "bfloat16 or, packed, uint8."
            )
        return np.dtype(_DTYPES[found])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """A tensor, or some of its rows, in its own dtype.

        Raises:
            ModelError: as `dtype`, or if the tensor cannot be read.
        """
        self.dtype(name)
        with self._reader(name) as reader:
            part: NDArray[Any]
            if stop is None and start == 0:
                part = reader.get_tensor(self._stored(name))
            else:
                sliced = reader.get_slice(self._stored(name))
                part = sliced[start : min(sliced.get_shape()[0], stop or sys.maxsize)]
            return part

    def _locate(self) -> Iterator[tuple[str, Path]]:
        if (self.folder / INDEX).is_file():
            weight_map = self.json(INDEX).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ModelError(f"'{self.folder / INDEX}' has no weight_map; download it again.")
            names = sorted({str(each) for each in weight_map.values()})
        else:
            names = [WEIGHTS]
        for name in names:
            path = self.folder / name
            # A name of the index must not lead out of the folder.
            if Path(name).name != name or not path.is_file():
                raise ModelError(
                    f"There is no file '{path}'; a checkpoint has {WEIGHTS}, or {INDEX} and the "
                    "files it names."
                )
            with self._opened(path) as reader:
                yield from ((key, path) for key in reader.keys())  # noqa: SIM118  not a mapping

    def _stored(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _reader(self, name: str) -> Any:
        if name not in self._files:
            raise ModelError(
                f"'{self.folder}' has no tensor '{name}', which its architecture needs."
            )
        return self._opened(self._files[name])

    def _opened(self, path: Path) -> Any:
        try:
            return self._open(path, framework="np")
        except Exception as error:  # the library's own class, which has no public base
            raise ModelError(
                f"'{path}' is not a safetensors file, or is cut short ({error}); download it again."
            ) from error


def _safe_open() -> type[safe_open]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ModelError(
            "Reading a checkpoint needs the safetensors library; install it with "
            "'pip install onnx-ternary[genai]'."
        ) from error
    return safe_open
