"""onnxruntime, imported where something of it is first used.

Starting it takes longer than most of what a command line is asked (``--help``, ``--version``), and
from version 1.32 on it sends telemetry unless ``ORT_DISABLE_TELEMETRY`` is set when it starts.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import MutableMapping
from importlib import metadata
from typing import Any

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"


def without_telemetry(environment: MutableMapping[str, str] = os.environ) -> None:
    """Keep onnxruntime's telemetry off in this process and its children, where nobody chose.

    Args:
        environment: changed in place; a user's own ``ORT_DISABLE_TELEMETRY``, whatever it says, is
            left alone.
    """
    environment.setdefault(TELEMETRY_VARIABLE, "1")


def version() -> str:
    """The installed version, without starting it where its package says so."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and others have names of their own
        return str(importlib.import_module("onnxruntime").__version__)


def __getattr__(name: str) -> Any:
    # What Python itself asks a module for (__path__, __all__) is not onnxruntime's.
    if name.startswith("__") and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("onnxruntime"), name)
