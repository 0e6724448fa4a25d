"""Count what the loops of the AVX-VNNI and AMX kernels cost, without a processor that has either.

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
    """

    kernel: str
    case: str
    source: str
    function: str
    multiply: str
    count: int
    products: int
    core: str = "alderlake"


def _tile(vectors: int) -> str:
    return rf"7DotTileILi{vectors}EE"


def _groups(digits: int, rows: int) -> str:
    return rf"12WeightedTileILi{digits}ELi{rows}EE"


def _lookup(rows: str) -> str:
    """The step between the first tables and the last ones."""
    return rf"10LookupStepINS1_\d+{rows}ELNS1_5StartE0ELNS1_6FinishE0ELi0ELi8E"


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
    return loops


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
