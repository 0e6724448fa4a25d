"""Kernels selected as on another core, for the whole process."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_ternary.native.binding import library


@contextmanager
def core(midr: int = 0, apple_family: int = 0) -> Iterator[None]:
    """Selects as on the core of these ids: MIDR_EL1, or hw.cpufamily of macOS."""
    force = library().otn_force_core
    force.argtypes = [ctypes.c_uint32, ctypes.c_uint32]
    force.restype = None
    try:
        force(midr, apple_family)
        yield
    finally:
        force(0, 0)
