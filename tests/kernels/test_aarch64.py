"""What the library finds on emulated processors of 64-bit ARM (.ci/emulate_aarch64)."""

from __future__ import annotations

import os
import platform

import pytest

from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels

ISAS = {
    "cortex-a72": {"neon"},
    "cortex-a76": {"neon", "neon_dotprod"},
    "neoverse-n1": {"neon", "neon_dotprod"},
    "max": {"neon", "neon_dotprod", "neon_i8mm"},
}
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
