"""A library built from a copy of the sources, for tests that change them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Sessions need these and kernels do not. Without them no headers of ONNX Runtime are needed.
OF_SESSIONS = ("register", "custom_op", "gather", "op", "node_reader", "session_host")

NEEDS = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds for Linux"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


def copy_sources(tree: Path) -> None:
    """Copy what a library of kernels is built from, without what sessions need."""
    for folder in ("custom_ops", "cmake"):
        shutil.copytree(ROOT / folder, tree / folder)
    text = (ROOT / "CMakeLists.txt").read_text()
    for name in OF_SESSIONS:
        line = f"  custom_ops/{name}.cc\n"
        assert line in text
        text = text.replace(line, "")
    (tree / "CMakeLists.txt").write_text(text)
    (tree / "headers").mkdir()
    (tree / "headers" / "onnxruntime_cxx_api.h").touch()


def add_kernel(tree: Path, name: str, family: str, source: str) -> None:
    """Add a portable kernel by the row and file of docs/writing_a_kernel.md."""
    kernels = tree / "custom_ops" / "kernels"
    (kernels / f"{family}_portable.cc").write_text(source)
    row = f"OTN_KERNEL(portable, {family}, {name})\n"
    insert_line(kernels / "kernel_list.inc", "OTN_ROW_MAGNITUDES(", row)


def insert_line(path: Path, before: str, line: str) -> None:
    """Insert a line before the first one that begins with `before`."""
    text = path.read_text()
    first = text.index("\n" + before) + 1
    path.write_text(text[:first] + line + text[first:])


def compile_library(
    tree: Path, build: Path, *more: str, processor: str = "none", flags: str = "-O0 -g0"
) -> Path:
    """Build with more options of CMake; by default for a processor without rows of its own.

    Without optimization, unless `flags` say otherwise: fast to build.
    """
    options = [
        "-DCMAKE_BUILD_TYPE=Debug",
        f"-DCMAKE_CXX_FLAGS={flags}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        f"-DCMAKE_SYSTEM_PROCESSOR={processor}",
        "-DONNX_TERNARY_WERROR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DONNXRUNTIME_INCLUDE_DIR={tree / 'headers'}",
        *more,
    ]
    if shutil.which("ccache") is not None:
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    configure = ["cmake", "-G", "Ninja", "-S", str(tree), "-B", str(build), *options]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "libonnx_ternary_ops.so"


def run_python(library: Path, code: str) -> tuple[str, str]:
    """What a program prints to stdout and stderr that uses the library."""
    environment = {**os.environ, "ONNX_TERNARY_LIBRARY": str(library)}
    environment.pop("ONNX_TERNARY_ISA", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout, done.stderr
