"""Count what whole products of float and int8 batches cost by each NEON kernel.

The loops of benchmarks/count_kernels.py, as often as a product of K inputs, N columns and M rows
runs them: for kernels that look up, also the loops that build tables and transcode codes. Left out
are what runs once an input or an output (rows brought in order, scales and biases), and what the
kernels that decode do once for all rows of a call, which brings their codes in order. One scale per
column, 2-bit codes in blocks of 128, one thread.

    python benchmarks/count_products.py                # a table, products per cycle
    python benchmarks/count_products.py --json FILE    # and as data
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from count_kernels import (
    CORES,
    DOTPROD,
    I8MM,
    LOOKUP,
    MATRIX_CORES,
    NEON,
    SOURCES,
    assembly,
    cycles,
    function_lines,
    innermost_loops,
)

SHAPES = ((2560, 6912), (4096, 4096), (2560, 512))  # K, N
ROWS = (1, 2, 3, 4, 5, 8, 16, 64)
SPAN = 128
MULTIPLICATIONS = ("sdot", "smmla", "sadalp")


@dataclass(frozen=True)
class Part:
    """A loop, and how often a product runs it.

    Attributes:
        function: a regular expression for the mangled function.
        instruction: one that the loop has, or several of which it has one.
        passes: of the loop.
        expected: how many of the instruction a pass has; a loop with more of them makes several
            passes at once. Zero where passes are as they stand in the source.
    """

    function: str
    instruction: str | tuple[str, ...]
    passes: float
    expected: float = 0


Parts = Callable[[int, int, int], Iterator[Part]]  # of a product of K inputs, N columns, M rows


@dataclass(frozen=True)
class Kernel:
    """A kernel and the loops of its products."""

    name: str
    source: str
    march: str
    parts: Parts
    cores: tuple[str, ...] = CORES


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _decode(
    ops: str, digits: int, most_rows: int, multiplication_macs: int, row_step: int = 1
) -> Parts:
    """Loops of DotTile: once a span, four columns and group of rows.

    digits: of an activation. multiplication_macs: of one instruction. A register has row_step rows;
    a group has most_rows rows, the last one fewer.
    """

    def parts(K: int, N: int, M: int) -> Iterator[Part]:
        full, rest = divmod(M, most_rows)
        tiles = _up(K, SPAN) // SPAN * _up(N, 4) // 4
        for rows, count in ((most_rows, full), (_up(rest, row_step), 1)):
            if rows and count:
                name = rf"7DotTileINS1_\d+{ops}ELi{rows // row_step * digits}EE"
                macs = SPAN * 4 * rows * digits
                yield Part(name, MULTIPLICATIONS, count * tiles, macs / multiplication_macs)

    return parts


def _num_chunks(N: int, lanes: int, number_bytes: int) -> int:
    """Chunks of N columns in packed_lookup_neon.cc; number_bytes: of a sum and a total."""
    text = (SOURCES / "kernels" / LOOKUP[0]).read_text()
    found = re.search(r"kChunkBytes = (\d+) << 10;", text)
    if found is None:
        raise ValueError("packed_lookup_neon.cc has no kChunkBytes")
    most = (int(found[1]) << 10) // (32 + lanes * number_bytes) // 8 * 8
    return -(-N // most)


def _lookup(rows: str, register_rows: int, add: str, number_bytes: int) -> Parts:
    """Loops of LookupColumns for blocks of two registers of rows and a last one of one or two.

    A span is a transcoding, and four steps; a step builds eight tables of each register and passes
    over the columns of a chunk. Of int8 sums the last step of a span goes to totals.
    """

    def parts(K: int, N: int, M: int) -> Iterator[Part]:
        full, rest = divmod(M, 2 * register_rows)
        spans = _up(K, SPAN) // SPAN
        columns = _up(N, 8)
        chunks = _num_chunks(N, 2 * register_rows, number_bytes)
        for vectors, count in ((2, full), (1 if rest <= register_rows else 2, rest > 0)):
            if not count:
                continue
            every = count * spans
            name = rf"INS1_\d+{rows}ELi{vectors}E"
            yield Part("13TranscodeAsIs", "tbl", every * columns / 4, 16)
            yield Part(f"11BuildTables{name}", add, every * chunks * 4 * 8 * vectors)
            passes = every * columns * vectors / 8
            if rows == "Int16Rows":
                yield Part(f"10LookupStep{name}Lb1ELNS_12_GLOBAL__N_16FinishE0ELi8E", add, passes)
                yield Part(
                    f"10LookupStep{name}Lb0ELNS_12_GLOBAL__N_16FinishE0ELi8E", add, 2 * passes
                )
                yield Part(f"10LookupStep{name}Lb0ELNS_12_GLOBAL__N_16FinishE1ELi8E", add, passes)
            else:
                yield Part(
                    f"10LookupStep{name}Lb0ELNS_12_GLOBAL__N_16FinishE0ELi8E", add, 4 * passes
                )

    return parts


KERNELS = (
    Kernel("packed_gemv_float_1x4_neon", *NEON, _decode("WideningOps", 3, 1, 16)),
    Kernel("packed_gemv_float_1x4_neon_dotprod", *DOTPROD, _decode("ColumnOps", 3, 1, 16)),
    Kernel("packed_gemm_float_4x4_neon_dotprod", *DOTPROD, _decode("LaneOps", 3, 4, 16)),
    Kernel(
        "packed_gemm_float_8x4_neon_i8mm", *I8MM, _decode("MatrixOps", 3, 8, 32, 2), MATRIX_CORES
    ),
    Kernel("packed_gemm_float_8x4_neon", *LOOKUP, _lookup("FloatRows", 4, "fadd", 4)),
    Kernel("packed_gemm_int8_4x4_neon", *NEON, _decode("WideningOps", 1, 4, 16)),
    Kernel("packed_gemm_int8_16x4_neon_dotprod", *DOTPROD, _decode("LaneOps", 1, 16, 16)),
    Kernel(
        "packed_gemm_int8_16x4_neon_i8mm", *I8MM, _decode("MatrixOps", 1, 16, 32, 2), MATRIX_CORES
    ),
    Kernel("packed_gemm_int8_16x4_neon", *LOOKUP, _lookup("Int16Rows", 8, "add", 6)),
)


class Counter:
    """Cycles of loops, asked once each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[tuple[str, str, str], float] = {}

    def of(self, kernel: Kernel, part: Part, core: str) -> float:
        """Cycles of one pass."""
        key = (kernel.source, part.function, core)
        if key not in self.known:
            text = assembly(kernel.source, kernel.march, self.folder)
            lines = function_lines(text, part.function)
            bodies = innermost_loops(lines, part.instruction)
            if not bodies:
                raise ValueError(f"{part.function} has no loop with {part.instruction}")
            starts = part.instruction
            found = sum(line.startswith(starts) for body in bodies for line in body)
            taken = sum(cycles(body, core, kernel.march) for body in bodies)
            self.known[key] = taken * (part.expected / found if part.expected else 1)
        return self.known[key]


