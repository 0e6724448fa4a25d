"""The list of kernels, and kernels and instruction sets by name."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_ternary.errors import LibraryError
from onnx_ternary.native import kernels
from tests.support.native_node import SCALAR_KERNELS, VARIANTS, run
from tests.support.single_node import make_node


def test_kernels_list_has_the_scalar_ones() -> None:
    listed = {entry["name"]: entry for entry in kernels.list_kernels()["kernels"]}
    for name in SCALAR_KERNELS:
        assert listed[name]["isa"] == "scalar"
        assert listed[name]["supported"]
        assert not listed[name]["fixed_point"]


def test_forced_kernel_is_the_one_that_runs(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[8])
    x = rng.standard_normal((3, node.attributes.K)).astype(np.float32)
    with kernels.forced(kernel="rsr_reference_float_scalar"):
        assert run(node, x)[1] == "rsr_reference_float_scalar"
    assert run(node, x)[1] != "rsr_reference_float_scalar"


def test_unknown_names_are_refused(rng: np.random.Generator) -> None:
    node = make_node(rng, VARIANTS[0])
    x = np.zeros((1, node.attributes.K), np.float32)
    with pytest.raises(LibraryError):
        kernels.force_isa("avx9000")
    with pytest.raises(LibraryError):
        kernels.force_kernel("no_such_kernel")
    with pytest.raises(LibraryError, match=r"'no_such_kernel' does not exist\. Available: "):
        run(node, x, kernel="no_such_kernel")
    with pytest.raises(LibraryError, match="cannot serve"):
        run(node, x, kernel="rsr_gemv_float_scalar")
    with pytest.raises(LibraryError, match="cannot serve"):
        run(node, x, kernel="packed_reference_int8_scalar")
