"""Count what the loops of the NEON kernels cost, without an ARM processor.

Compiles the kernels' sources as the library is compiled, finds the loops of each kernel in the
assembly, counts their instructions and asks llvm-mca for cycles. Nothing is timed: llvm-mca knows
ports and latencies, not caches and branches.

    python benchmarks/count_kernels.py                # a table
    python benchmarks/count_kernels.py --json FILE    # and as data
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "custom_ops"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden"]
MCA = "llvm-mca-19"
# The last two are printed only: llvm's models of them are those of other processors.
CORES = ("neoverse-n1", "neoverse-v1", "neoverse-v2", "cortex-a55", "cortex-a76", "apple-m1")
MATRIX_CORES = ("neoverse-v1", "neoverse-v2")  # with smmla
# 16-byte vector operations a cycle. cortex-a55 has two pipes of 8 bytes.
VECTORS_A_CYCLE = {"neoverse-n1": 2, "neoverse-v1": 4, "neoverse-v2": 4, "cortex-a55": 1}


@dataclass(frozen=True)
class Loops:
    """The loops of one kernel that run once a span of 128 inputs.

    Attributes:
        kernel: its name.
        case: rows and scales.
        source: its file in custom_ops/kernels.
        march: what the file is compiled for.
        function: a regular expression for the mangled function.
        multiply: how the instruction that multiplies, or adds rows of tables, begins.
        macs: products of one of those, of activations and weights.
        cores: where it can run.
    """

    kernel: str
    case: str
    source: str
    march: str
    function: str
    multiply: str
    macs: float
    cores: tuple[str, ...] = CORES


DOTPROD = ("packed_decode_neon_dotprod.cc", "armv8.2-a+dotprod")
I8MM = ("packed_decode_neon_i8mm.cc", "armv8.2-a+dotprod+i8mm")
NEON = ("packed_decode_neon.cc", "armv8-a")
LOOKUP = ("packed_lookup_neon.cc", "armv8-a")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _decode() -> Iterator[Loops]:
    def tile(ops: str, vectors: int) -> str:
        return rf"7DotTileINS1_\d+{ops}ELi{vectors}EE"

    def groups(ops: str, digits: int, rows: int) -> str:
        return rf"DotTileGroupsINS1_\d+{ops}ELi{digits}ELi{rows}ELb1EE"

    yield Loops(
        "one column a vector, subtracting (ONNX Runtime's shape)",
        "1 row, groups of 64",
        "subtracting.cc",
        DOTPROD[1],
        "subtracting",
        "sdot",
        16,
    )
    column, lane, lanes = "ColumnOps", "LaneOps", "LaneGroupOps"
    for name, ops, groups_ops, cases, most in (
        ("packed_gemv_int8_1x4_neon_dotprod", column, column, (1,), 1),
        ("packed_gemm_int8_16x4_neon_dotprod", lane, lanes, (2, 4, 8, 16), 4),
    ):
        for rows in cases:
            yield Loops(name, _rows(rows), *DOTPROD, tile(ops, rows), "sdot", 16)
        yield Loops(
            name, _rows(most) + ", groups", *DOTPROD, groups(groups_ops, 1, most), "sdot", 16
        )
    for name, ops, groups_ops, cases in (
        ("packed_gemv_float_1x4_neon_dotprod", column, column, (1,)),
        ("packed_gemm_float_4x4_neon_dotprod", lane, lanes, (2, 4)),
    ):
        for rows in cases:
            yield Loops(name, _rows(rows), *DOTPROD, tile(ops, 3 * rows), "sdot", 16 / 3)
        yield Loops(name, "1 row, groups", *DOTPROD, groups(groups_ops, 3, 1), "sdot", 16 / 3)
    int8, floats = "packed_gemm_int8_16x4_neon_i8mm", "packed_gemm_float_8x4_neon_i8mm"
    for rows in (2, 4, 8, 16):
        yield Loops(
            int8, _rows(rows), *I8MM, tile("MatrixOps", rows // 2), "smmla", 32, MATRIX_CORES
        )
    yield Loops(int8, "8 rows, groups", *I8MM, groups("MatrixOps", 1, 8), "smmla", 32, MATRIX_CORES)
    for rows in (2, 4, 8):
        yield Loops(
            floats,
            _rows(rows),
            *I8MM,
            tile("MatrixOps", 3 * rows // 2),
            "smmla",
            32 / 3,
            MATRIX_CORES,
        )
    yield Loops(
        floats, "4 rows, groups", *I8MM, groups("MatrixOps", 3, 4), "smmla", 32 / 3, MATRIX_CORES
    )
    for rows in (1, 4):
        yield Loops(
            "packed_gemm_int8_4x4_neon",
            _rows(rows),
            *NEON,
            tile("WideningOps", rows),
            "sadalp",
            16,
        )
    yield Loops(
        "packed_gemv_float_1x4_neon", "1 row", *NEON, tile("WideningOps", 3), "sadalp", 16 / 3
    )


def _bits() -> Iterator[Loops]:
    """One row of bits in blocks of 128: looked up, and what brings bits to two bits (before it)."""
    for name, parts, column in (
        ("packed_gemv_int8_1x4_neon_dotprod", 2, "11DotBitsInt8"),
        ("packed_gemv_float_1x4_neon_dotprod", 5, "12DotBitsFloat"),
    ):
        macs = 2048 / (32 * parts)
        yield Loops(name, "1 row of bits", *DOTPROD, column, "tbl", macs)
        groups = f"13DotBitsGroupsILi{parts}E"
        yield Loops(name, "1 row of bits, groups", *DOTPROD, groups, "tbl", macs)
    yield Loops("bits to two bits", "4 columns", "expanding.cc", NEON[1], "expanding", "ushr", 128)


def _lookups() -> Iterator[Loops]:
    """Loops that add rows of tables: an addition is four weights of a register of rows."""
    for name, rows, register_rows, add in (
        ("packed_gemm_float_8x4_neon", "FloatRows", 4, "fadd"),
        ("packed_gemm_int8_16x4_neon", "Int16Rows", 8, "add\tv"),
    ):
        for vectors in (1, 2):
            function = (
                rf"10LookupStepINS1_\d+{rows}ELi{vectors}ELb0ELNS_12_GLOBAL__N_16FinishE0ELi8E"
            )
            case = f"{vectors * register_rows} rows, without tables and transcoding"
            yield Loops(name, case, *LOOKUP, function, add, 4 * register_rows)


# The shape of ONNX Runtime's 2-bit product as its authors describe it, written here from that
# description: a vector is one column, the zero point is subtracted from every code inside the loop,
# and each block of 64 inputs ends in a horizontal sum, a conversion and its scale. Four columns
# side by side, the most favorable reading.
SUBTRACTING = """
#include <arm_neon.h>
#include <stdint.h>
extern "C" void _ZN_subtracting(const uint8_t* codes, const int8_t* q, const float* scales,
                                int64_t num_blocks, float* y) {
  const uint8x16_t mask = vdupq_n_u8(3);
  const int8x16_t zero_point = vdupq_n_s8(1);
  float sums[4] = {0, 0, 0, 0};
  for (int64_t b = 0; b < num_blocks; ++b, codes += 64, q += 64, scales += 4) {
    for (int c = 0; c < 4; ++c) {
      const uint8x16_t v = vld1q_u8(codes + c * 16);
      const uint8x16_t fields[4] = {vandq_u8(v, mask), vandq_u8(vshrq_n_u8(v, 2), mask),
                                    vandq_u8(vshrq_n_u8(v, 4), mask), vshrq_n_u8(v, 6)};
      int32x4_t acc = vdupq_n_s32(0);
      for (int j = 0; j < 4; ++j) {
        acc = vdotq_s32(acc, vsubq_s8(vreinterpretq_s8_u8(fields[j]), zero_point),
                        vld1q_s8(q + j * 16));
      }
      sums[c] += (float)vaddvq_s32(acc) * scales[c];
    }
  }
  for (int c = 0; c < 4; ++c) y[c] = sums[c];
}
"""


# The step from bits to two bits alone, without what depends on the layer.
EXPANDING = """
#include "kernels/common/decode_neon.h"
extern "C" void _ZN_expanding(const onnx_ternary::Layer* given, const uint8_t* codes,
                              uint8_t* expanded) {
  onnx_ternary::Layer layer = *given;
  layer.storage = onnx_ternary::Storage::one_bit;
  layer.alphabet = onnx_ternary::Alphabet::binary_pm;
  layer.block_size = 128;
  layer.block_bytes = 16;
  onnx_ternary::neon::ExpandTile(&layer, codes, expanded);
}
"""
WRITTEN = {"subtracting.cc": SUBTRACTING, "expanding.cc": EXPANDING}


def assembly(source: str, march: str, folder: Path) -> str:
    target = folder / f"{source}.s"
    if not target.exists():
        path = SOURCES / "kernels" / source
        if source in WRITTEN:
            path = folder / source
            path.write_text(WRITTEN[source])
        command = [COMPILER, *FLAGS, f"-march={march}", f"-I{SOURCES}", "-S", "-o", str(target)]
        subprocess.run([*command, str(path)], check=True)
    return target.read_text()


def function_lines(text: str, name: str) -> list[str]:
    """Lines of the one function whose mangled name has `name` in it."""
    found = re.findall(rf"^(_ZN\S*{name}\S*):\n(.*?)\.cfi_endproc", text, re.MULTILINE | re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"{len(found)} functions match {name}")
    return [line.strip() for line in found[0][1].splitlines()]


def innermost_loops(lines: list[str], multiply: str | tuple[str, ...]) -> list[list[str]]:
    """Instructions of the loops that multiply and hold no loop of their own that does."""
    labels = {line[:-1]: at for at, line in enumerate(lines) if line.endswith(":")}
    spans = []
    for at, line in enumerate(lines):
        jump = re.match(r"(?:b(?!l\b)[\w.]*|cbn?z|tbn?z)\s.*?(\.L\w+)$", line)
        if jump and labels.get(jump[1], at) < at:
            spans.append((labels[jump[1]], at))
    bodies = []
    for first, last in spans:
        inside = any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
        body = [line for line in lines[first : last + 1] if re.match(r"[a-z]", line)]
        if not inside and any(line.startswith(multiply) for line in body):
            bodies.append(body)
    return bodies


def cycles(body: list[str], core: str, march: str) -> float:
    """What llvm-mca says one pass of a loop takes in the steady state."""
    features = march.partition("+")[2]
    command = [MCA, "-mtriple=aarch64", f"-mcpu={core}", "-iterations=300", "--json"]
    if features:
        command.append("-mattr=" + ",".join(f"+{name}" for name in features.split("+")))
    # Where the labels are does not matter to the model.
    text = "\n".join(re.sub(r"\.L\w+$", "0", line) for line in body)
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    summary = json.loads(answer.stdout)["CodeRegions"][0]["SummaryView"]
    return float(summary["TotalCycles"]) / float(summary["Iterations"])


SHIFTS = ("ushr", "sshr", "shl", "usra", "ssra")


def a55_issues(body: list[str]) -> int:
    """Cycles in which llvm's model of Cortex-A55 starts a pass of a loop, without any waiting.

    The model starts no instruction beside a multiplication or a logical operation of 16 bytes, and
    one load per cycle, beside which a shift or a scalar instruction may start. (llvm-mca on pairs:
    "sdot, ldr" takes two cycles, "ldr, ushr" and "ldr, add" one.)
    """
    loads = sum(line.startswith("ld") for line in body)
    alone = sum(
        re.search(r"\bv\d+\.", line) is not None and not line.startswith(("ld", *SHIFTS))
        for line in body
    )
    paired = len(body) - loads - alone
    return alone + loads + max(0, paired - loads) // 2


def count(loops: Loops, folder: Path) -> dict[str, Any]:
    """Instructions and cycles for 1,000 products."""
    lines = function_lines(assembly(loops.source, loops.march, folder), loops.function)
    bodies = innermost_loops(lines, loops.multiply)
    multiplications = sum(line.startswith(loops.multiply) for body in bodies for line in body)
    macs = multiplications * loops.macs
    spilled = sum("[sp" in line for body in bodies for line in body)
    bound = {
        core: 1000 / (loops.macs * VECTORS_A_CYCLE[core])
        for core in loops.cores
        if core in VECTORS_A_CYCLE and loops.multiply in ("sdot", "smmla")
    }
    taken = {
        core: 1000 * sum(cycles(body, core, loops.march) for body in bodies) / macs
        for core in loops.cores
    }
    issues = {}
    if "cortex-a55" in loops.cores:
        issues["cortex-a55"] = 1000 * sum(map(a55_issues, bodies)) / macs
    return {
        "kernel": loops.kernel,
        "case": loops.case,
        "loops": len(bodies),
        "stack": spilled,
        "instructions": round(1000 * sum(len(body) for body in bodies) / macs, 1),
        "cycles": {core: round(value, 1) for core, value in taken.items()},
        "issues": {core: round(value, 1) for core, value in issues.items()},
        "bound": {core: round(value, 1) for core, value in bound.items()},
    }


def _sources_first(folder: str) -> list[Loops]:
    """All loops; their sources are compiled by then."""
    kernels = [*_decode(), *_bits(), *_lookups()]
    for loops in kernels:
        assembly(loops.source, loops.march, Path(folder))
    return kernels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    options = parser.parse_args()
    # The processes of llvm-mca run side by side.
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        counts = list(pool.map(lambda loops: count(loops, Path(name)), _sources_first(name)))
    print("kernel, case: instructions, cycles for 1,000 products (share of the bound)")
    for each in counts:
        cells = []
        for core, taken in each["cycles"].items():
            share = f" ({each['bound'][core] / taken:.0%})" if core in each["bound"] else ""
            if core in each["issues"]:
                share += f" (started in {each['issues'][core]:.1f})"
            cells.append(f"{core} {taken:.1f}{share}")
        print(
            f"{each['kernel']}, {each['case']}: {each['instructions']}; {', '.join(cells)}"
            f" [{each['loops']} loops, {each['stack']} on the stack]"
        )
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
