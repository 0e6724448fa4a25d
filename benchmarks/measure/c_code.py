"""C compiled by the system's compiler for this processor, called through ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def compiled(source: str, optimization: str = "-O3") -> ctypes.CDLL:
    """The library of a source text.

    Raises:
        SystemExit: if there is no C compiler.
    """
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        raise SystemExit("This benchmark needs a C compiler (cc, gcc or clang).")
    with tempfile.TemporaryDirectory() as folder:
        text, target = Path(folder) / "code.c", Path(folder) / "code.so"
        text.write_text(source, encoding="utf-8")
        flags = [optimization, "-march=native", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(text), "-o", str(target)], check=True)
        return ctypes.CDLL(str(target))
