"""What is counted of a product of whole blocks is all of its products, each once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import count_products as counted

BY_NAME = {kernel.name: kernel for kernel in counted.KERNELS}


@pytest.mark.parametrize(
    ("name", "register_rows"),
    [("packed_gemm_float_8x4_neon", 4), ("packed_gemm_int8_16x4_neon", 8)],
)
@pytest.mark.parametrize("blocks", [0.5, 1, 2.5])
@pytest.mark.parametrize("N", [512, 16384])
def test_tables_are_looked_up_once(name: str, register_rows: int, blocks: float, N: int) -> None:
    M = int(blocks * 2 * register_rows)
    products = 0.0
    for part in BY_NAME[name].parts(2560, N, M):
        if "LookupStep" in part.function:
            # Eight registers of sums, eight tables of four inputs.
            products += part.passes * 8 * register_rows * 8 * 4
    assert products == 2560 * N * M


@pytest.mark.parametrize(
    ("name", "macs", "digits", "rows"),
    [
        ("packed_gemv_float_1x4_neon", 16, 3, 2),
        ("packed_gemm_float_4x4_neon_dotprod", 16, 3, 7),
        ("packed_gemm_float_8x4_neon_i8mm", 32, 3, 12),
        ("packed_gemm_int8_16x4_neon_dotprod", 16, 1, 33),
    ],
)
def test_every_product_is_multiplied(name: str, macs: int, digits: int, rows: int) -> None:
    parts = BY_NAME[name].parts(2560, 512, rows)
    multiplied = sum(part.passes * part.expected * macs for part in parts)
    assert multiplied == 2560 * 512 * rows * digits
