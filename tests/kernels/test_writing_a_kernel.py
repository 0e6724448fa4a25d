"""docs/writing_a_kernel.md is complete: its file and its row, and nothing else, make a kernel."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path

from tests.support import scratch_library

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "writing_a_kernel.md"
NAME = "packed_gemm_float_example_portable"

pytestmark = scratch_library.NEEDS


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


def kernels_of(library: Path) -> dict[str, dict[str, object]]:
    functions = ctypes.CDLL(str(library))
    functions.otn_kernels_json.restype = ctypes.c_char_p
    listed = json.loads(functions.otn_kernels_json())["kernels"]
    return {kernel["name"]: kernel for kernel in listed}


def test_page_makes_a_kernel(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    scratch_library.copy_sources(tree)
    assert NAME not in (tree / "custom_ops" / "kernels" / "kernel_list.inc").read_text()
    follow_the_page(tree)
    library = scratch_library.compile_library(tree, tmp_path / "build")
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
