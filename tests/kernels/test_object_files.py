"""Files compiled for an instruction set must not define symbols the linker may share.

A weak or unique symbol (an inline function, a template of a C++ header) compiled with AVX2 could be
picked for code that runs on any processor.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "custom_ops" / "kernels"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden"]
AVX512BW = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mbmi2"]
AVX2 = ["-mavx2", "-mfma", "-mbmi2", "-mf16c", "-DOTN_HAVE_AVX2"]
ISA_FLAGS = {
    "packed_decode_avx2": AVX2,
    "packed_lookup_avx2": AVX2,
    "rsr_avx2": AVX2,
    "packed_lookup_avx512bw": [*AVX512BW, "-DOTN_HAVE_AVX512BW"],
    "packed_lookup_avx512vbmi": [*AVX512BW, "-mavx512vbmi", "-DOTN_HAVE_AVX512VBMI"],
    "packed_decode_avx512vnni": [*AVX512BW, "-mavx512vnni", "-DOTN_HAVE_AVX512VNNI"],
}
SHARED = set("WwVvu")

pytestmark = [
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="nm on ELF objects: Linux only"
    ),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 objects"),
    pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]


def shared_symbols(path: Path) -> list[str]:
    listing = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True)
    lines = (line.split(maxsplit=2) for line in listing.stdout.splitlines())
    return [" ".join(line[-2:]) for line in lines if len(line) >= 2 and line[-2] in SHARED]


def compile_object(source: Path, target: Path, flags: list[str]) -> None:
    subprocess.run(["c++", *FLAGS, *flags, "-c", str(source), "-o", str(target)], check=True)


@pytest.mark.parametrize("name", sorted(ISA_FLAGS))
def test_isa_object_has_no_shared_symbols(name: str, tmp_path: Path) -> None:
    target = tmp_path / f"{name}.o"
    compile_object(KERNELS / f"{name}.cc", target, ISA_FLAGS[name])
    assert shared_symbols(target) == []


def test_every_isa_file_is_checked() -> None:
    of_an_isa = {path.stem for path in KERNELS.glob("*.cc")} - {
        path.stem for path in KERNELS.glob("*.cc") if path.stem.endswith(("_scalar", "_portable"))
    }
    assert of_an_isa == set(ISA_FLAGS)


def test_shared_symbol_is_found(tmp_path: Path) -> None:
    source = tmp_path / "weak.cc"
    source.write_text("inline int Weak() { return 1; }\nint (*use)() = Weak;\n")
    target = tmp_path / "weak.o"
    compile_object(source, target, [])
    assert any("Weak" in symbol for symbol in shared_symbols(target))
