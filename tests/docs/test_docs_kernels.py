"""docs/kernels.md names every kernel; its T is that of the library and of docs/op_spec.md."""

from __future__ import annotations

import math
import re
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from onnx_ternary.index import build_index
from onnx_ternary.index.levels import TernaryWeight
from onnx_ternary.native import layer
from onnx_ternary.native.kernels import list_kernels

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
KERNELS = list_kernels()["kernels"]  # of this architecture
NO_BIAS = np.zeros((), np.float32)


def table() -> list[tuple[list[str], list[str], str]]:
    """Names, rows per tile and depth of each row of the first table."""
    (section,) = re.findall(r"^## The table\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [
        (re.findall(r"`([\w*]+)`", row[0]), re.findall(r"\d+", row[1]), row[4].strip())
        for row in rows
    ]


def row_of(kernel: str) -> tuple[list[str], str]:
    """Rows per tile and depth that the page gives a kernel."""
    ((names, rows, depth),) = (
        row for row in table() if any(fnmatchcase(kernel, name) for name in row[0])
    )
    if len(rows) == len(names) > 1:  # one number per name
        (rows,) = ([rows[at]] for at, name in enumerate(names) if name == kernel)
    return rows, depth


def promised(depth: str, K: int) -> int:
    """T of a float kernel as the page writes it."""
    text = depth.removeprefix("exact; ").removesuffix(", exact (int8)").removesuffix(" (float)")
    if text == "exact sums" or text.startswith("0, and absmax"):
        return 0
    text = text.partition(", and absmax")[0].partition(" (2bit, B = 128)")[0]
    if text == "K":
        return K
    match = re.fullmatch(r"(?:(\d+) \+ )?K/(\d+)(?: \+ (\d+))?", text)
    assert match, depth
    before, divisor, behind = match.groups()
    return int(before or 0) + K // int(divisor) + int(behind or 0)


def listed() -> list[str]:
    """Every kernel of every architecture."""
    text = (ROOT / "custom_ops/kernels/kernel_list.inc").read_text(encoding="utf-8")
    return re.findall(r"^OTN_KERNEL\(\w+, \w+, (\w+)\)$", text, re.MULTILINE)


def test_every_kernel_has_a_row_and_no_row_is_left_over() -> None:
    names = listed()
    assert {kernel["name"] for kernel in KERNELS} <= set(names)
    for name in names:
        row_of(name)
    for patterns, _, _ in table():
        for pattern in patterns:
            assert any(fnmatchcase(name, pattern) for name in names), pattern


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel["name"])
def test_rows_per_tile(kernel: dict[str, object]) -> None:
    rows, _ = row_of(str(kernel["name"]))
    assert rows in ([], [str(kernel["max_rows"])])


@pytest.mark.parametrize("K", [512, 1024])
@pytest.mark.parametrize(
    "kernel",
    [kernel for kernel in KERNELS if kernel["supported"] and kernel["activation"] == "float"],
    ids=lambda kernel: kernel["name"],
)
def test_depth(kernel: dict[str, str], K: int) -> None:
    levels = np.random.default_rng(0).integers(-1, 2, (K, 8)).astype(np.int8)
    weight = TernaryWeight(levels, np.ones(8, np.float32), 0, "ternary", 0.0)
    index = build_index(weight, index_format="rsr" if "rsr" in kernel["name"] else "packed")
    tensors = (index.codes, index.aux, index.scale, NO_BIAS)
    depth = layer.addition_depth(index.attributes, *tensors, kernel["name"])
    assert depth == promised(row_of(kernel["name"])[1], K)


def test_the_specification_has_the_same_depth() -> None:
    """T = K/4 + 2 for lookup of four inputs, ceil(K / 128) + 2 for scales per group in VNNI."""
    spec = (ROOT / "docs/op_spec.md").read_text(encoding="utf-8")
    (lookup,) = re.findall(r"(K/4 \+ \d+) for kernels that look sums of four inputs up", spec)
    depths = [depth for names, _, depth in table() if "packed_gemm_float_8x8_avx2" in names]
    assert depths == [lookup]
    (ours,) = re.findall(r"Hence T = ceil\(K / 128\) \+ (\d+)\.", spec)
    (theirs,) = re.findall(r"T is K/128 \+ (\d+) and K/128", TEXT)
    assert ours == theirs
    assert promised(lookup, 512) == math.ceil(512 / 4) + 2