def count(counter: Counter, kernel: Kernel, K: int, N: int, M: int) -> dict[str, Any]:
    """Products per cycle, and the share of each loop in the cycles of the first core."""
    parts = list(kernel.parts(K, N, M))
    rates, shares = {}, dict[str, float]()
    for core in kernel.cores:
        taken = [part.passes * counter.of(kernel, part, core) for part in parts]
        rates[core] = round(K * N * M / sum(taken), 1)
        if core == kernel.cores[0]:
            for part, each in zip(parts, taken, strict=True):
                name = re.sub(r"^\d+|INS1.*", "", part.function)
                shares[name] = shares.get(name, 0) + each / sum(taken)
    return {
        "kernel": kernel.name,
        "K": K,
        "N": N,
        "M": M,
        "products per cycle": rates,
        "shares": {name: round(share, 3) for name, share in shares.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the counts to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        counter = Counter(Path(name))
        for kernel in KERNELS:
            assembly(kernel.source, kernel.march, counter.folder)
        # Every loop occurs in products of these numbers of rows.
        rows = pool.map(
            lambda kernel: [count(counter, kernel, *SHAPES[0], M) for M in ROWS], KERNELS
        )
        list(rows)
        counts = [
            count(counter, kernel, *shape, M) for kernel, shape, M in product(KERNELS, SHAPES, ROWS)
        ]
    for each in counts:
        rates = ", ".join(f"{core} {rate}" for core, rate in each["products per cycle"].items())
        print(f"{each['kernel']}, {each['K']} x {each['N']}, {each['M']} rows: {rates}")
    if options.json:
        lines = ",\n".join(json.dumps(each) for each in counts)
        options.json.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    sys.exit(main())
