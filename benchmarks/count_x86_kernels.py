"""Count what loops of x86 kernels cost on processors that are not at hand: AVX-VNNI, AMX, bits.

Compiles the kernels' sources as the library is compiled, finds their innermost loops in the
assembly, counts instructions and asks llvm-mca for cycles. Nothing is timed: llvm-mca knows ports
and latencies, not caches and branches, and no model of llvm knows the tiles of AMX, of which only
the decoding of codes is counted here.

    python benchmarks/count_x86_kernels.py                # a table
    python benchmarks/count_x86_kernels.py --json FILE    # and as data
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from count_kernels import FLAGS, MCA, SOURCES, _rows, function_lines

AVXVNNI = "packed_decode_avxvnni.cc"
AVX2 = "packed_lookup_avx2.cc"
AVX2_BITS = "packed_decode_avx2.cc"
AVX512VNNI = "packed_decode_avx512vnni.cc"
AMX = "packed_decode_amx_int8.cc"
INT8, FLOAT = "packed_gemm_int8_6x2_avxvnni", "packed_gemv_float_2x2_avxvnni"


@dataclass(frozen=True)
class Loop:
    """One innermost loop.

    Attributes:
        kernel: its name.
        case: rows and scales.
        source: its file in custom_ops/kernels.
        function: a regular expression for the mangled function.
        multiply: the instruction that multiplies, or decodes.
        count: how many of them tell the loop from others of the function.
        products: of an activation and a weight, in one pass.
        core: llvm's name of the processor.
        also: an instruction that tells it from other loops with as many multiplications.
    """

    kernel: str
    case: str
    source: str
    function: str
    multiply: str
    count: int
    products: int
    core: str = "alderlake"
    also: str = ""


def _tile(vectors: int) -> str:
    return rf"7DotTileILi{vectors}EE"


def _groups(digits: int, rows: int) -> str:
    return rf"12WeightedTileILi{digits}ELi{rows}EE"


def _lookup(rows: str) -> str:
    """The step between the first tables and the last ones."""
    return rf"10LookupStepINS1_\d+{rows}ELNS1_5StartE0ELNS_12_GLOBAL__N_16FinishE0ELi0ELi8E"


def _bits() -> list[Loop]:
    """One row of bits in blocks of 128: looked up, and brought to two bits first."""
    servers = ("cascadelake", "icelake-server", "sapphirerapids", "znver4")
    loops = []
    for core in ("alderlake", *servers):
        for name, function, count in (
            ("packed_gemv_int8_1x4_avx2", "18GemvInt8E", 32),
            ("packed_gemv_float_1x4_avx2", "19GemvFloatE", 80),
        ):
            for case, also in (("bits", ""), ("bits, groups", "vfmadd")):
                loops.append(
                    Loop(name, case, AVX2_BITS, function, "vpshufb", count, 2048, core, also)
                )
    # What comes before the loops of two bits, in memory.
    loops.append(
        Loop(
            "packed_gemm_int8_6x2_avxvnni",
            "bits to codes",
            AVXVNNI,
            "19TileCodesE",
            "vpaddb",
            4,
            512,
        )
    )
    namespace = r"10avx512vnni12_GLOBAL__N_1"
    for core in servers:
        for name, digits, columns, function in (
            ("packed_gemm_int8_8x4_avx512vnni", 1, 4, "12GemmInt8RowsILi1ELb"),
            ("packed_gemv_float_4x4_avx512vnni", 3, 8, "16FixedRowsColumnsILi1ELb"),
        ):
            groups = rf"{namespace}13ComputeGroupsILi{digits}ELi1ELNS1_6BlocksE"
            for storage, form, blocks, also in (
                ("two bits", 1, 0, ""),
                ("bits", 0, 1, "vpternlog"),
            ):
                for case, which, tiles in (
                    (storage, f"{namespace}{function}{form}", columns),
                    (f"{storage}, groups", f"{groups}{blocks}", 8),
                ):
                    dots = 2 * digits * tiles
                    loops.append(
                        Loop(
                            name,
                            f"1 row, {case}",
                            AVX512VNNI,
                            which,
                            "vpdpbusd",
                            dots,
                            tiles * 128,
                            core,
                            also,
                        )
                    )
    return loops


def _loops() -> list[Loop]:
    span = 128
    loops = []
    for rows in range(1, 7):
        columns = 4 if rows <= 3 else 2
        dots = 4 * rows * columns
        products = rows * columns * span
        loops.append(Loop(INT8, _rows(rows), AVXVNNI, _tile(rows), "vpdpbusd", dots, products))
    for rows, columns in ((1, 4), (2, 2)):
        loops.append(Loop(FLOAT, _rows(rows), AVXVNNI, _tile(3 * rows), "vpdpbusd", 48, 4 * span))
        assert rows * columns == 4
    for name, digits, rows, columns in ((INT8, 1, 1, 4), (INT8, 1, 4, 2), (FLOAT, 3, 1, 4)):
        loops.append(
            Loop(
                name,
                f"{_rows(rows)}, groups",
                AVXVNNI,
                _groups(digits, rows),
                "vpdpbusd",
                4 * digits * rows * columns,
                rows * columns * span,
            )
        )
    for name, rows_type, add, lanes in (
        ("packed_gemm_float_8x8_avx2", "FloatRows", "vaddps", 8),
        ("packed_gemm_int8_16x8_avx2", "Int16Rows", "vpaddw", 16),
    ):
        loops.append(Loop(name, f"{lanes} rows", AVX2, _lookup(rows_type), add, 64, 64 * 4 * lanes))
    loops.append(
        Loop(
            "packed_gemm_int8_32x32_amx",
            "decoding 16 columns",
            AMX,
            "decoding",
            "vgf2p8affineqb",
            24,
            16 * span,
            "sapphirerapids",
        )
    )
    return loops + _bits()


# Codes of sixteen columns become tiles, span after span, without the products in between.
DECODING = """
#include "kernels/common/tiles_amx.h"
extern "C" void _ZN_decoding(const uint8_t* const* tiles, int64_t num_spans, uint8_t* out) {
  for (int64_t span = 0; span < num_spans; ++span) {
    const uint8_t* columns[4];
    for (int t = 0; t < 4; ++t) columns[t] = tiles[t] + span * 128;
    onnx_ternary::amx_int8::DecodeSpan(columns, out + span % 4 * 2048);
  }
}
"""


def isa_flags(source: str) -> list[str]:
    """What CMakeLists.txt compiles a file with."""
    text = (SOURCES / "dispatch" / "instruction_sets.inc").read_text()
    isas = re.findall(r'^OTN_ISA\((\w+), x86_64, .*, "([^"]*)", "[^"]*"\)$', text, re.MULTILINE)
    return next(flags.split() for isa, flags in isas if source.endswith(f"_{isa}.cc"))


def assembly(source: str, folder: Path) -> str:
    target = folder / f"{source}.s"
    if not target.exists():
        path = SOURCES / "kernels" / source
        if source == AMX:
            path = folder / source
            path.write_text(DECODING)
        command = ["g++", *FLAGS, *isa_flags(source), f"-I{SOURCES}", "-S", "-o", str(target)]
        subprocess.run([*command, str(path)], check=True)
    return target.read_text()


def innermost_loops(lines: list[str]) -> list[list[str]]:
    """Instructions of the loops that hold no other loop."""
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.match(r"\.L\w+:$", line)}
    spans = []
    for at, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.L\w+)$", line)
        if jump and labels.get(jump[1], at) < at:
            spans.append((labels[jump[1]], at))
    return [
        [line for line in lines[first : last + 1] if re.match(r"[a-z{]", line)]
        for first, last in spans
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans)
    ]


def count(loop: Loop, folder: Path) -> dict[str, Any]:
    """Instructions and cycles of one pass: the first loop with as many multiplications."""
    lines = function_lines(assembly(loop.source, folder), loop.function)
    bodies = [
        body
        for body in innermost_loops(lines)
        if sum(loop.multiply in line for line in body) == loop.count
        and (not loop.also or any(loop.also in line for line in body))
    ]
    if not bodies:
        raise ValueError(f"no loop of {loop.function} has {loop.count} {loop.multiply}")
    body = bodies[-1]  # for codes as they lie, gcc puts the special cases first
    command = [MCA, f"-mcpu={loop.core}", "-iterations=300", "--json"]
    answer = subprocess.run(
        command, input="\n".join(body), capture_output=True, text=True, check=True
    )
    summary = json.loads(answer.stdout)["CodeRegions"][0]["SummaryView"]
    simulated = float(summary["TotalCycles"]) / float(summary["Iterations"])
    return {
        "kernel": loop.kernel,
        "case": loop.case,
        "core": loop.core,
        "instructions": len(body),
        "multiplications": loop.count,
        "stack": sum("(%rsp)" in line or "(%rbp)" in line for line in body),
        "cycles by ports": round(float(summary["BlockRThroughput"]), 1),
        "cycles simulated": round(simulated, 1),
        "products": loop.products,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        counts = [count(loop, Path(name)) for loop in _loops()]
    for each in counts:
        rate = each["products"] / each["cycles simulated"]
        print(
            f"{each['kernel']}, {each['case']}: {each['instructions']} instructions, "
            f"{each['multiplications']} multiply, {each['cycles by ports']} cycles by ports, "
            f"{each['cycles simulated']} simulated, {rate:.1f} products per cycle "
            f"({each['products'] / each['cycles by ports']:.1f} by ports), "
            f"{each['stack']} on the stack"
        )
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
