"""Kernels of instruction sets that few processors have, on any with AVX2.

They reach those instructions through headers that have a second implementation, which a library
built with ONNX_TERNARY_EMULATE has instead. The real ones are tested where they exist, by the same
tests.
"""

from __future__ import annotations

import errno
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
EMULATED = ("avxvnni", "amx_int8")
# What finds a kernel that reads, multiplies, adds or weights wrongly.
CASES = (
    "any_node or every_number or any_column_split or code_three or largest_sums or lowest_digits"
    " or misaligned or its_own_weight or nan_rows or integers_are_exact or groups_of_any_size"
    " or large_group or largest_weighted or lowest_activations or forced_isa"
)
TESTS = ("tests/kernels/test_kernels.py", "tests/kernels/test_uint8.py")
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
HAS_AVX2 = "avx2" in LIST["cpu"]

pytestmark = scratch_library.NEEDS


def build(folder: Path) -> Path:
    tree = folder / "tree"
    scratch_library.copy_sources(tree)
    rows = tree / "custom_ops" / "dispatch" / "instruction_sets.inc"
    text, count = re.subn(r"OTN_ISA\((avx512\w+), x86_64", r"OTN_ISA(\1, none", rows.read_text())
    assert count == 3
    rows.write_text(text)
    return scratch_library.compile_library(
        tree, folder / "build", "-DONNX_TERNARY_EMULATE=ON", processor="x86_64", flags="-O1 -g0"
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with the emulated kernels and those of AVX2, portable and scalar."""
    if not HAS_AVX2:
        pytest.skip("a processor without AVX2")
    if SANITIZED:
        pytest.skip("CI builds the sanitized library with ONNX_TERNARY_EMULATE itself")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return build(tmp_path_factory.mktemp("emulated"))
    import fcntl  # not on Windows, where these tests are skipped

    # The first process that comes here builds for all.
    folder = tmp_path_factory.getbasetemp().parent / "emulated"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = folder / "build" / "libonnx_ternary_ops.so"
        return built if built.exists() else build(folder)


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


# Prints which kernels run one row and two of bits in blocks of 128, of smaller ones, and of 2bit.
ONE_ROW = """
import json
import numpy as np
from tests.support.kernel_node import make_node
told = {}
for activation in ("float", "int8"):
    for storage, alphabet, block in LAYERS:
        node = make_node(np.random.default_rng(0), "packed", activation, 256, 12, storage=storage,
                         alphabet=alphabet, block_size=block)
        for rows in (1, 2):
            x = np.random.default_rng(1).normal(size=(rows, 256)).astype(np.float32)
            told[f"{activation} {storage} {block} {rows}"] = node.run(x, None)[1]
print(json.dumps(told))
"""


def test_one_row_of_bits_is_looked_up(library: Path) -> None:
    """AVX2's lookup comes before AVX-VNNI, for one row of bits in blocks of 128 alone."""
    layers = [("1bit", "binary_pm", 128), ("1bit", "binary_01", 64), ("2bit", "ternary", 128)]
    printed, _ = scratch_library.run_python(library, ONE_ROW.replace("LAYERS", repr(layers)))
    vnni = {"float": "packed_gemv_float_2x2_avxvnni", "int8": "packed_gemm_int8_6x2_avxvnni"}
    assert json.loads(printed) == {
        f"{activation} {storage} {block} {rows}": f"packed_gemv_{activation}_1x4_avx2"
        if (block, storage, rows) == (128, "1bit", 1)
        else vnni[activation]
        for activation in vnni
        for storage, _, block in layers
        for rows in (1, 2)
    }


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


# Answers of Linux: by filters of containers, before 5.16, with an alternate signal stack too small.
REFUSALS = [errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.EBUSY, errno.ENOSPC]
# Prints the kernels that ran for every answer, and what forcing one says.
PERMISSIONS = """
import ctypes, json
import numpy as np
from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels
from onnx_ternary.native.binding import library
from tests.support.kernel_node import make_node
answer = library().otn_force_tile_permission
answer.argtypes = [ctypes.c_int32]
answer.restype = None
node = make_node(np.random.default_rng(0), "packed", ACTIVATION, 256, 40)
x = np.random.default_rng(1).normal(size=(9, 256)).astype(np.float32)
told = []
for error in [*REFUSALS, 0, -1]:
    answer(error)
    said = []
    for force in (lambda: kernels.force_isa("amx_int8"), lambda: kernels.force_kernel(NAME),
                  lambda: node.run(x, NAME)):
        try:
            force()
        except LibraryError as refusal:
            said.append(str(refusal))
    kernels.force_isa("")
    kernels.force_kernel("")
    listed = {each["name"]: each["supported"] for each in kernels.list_kernels()["kernels"]}
    told.append([node.run(x, None)[1], said, listed[NAME]])
print(json.dumps(told))
"""


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_next_kernel_serves_a_process_without_tiles(activation: str, library: Path) -> None:
    name = next(
        each["name"]
        for each in LIST["kernels"]
        if (each["isa"], each["activation"]) == ("amx_int8", activation)
    )
    code = PERMISSIONS.replace("ACTIVATION", repr(activation)).replace("NAME", repr(name))
    printed, messages = scratch_library.run_python(
        library, code.replace("*REFUSALS", f"*{REFUSALS!r}")
    )
    *refused, granted, lifted = json.loads(printed)
    assert len(refused) == len(REFUSALS)
    for used, said, is_listed in refused:
        assert not is_listed
        assert {BY_NAME[each]["isa"] for each in used.split(",")} <= {"avx2", "avxvnni"}
        assert len(said) == 3
        assert all("needs the tiles of AMX, which the operating system" in each for each in said)
    assert granted == lifted == [name, [], True]
    assert messages == ""


# What Linux says of its own accord: bit 18 is XTILEDATA.
ASKS = """
import ctypes
import numpy as np
from onnx_ternary.native.binding import library
permitted = ctypes.c_uint64()
def has_tiles():
    ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(permitted))  # may be refused too
    return permitted.value >> 18 & 1
library()
before = has_tiles()
from tests.support.kernel_node import make_node
node = make_node(np.random.default_rng(0), "packed", "int8", 256, 40)
_, used = node.run(np.ones((9, 256), np.float32), None)
print(before, has_tiles(), used)
"""


def test_tiles_are_asked_for_when_a_kernel_needs_them() -> None:
    if "amx_int8" not in LIST["cpu"] or SANITIZED:
        pytest.skip("this processor has no AMX, or the library emulates it")
    run = subprocess.run(
        [sys.executable, "-c", ASKS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    before, after, used = run.stdout.split()
    assert before == "0"
    assert (after == "1") == (used == "packed_gemm_int8_32x32_amx")


# Prints the two tiles that codes become, by the header as OTN_EMULATE or as AVX-512 has it.
DECODING = """
#if defined(WITH_SIMDE)
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/gfni.h>
#include <string.h>
// SIMDe 0.7 lacks it.
static __m512i ShuffleLanes(__m512i a, __m512i b, int which) {
  char from[2][64], to[64];
  memcpy(from[0], &a, 64);
  memcpy(from[1], &b, 64);
  for (int i = 0; i < 4; ++i) memcpy(to + 16 * i, from[i / 2] + 16 * (which >> 2 * i & 3), 16);
  __m512i result;
  memcpy(&result, to, 64);
  return result;
}
#undef _mm512_shuffle_i64x2
#define _mm512_shuffle_i64x2(a, b, which) ShuffleLanes(a, b, which)
#endif
#include "kernels/common/tiles_amx.h"
#include <stdio.h>
int main() {
  alignas(64) uint8_t codes[4][128], out[2048];
  uint64_t state = 1;
  for (auto& tile : codes) {
    for (uint8_t& byte : tile) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = (uint8_t)(state >> 56);
    }
  }
  const uint8_t* columns[4] = {codes[0], codes[1], codes[2], codes[3]};
  onnx_ternary::amx_int8::DecodeSpan(columns, out);
  for (uint8_t byte : out) putchar('0' + byte);
}
"""


def decoded(folder: Path, name: str, *flags: str) -> str:
    """What the program above prints, built with some flags."""
    source, program = folder / "decoding.cc", folder / name
    source.write_text(DECODING)
    command = ["c++", "-std=c++17", "-O1", "-Wno-psabi", f"-I{ROOT / 'custom_ops'}", *flags]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("how", ["SIMDe", "AVX-512 and GFNI"])
def test_codes_become_the_same_tiles(how: str, tmp_path: Path) -> None:
    """The step from codes to tiles, in AVX-512 and GFNI, against the emulated one."""
    if not HAS_AVX2 or SANITIZED:
        pytest.skip("a processor without AVX2, or a sanitizer that programs here are not built for")
    if how == "SIMDe":
        probe = ["c++", "-fsyntax-only", "-include", "simde/x86/gfni.h", "-x", "c++", os.devnull]
        if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs SIMDe (Debian's libsimde-dev)")
        flags = ["-DWITH_SIMDE", "-mavx2", "-mfma", "-mamx-tile"]
    else:
        if not {"gfni", "avx512f", "avx512bw"} <= set(LIST["cpu"]):
            pytest.skip("this processor has no AVX-512 or no GFNI")
        flags = ["-mavx512f", "-mavx512bw", "-mgfni", "-mamx-tile"]
    plain = decoded(tmp_path, "plain", "-DOTN_EMULATE", "-mavx2", "-mfma")
    assert len(plain) == 2048
    assert set(plain) == set("0123")
    assert decoded(tmp_path, "vectors", *flags) == plain
