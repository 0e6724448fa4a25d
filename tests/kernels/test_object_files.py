"""Files compiled for an instruction set must not define symbols the linker may share.

A weak or unique symbol (an inline function, a template of a C++ header) compiled with AVX2 could be
picked for code that runs on any processor.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "custom_ops" / "kernels"
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden"]
X86_64_ROW = re.compile(r'^OTN_ISA\((\w+), x86_64, .*, "([^"]*)", "[^"]*"\)$', re.M)
KERNEL_ROW = re.compile(r"^OTN_KERNEL\((\w+), (\w+), \w+\)$", re.M)
ROW_MAGNITUDES_ROW = re.compile(r"^OTN_ROW_MAGNITUDES\((\w+)\)$", re.M)


def isa_flags() -> dict[str, list[str]]:
    """Flags of every file that is compiled for an instruction set of x86-64, by its path."""
    sets = (ROOT / "custom_ops" / "dispatch" / "instruction_sets.inc").read_text()
    rows = (KERNELS / "kernel_list.inc").read_text()
    flags = {isa: text.split() for isa, text in X86_64_ROW.findall(sets)}
    files = {f"{family}_{isa}.cc": isa for isa, family in KERNEL_ROW.findall(rows)}
    files |= {f"common/row_magnitudes_{isa}.cc": isa for isa in ROW_MAGNITUDES_ROW.findall(rows)}
    return {name: flags[isa] for name, isa in files.items() if isa in flags}


ISA_FLAGS = isa_flags()
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
    target = tmp_path / "kernel.o"
    compile_object(KERNELS / name, target, ISA_FLAGS[name])
    assert shared_symbols(target) == []


def test_every_kernel_file_has_a_row() -> None:
    rows = (KERNELS / "kernel_list.inc").read_text()
    listed = {f"{family}_{isa}.cc" for isa, family in KERNEL_ROW.findall(rows)}
    assert {path.name for path in KERNELS.glob("*.cc")} == listed
    assert {isa for isa, _ in KERNEL_ROW.findall(rows)} >= {"scalar", "portable", "avx2"}
    assert len(ISA_FLAGS) >= 8
    assert all(flags for flags in ISA_FLAGS.values())


def test_shared_symbol_is_found(tmp_path: Path) -> None:
    source = tmp_path / "weak.cc"
    source.write_text("inline int Weak() { return 1; }\nint (*use)() = Weak;\n")
    target = tmp_path / "weak.o"
    compile_object(source, target, [])
    assert any("Weak" in symbol for symbol in shared_symbols(target))
