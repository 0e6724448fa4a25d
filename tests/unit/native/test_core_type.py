"""From the ids of a core to the instruction sets that are passed over there."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from onnx_ternary.cli import main
from onnx_ternary.native import kernels
from tests.support.core_type import core

ORYON = 0x511F0011
I8MM = ["neon_i8mm"]


def midr(implementer: int, part: int, variant: int = 0, revision: int = 0) -> int:
    return implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision


@pytest.mark.parametrize(
    ("ids", "name"),
    [
        ({"midr": ORYON}, "Qualcomm Oryon"),
        ({"midr": midr(0x51, 0x001, variant=3, revision=15)}, "Qualcomm Oryon"),
        ({"midr": midr(0x61, 0x032)}, "Apple M2"),
        ({"midr": midr(0x61, 0x039, variant=1)}, "Apple M2 Max"),
        ({"midr": midr(0x61, 0x043, variant=1)}, "Apple M3"),
        ({"midr": midr(0x61, 0x045)}, "Apple M3 Pro"),
        ({"midr": midr(0x61, 0x048, revision=1)}, "Apple M3 Max"),
        ({"apple_family": 0xDA33D83D}, "Apple M2"),
        ({"apple_family": 0xFA33415E}, "Apple M3"),
        ({"apple_family": 0x5F4DEA93}, "Apple M3 Pro"),
        ({"apple_family": 0x72015832}, "Apple M3 Max"),
    ],
)
def test_cores_with_slow_matrix_products(ids: dict[str, int], name: str) -> None:
    with core(**ids):
        found = kernels.list_kernels()["core"]
    assert (found["name"], found["passed_over"]) == (name, I8MM)
    assert int(found["id"], 16) == next(iter(ids.values()))


@pytest.mark.parametrize(
    "ids",
    [
        {"midr": midr(0x41, 0xD4F)},  # Neoverse V2
        {"midr": midr(0x41, 0x001)},  # the part of Oryon, another implementer
        {"midr": midr(0x51, 0x002)},  # Snapdragon X2: not measured
        {"midr": midr(0x61, 0x053)},  # Apple M4: level
        {"midr": midr(0x61, 0x000)},  # a virtual machine on a Mac
        {"apple_family": 0x1B588BB3},  # Apple M1, without i8mm
        {"apple_family": 0x6F5129AC},  # Apple M4
        {"midr": 0xDA33D83D},  # a family is not a part
        {"apple_family": ORYON},
    ],
)
def test_other_cores_use_what_they_have(ids: dict[str, int]) -> None:
    with core(**ids):
        found = kernels.list_kernels()["core"]
    assert found["name"] is None
    assert found["passed_over"] == []


def test_info_says_what_is_passed_over_and_how_to_use_it() -> None:
    with core(midr=ORYON):
        printed = CliRunner().invoke(main, ["info"], env={"COLUMNS": "200"}).output
    assert "core: Qualcomm Oryon (0x511f0011)" in printed
    assert "ONNX_TERNARY_ISA=neon_i8mm selects it" in printed
    with core(midr=midr(0x41, 0xD4F)):
        printed = CliRunner().invoke(main, ["info"]).output
    assert "core: 0x410fd4f0" in printed
    assert "ONNX_TERNARY_ISA" not in printed
