"""Kernels of instruction sets that few processors have, on any with AVX2.

They reach those instructions through headers that have a second implementation, which a library
built with ONNX_TERNARY_EMULATE has instead. The real ones are tested where they exist, by the same
tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnx_ternary.native import kernels
from tests.support import scratch_library
from tests.support.kernel_node import BY_NAME, LIST, make_node

ROOT = Path(__file__).resolve().parents[2]
EMULATED = ("avxvnni",)
# What finds a kernel that reads, multiplies, adds or weights wrongly.
CASES = (
    "any_node or any_column_split or code_three or largest_sums or lowest_digits or misaligned"
    " or its_own_weight or nan_rows or integers_are_exact or groups_of_any_size or large_group"
    " or largest_weighted or lowest_activations or forced_isa"
)
TESTS = ("tests/kernels/test_kernels.py", "tests/kernels/test_uint8.py")
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
HAS_AVX2 = "avx2" in LIST["cpu"]

pytestmark = scratch_library.NEEDS


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the emulated kernels and those of AVX2, portable and scalar."""
    if not HAS_AVX2:
        pytest.skip("a processor without AVX2")
    if SANITIZED:
        pytest.skip("CI builds the sanitized library with ONNX_TERNARY_EMULATE itself")
    folder = tmp_path_factory.mktemp("emulated")
    tree = folder / "tree"
    scratch_library.copy_sources(tree)
    rows = tree / "custom_ops" / "dispatch" / "instruction_sets.inc"
    text, count = re.subn(r"OTN_ISA\((avx512\w+), x86_64", r"OTN_ISA(\1, none", rows.read_text())
    assert count == 3
    rows.write_text(text)
    return scratch_library.compile_library(
        tree, folder / "build", "-DONNX_TERNARY_EMULATE=ON", processor="x86_64", flags="-O1 -g0"
    )


def test_emulated_library_has_the_kernels(library: Path) -> None:
    printed, _ = scratch_library.run_python(
        library,
        "import json\n"
        "from onnx_ternary.native import kernels\n"
        "print(json.dumps(kernels.list_kernels()))",
    )
    listed = json.loads(printed)
    supported = {each["isa"] for each in listed["kernels"] if each["supported"]}
    assert supported == {"scalar", "portable", "avx2", *EMULATED}
    # A processor without them says so.
    features = {feature.replace("_", "") for feature in listed["cpu"]}
    assert features == {feature.replace("_", "") for feature in LIST["cpu"]}


@pytest.mark.parametrize("isa", EMULATED)
def test_kernels_of_the_instruction_set(isa: str, library: Path) -> None:
    """Their tests, as they run on a processor that has it."""
    environment = {**os.environ, "ONNX_TERNARY_LIBRARY": str(library)}
    environment.pop("ONNX_TERNARY_ISA", None)
    names = [each["name"] for each in LIST["kernels"] if each["isa"] == isa]
    assert names
    chosen = " or ".join(names)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(
        [*command, "-k", f"({chosen}) and ({CASES})"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    counted = re.search(r"(\d+) passed", done.stdout)
    assert counted is not None
    assert int(counted[1]) >= 60, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("activation", ["float", "int8"])
@pytest.mark.parametrize("isa", EMULATED)
def test_real_instructions_multiply(isa: str, activation: str) -> None:
    """A skip here says that the tests saw the second implementation only."""
    if isa not in LIST["cpu"]:
        pytest.skip(f"this processor has no {isa}: its kernels were tested emulated")
    node = make_node(np.random.default_rng(0), "packed", activation, 256, 12, scale_kind="tensor")
    x = np.random.default_rng(1).integers(-100, 101, (2, 256)).astype(np.float32)
    x[:, 0] = 127
    with kernels.forced(isa=isa):
        y, used = node.run(x, None)
    assert {BY_NAME[name]["isa"] for name in used.split(",")} == {isa}
    expected, _ = node.run(x, f"packed_reference_{activation}_scalar")
    np.testing.assert_array_equal(y, expected)
