"""Files compiled for an instruction set must not define symbols the linker may share.

A weak or unique symbol (an inline function, a template of a C++ header) compiled with AVX2 could be
picked for code that runs on any processor. Nor may they hold instructions of a later instruction
set. Objects of 64-bit ARM are looked at wherever a compiler for it is, also a cross compiler.
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
ISA_ROW = re.compile(r'^OTN_ISA\((\w+), (\w+), .*, "([^"]*)", "[^"]*"\)$', re.M)
KERNEL_ROW = re.compile(r"^OTN_KERNEL\((\w+), (\w+), \w+\)$", re.M)
ROW_MAGNITUDES_ROW = re.compile(r"^OTN_ROW_MAGNITUDES\((\w+)\)$", re.M)
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def isa_flags(architecture: str) -> dict[str, list[str]]:
    """Flags of every file that is compiled for an instruction set of it, by its path."""
    sets = (ROOT / "custom_ops" / "dispatch" / "instruction_sets.inc").read_text()
    rows = (KERNELS / "kernel_list.inc").read_text()
    flags = {isa: text.split() for isa, of, text in ISA_ROW.findall(sets) if of == architecture}
    files = {f"{family}_{isa}.cc": isa for isa, family in KERNEL_ROW.findall(rows)}
    files |= {f"common/row_magnitudes_{isa}.cc": isa for isa in ROW_MAGNITUDES_ROW.findall(rows)}
    return {name: flags[isa] for name, isa in files.items() if isa in flags}


# Architecture and file.
ISA_FILES = {
    (architecture, name): flags
    for architecture in ("x86_64", "aarch64")
    for name, flags in isa_flags(architecture).items()
}
SHARED = set("WwVvu")
# Instructions by what they need, in 64-bit ARM objects.
DOTPROD = {"sdot", "udot"}
I8MM = {"smmla", "ummla", "usmmla", "usdot", "sudot"}
# What the objects of an instruction set hold of them, and what not.
ARM_INSTRUCTIONS = {
    "portable": (set[str](), DOTPROD | I8MM),
    "neon": (set[str](), DOTPROD | I8MM),
    "neon_dotprod": ({"sdot"}, I8MM),
    "neon_i8mm": ({"smmla"}, set[str]()),
}

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="nm on ELF objects: Linux only"
)


def tool(name: str, architecture: str) -> str:
    """A program of the compiler for an architecture; the test is skipped where there is none."""
    program = name if architecture == MACHINE else f"{architecture}-linux-gnu-{name}"
    if program == "g++":
        program = "c++"
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    return program


def shared_symbols(path: Path, architecture: str) -> list[str]:
    command = [tool("nm", architecture), "-C", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = (line.split(maxsplit=2) for line in listing.stdout.splitlines())
    return [" ".join(line[-2:]) for line in lines if len(line) >= 2 and line[-2] in SHARED]


def instructions(path: Path, architecture: str) -> set[str]:
    """Names of all instructions in an object."""
    command = [tool("objdump", architecture), "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"^\s+[0-9a-f]+:\s+([a-z][\w.]*)", listing.stdout, re.M))


def compile_object(
    source: Path, target: Path, flags: list[str], architecture: str = MACHINE
) -> None:
    # Two tests look at the objects of 64-bit ARM.
    cache = ["ccache"] if shutil.which("ccache") is not None else []
    compiler = [*cache, tool("g++", architecture), *FLAGS, *flags]
    subprocess.run([*compiler, "-c", str(source), "-o", str(target)], check=True)


@pytest.mark.parametrize(("architecture", "name"), sorted(ISA_FILES))
def test_isa_object_has_no_shared_symbols(architecture: str, name: str, tmp_path: Path) -> None:
    target = tmp_path / "kernel.o"
    compile_object(KERNELS / name, target, ISA_FILES[architecture, name], architecture)
    assert shared_symbols(target, architecture) == []


@pytest.mark.parametrize("isa", sorted(ARM_INSTRUCTIONS))
def test_arm_object_holds_no_later_instructions(isa: str, tmp_path: Path) -> None:
    holds, lacks = ARM_INSTRUCTIONS[isa]
    paths = sorted(KERNELS.glob(f"packed_*_{isa}.cc"))
    assert paths
    for path in paths:
        target = tmp_path / "kernel.o"
        compile_object(path, target, ISA_FILES.get(("aarch64", path.name), []), "aarch64")
        found = instructions(target, "aarch64")
        assert {"ldr", "add", "ret"} <= found
        assert found & lacks == set(), path.name
        assert holds <= found, path.name


def test_later_instruction_is_found(tmp_path: Path) -> None:
    source = tmp_path / "later.cc"
    source.write_text(
        "#include <arm_neon.h>\n"
        "int32x4_t a(int32x4_t x, int8x16_t y) { return vdotq_s32(x, y, y); }\n"
        "int32x4_t b(int32x4_t x, int8x16_t y) { return vmmlaq_s32(x, y, y); }\n"
    )
    target = tmp_path / "later.o"
    compile_object(source, target, ["-march=armv8.2-a+dotprod+i8mm"], "aarch64")
    assert {"sdot", "smmla"} <= instructions(target, "aarch64")


def test_every_kernel_file_has_a_row() -> None:
    rows = (KERNELS / "kernel_list.inc").read_text()
    listed = {f"{family}_{isa}.cc" for isa, family in KERNEL_ROW.findall(rows)}
    assert {path.name for path in KERNELS.glob("*.cc")} == listed
    assert {isa for isa, _ in KERNEL_ROW.findall(rows)} >= {"scalar", "portable", "avx2"}
    assert len(isa_flags("x86_64")) >= 8
    assert all(flags for flags in isa_flags("x86_64").values())
    assert len(isa_flags("aarch64")) >= 3
    without = [name for name, flags in isa_flags("aarch64").items() if not flags]
    assert without == ["packed_decode_neon.cc", "packed_lookup_neon.cc"]


def test_only_kernels_and_their_dispatch_name_an_instruction_set() -> None:
    naming = {path for path in (ROOT / "custom_ops").rglob("*.*") if "Isa::" in path.read_text()}
    rooms = {path.relative_to(ROOT / "custom_ops").parts[0] for path in naming}
    assert rooms == {"dispatch", "kernels"}


def test_shared_symbol_is_found(tmp_path: Path) -> None:
    source = tmp_path / "weak.cc"
    source.write_text("inline int Weak() { return 1; }\nint (*use)() = Weak;\n")
    target = tmp_path / "weak.o"
    compile_object(source, target, [])
    assert any("Weak" in symbol for symbol in shared_symbols(target, MACHINE))
