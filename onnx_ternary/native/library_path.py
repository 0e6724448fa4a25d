"""Where the C++ library lies."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from onnx_ternary.errors import LibraryError

_FILE_NAMES = {"win32": "libonnx_ternary_ops.dll", "darwin": "libonnx_ternary_ops.so"}


def get_library_path() -> str:
    """Path of the C++ library, for ``SessionOptions.register_custom_ops_library``.

    Looked for in the environment variable ``ONNX_TERNARY_LIBRARY``, beside this package, and where
    the installed distribution keeps it (editable installs).

    Raises:
        LibraryError: if it is in none of these places.
    """
    name = _FILE_NAMES.get(sys.platform, "libonnx_ternary_ops.so")
    override = os.environ.get("ONNX_TERNARY_LIBRARY")
    if override:
        candidates = [Path(override)]
    else:
        candidates = [Path(__file__).parents[1] / name]
        try:
            installed = distribution("onnx-ternary").locate_file(f"onnx_ternary/{name}")
            candidates.append(Path(str(installed)))
        except PackageNotFoundError:
            pass
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    if override:
        raise LibraryError(
            f"The environment variable ONNX_TERNARY_LIBRARY names '{override}', which is no file; "
            "change or unset it."
        )
    looked_at = ", ".join(map(str, candidates))
    raise LibraryError(
        f"The onnx-ternary library {name} is missing; looked at {looked_at}. Install the package "
        "with 'pip install .', or set ONNX_TERNARY_LIBRARY to the library's path."
    )
