"""What the library finds on emulated processors of 64-bit ARM (.ci/emulate_aarch64)."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels
from tests.support.core_type import core
from tests.support.kernel_node import BY_NAME, make_node

ISAS = {
    "cortex-a72": {"neon"},
    "cortex-a76": {"neon", "neon_dotprod"},
    "neoverse-n1": {"neon", "neon_dotprod"},
    "max": {"neon", "neon_dotprod", "neon_i8mm"},
}
# MIDR_EL1 of each: implementer, variant, 0xf, part, revision.
CORES = {
    "cortex-a72": "0x410fd083",
    "cortex-a76": "0x414fd0b1",
    "neoverse-n1": "0x414fd0c1",
    "max": "0x000f0510",
}
ORYON = 0x511F0011
# Kernels by activation and rows, where no instruction set is forced.
SELECTED = {
    "cortex-a72": {
        ("float", 1): "packed_gemv_float_1x4_neon",
        ("float", 2): "packed_gemm_float_8x4_neon",
        ("int8", 4): "packed_gemm_int8_4x4_neon",
        ("int8", 5): "packed_gemm_int8_16x4_neon",
    },
    "neoverse-n1": {
        ("float", 1): "packed_gemv_float_1x4_neon_dotprod",
        ("float", 3): "packed_gemm_float_4x4_neon_dotprod",
        ("float", 4): "packed_gemm_float_8x4_neon",
        ("int8", 1): "packed_gemv_int8_1x4_neon_dotprod",
        ("int8", 16): "packed_gemm_int8_16x4_neon_dotprod",
    },
    "max": {
        ("float", 1): "packed_gemv_float_1x4_neon_dotprod",
        ("float", 2): "packed_gemm_float_8x4_neon_i8mm",
        ("int8", 1): "packed_gemv_int8_1x4_neon_dotprod",
        ("int8", 16): "packed_gemm_int8_16x4_neon_i8mm",
    },
}
SELECTED["cortex-a76"] = SELECTED["neoverse-n1"]
EMULATED = os.environ.get("EMULATED_CPU", "")

pytestmark = pytest.mark.skipif(
    platform.machine() != "aarch64" or EMULATED not in ISAS, reason="no emulated processor"
)


def test_instruction_sets_of_the_processor_are_found() -> None:
    listed = kernels.list_kernels()["kernels"]
    built = {each["isa"] for each in listed}
    supported = {each["isa"] for each in listed if each["supported"]}
    assert built == {"scalar", "portable", "neon", "neon_dotprod", "neon_i8mm"}
    assert supported == {"scalar", "portable"} | ISAS[EMULATED]


def test_instruction_set_the_processor_lacks_is_refused() -> None:
    missing = sorted(ISAS["max"] - ISAS[EMULATED])
    if not missing:
        pytest.skip("this processor has all of them")
    for isa in missing:
        with pytest.raises(LibraryError, match=f"'{isa}' needs NEON.*this CPU has: neon"):
            kernels.force_isa(isa)


def test_core_of_the_processor_is_found() -> None:
    assert kernels.list_kernels()["core"] == {
        "id": CORES[EMULATED],
        "name": None,
        "passed_over": [],
    }


def test_kernels_of_the_processor_are_selected() -> None:
    rng = np.random.default_rng(0)
    for (activation, rows), expected in SELECTED[EMULATED].items():
        node = make_node(rng, "packed", activation, 256, 12)
        assert node.run(rng.normal(size=(rows, 256)).astype(np.float32), None)[1] == expected


def test_rows_that_fixed_point_cannot_hold_are_looked_up() -> None:
    rng = np.random.default_rng(0)
    node = make_node(rng, "packed", "float", 256, 12)
    x = np.full((4, 256), 1e-9, np.float32)
    x[:, 0] = 1e9
    assert node.run(x, None)[1] == "packed_gemm_float_8x4_neon"


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_core_with_slow_matrix_products_runs_without(activation: str) -> None:
    """Dot products for int8 batches, lookup for float ones."""
    if "neon_i8mm" not in ISAS[EMULATED]:
        pytest.skip("a processor without i8mm")
    instead = {"float": {"neon"}, "int8": {"neon_dotprod"}}[activation]
    rng = np.random.default_rng(0)
    node = make_node(rng, "packed", activation, 256, 12)
    x = rng.normal(size=(8, 256)).astype(np.float32)

    def isas() -> set[str]:
        return {BY_NAME[name]["isa"] for name in node.run(x, None)[1].split(",")}

    assert isas() == {"neon_i8mm"}
    with core(midr=ORYON):
        assert isas() == instead
        listed = {entry["kernel"] for entry in kernels.list_kernels()["selection"]}
        assert "neon_i8mm" not in {BY_NAME[name]["isa"] for name in listed}
        with kernels.forced(isa="neon_i8mm"):
            assert isas() == {"neon_i8mm"}
    assert isas() == {"neon_i8mm"}
