"""docs/writing_a_kernel.md is complete: its file and its row, and nothing else, make a kernel."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "writing_a_kernel.md"
NAME = "packed_gemm_float_example_portable"
# Sessions need these and kernels do not. Without them no headers of ONNX Runtime are needed.
OF_SESSIONS = ("register", "op", "node_reader", "session_host")

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="builds for Linux"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake"),
    pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


def follow_the_page(tree: Path) -> None:
    page = PAGE.read_text()
    source, row = re.findall(r"```cpp\n(.*?)```", page, re.S)
    path = re.search(r"here `(custom_ops/kernels/\w+\.cc)`", page)
    assert path is not None
    (tree / path[1]).write_text(source)
    listed = tree / "custom_ops" / "kernels" / "kernel_list.inc"
    text = listed.read_text()
    marker = "\nOTN_ROW_MAGNITUDES("
    assert text.count(marker) >= 1
    listed.write_text(text.replace(marker, "\n" + row + marker.lstrip("\n"), 1))


def scratch_copy(tree: Path) -> None:
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


def compile_library(tree: Path, build: Path) -> Path:
    """Builds for a processor without rows of its own, without optimization: fast to build."""
    options = [
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_CXX_FLAGS=-O0 -g0",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=none",
        "-DONNX_TERNARY_WERROR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DONNXRUNTIME_INCLUDE_DIR={tree / 'headers'}",
    ]
    if shutil.which("ccache") is not None:
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    configure = ["cmake", "-G", "Ninja", "-S", str(tree), "-B", str(build), *options]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "libonnx_ternary_ops.so"


def kernels_of(library: Path) -> dict[str, dict[str, object]]:
    functions = ctypes.CDLL(str(library))
    functions.otn_kernels_json.restype = ctypes.c_char_p
    listed = json.loads(functions.otn_kernels_json())["kernels"]
    return {kernel["name"]: kernel for kernel in listed}


def test_page_makes_a_kernel(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    scratch_copy(tree)
    assert NAME not in (tree / "custom_ops" / "kernels" / "kernel_list.inc").read_text()
    follow_the_page(tree)
    library = compile_library(tree, tmp_path / "build")
    kernels = kernels_of(library)
    assert kernels[NAME] == {
        "name": NAME,
        "index_format": "packed",
        "activation": "float",
        "isa": "portable",
        "supported": True,
        "max_rows": 8,
        "fixed_point": False,
    }
    # Rows of other architectures are not built.
    assert {kernel["isa"] for kernel in kernels.values()} == {"scalar", "portable"}
