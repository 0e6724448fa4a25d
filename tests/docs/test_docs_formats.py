"""The examples and numbers of docs/index_format.md are what the packers write."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_ternary.index import packed, rsr
from onnx_ternary.schema import BLOCK_SIZES, MAX_BLOCK_WIDTH

TEXT = (Path(__file__).parents[2] / "docs/index_format.md").read_text(encoding="utf-8")
EXAMPLES: list[dict[str, Any]] = [
    json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
]
PACKED = [example for example in EXAMPLES if "block_size" in example]
RSR = [example for example in EXAMPLES if "block_width" in example]


def test_every_storage_has_an_example() -> None:
    assert [example["storage"] for example in PACKED] == ["2bit", "dense", "1bit"]
    assert [(example["storage"], example["group_size"]) for example in RSR] == [
        ("planes", 0),
        ("base3", 0),
        ("planes", 3),
    ]


def options_of(example: dict[str, Any]) -> dict[str, Any]:
    return {key: example[key] for key in example if key not in ("levels", "codes", "aux")}


@pytest.mark.parametrize("example", PACKED, ids=lambda example: example["storage"])
def test_packed_example(example: dict[str, Any]) -> None:
    levels, codes = np.array(example["levels"], np.int8), np.array(example["codes"], np.uint8)
    options = options_of(example)
    np.testing.assert_array_equal(packed.pack(levels, **options), codes)
    np.testing.assert_array_equal(packed.unpack(codes, *levels.shape, **options), levels)


@pytest.mark.parametrize("example", RSR, ids=lambda example: example["storage"])
def test_rsr_example(example: dict[str, Any]) -> None:
    levels, options = np.array(example["levels"], np.int8), options_of(example)
    permutation, offsets = rsr.pack(levels, **options)
    assert permutation.tolist() == example["codes"]
    assert offsets.tolist() == example["aux"]
    np.testing.assert_array_equal(
        rsr.unpack(permutation, offsets, *levels.shape, **options), levels
    )


def test_byte_tables() -> None:
    """Every sum is right, and the sums of a table are the bytes of the example below it."""
    tables = re.findall(r"\| byte \|.*?```json\n.*?```", TEXT, re.DOTALL)
    assert len(tables) == 3
    for table, example in zip(tables, PACKED, strict=True):
        rows = re.findall(r"\| \d+ \| ([\d, ]+) \| ([\d +*]+) = (\d+) \|", table)
        place = {"2bit": 4, "dense": 3, "1bit": 2}[example["storage"]]
        for i, (inputs, sum_text, value) in enumerate(rows):
            terms = [[int(part) for part in term.split("*")] for term in sum_text.split("+")]
            assert [math.prod(term[1:]) for term in terms] == [place**d for d in range(len(terms))]
            assert sum(math.prod(term) for term in terms) == int(value)
            step = packed.block_bytes(example["storage"], 16)
            numbers = [int(number) for number in inputs.split(",")]
            assert numbers == [i + step * j for j in range(len(numbers))]
        assert [int(value) for *_, value in rows] == example["codes"][0][0][0]


def test_pattern_table() -> None:
    rows = re.findall(r"^\| (\d) \| (-?\d, -?\d) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for _, level_text, rest in rows:
        levels = [int(number) for number in level_text.split(",")]
        plus, plus_pattern, minus, minus_pattern, digits, pattern = rest.split(" | ")
        p, q = [int(level == 1) for level in levels], [int(level == -1) for level in levels]
        assert (plus, plus_pattern) == (f"{p[0]}, {p[1]}", str(2 * p[0] + p[1]))
        assert (minus, minus_pattern) == (f"{q[0]}, {q[1]}", str(2 * q[0] + q[1]))
        first, second = (level + 1 for level in levels)
        assert (digits, pattern) == (f"{first}, {second}", str(3 * first + second))


def test_limits_and_sizes_in_the_text() -> None:
    assert f"`block_size` B is {', '.join(map(str, BLOCK_SIZES[:-1]))} or {BLOCK_SIZES[-1]}" in TEXT
    assert (
        f"`block_width` is 1..{MAX_BLOCK_WIDTH['planes']} for `planes` and "
        f"1..{MAX_BLOCK_WIDTH['base3']} for `base3`"
    ) in TEXT
    bits = [8 * packed.block_bytes("dense", size) / size for size in BLOCK_SIZES]
    assert bits == [2, 1.75, 1.625, 1.625]
    assert "1.625 (blocks of 64 and 128), 1.75 (32), 2 (16)" in TEXT
