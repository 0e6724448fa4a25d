"""A kernel that computes wrong numbers on this processor is not chosen, and that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import scratch_library

NAME = "packed_gemm_float_wrong_portable"
NEXT = "packed_gemv_float_portable"
# The scalar reference with one number off: what an instruction does that does not run right.
SOURCE = """
#include "kernel_list.h"

namespace onnx_ternary {
namespace portable {
namespace {

const Kernel& reference = packed_reference_float_scalar;

int64_t Depth(const Layer*) { return 0; }
size_t PreparedBytes(const Layer* layer, int64_t rows) {
  return reference.prepared_bytes(layer, rows);
}
void Prepare(const Layer* layer, const Call* call, const float* x, int64_t rows, void* prepared) {
  reference.prepare(layer, call, x, rows, prepared);
}
size_t ScratchBytes(const Layer* layer, int64_t rows, int64_t num_columns) {
  return reference.scratch_bytes(layer, rows, num_columns);
}
void Compute(const Layer* layer, const float* x, int64_t rows, const void* prepared, int64_t begin,
             int64_t end, float* y, void* scratch) {
  reference.compute(layer, x, rows, prepared, begin, end, y, scratch);
  y[end - 1] += WRONG;
}

}  // namespace
}  // namespace portable

extern const Kernel packed_gemm_float_wrong_portable = {
    "packed_gemm_float_wrong_portable", IndexFormat::packed, Activation::float32, Isa::portable,
    /*accepts=*/nullptr, /*max_rows=*/8, /*column_step=*/4, portable::Depth,
    /*fixed_point=*/false, portable::PreparedBytes, portable::Prepare, portable::ScratchBytes,
    portable::Compute,
};

}  // namespace onnx_ternary
"""
# Runs one node twice and prints the kernels that ran.
CALLS = """
import json
import numpy as np
from tests.support.kernel_node import make_node
node = make_node(np.random.default_rng(0), "packed", "float", 200, 12)
x = np.random.default_rng(1).normal(size=(2, 200)).astype(np.float32)
print(json.dumps([node.run(x, None)[1] for _ in range(2)]))
"""

pytestmark = scratch_library.NEEDS


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Libraries by how far their kernel is off; the second one compiles a single file."""
    folder = tmp_path_factory.mktemp("self_test")
    tree = folder / "tree"
    scratch_library.copy_sources(tree)
    scratch_library.add_kernel(tree, NAME, "packed_wrong", SOURCE)
    scratch_library.insert_line(
        tree / "custom_ops" / "dispatch" / "select.cc",
        "    {built::",
        f"    {{built::{NAME}, 1, kAnyRows}},\n",
    )
    made = {}
    for wrong in ("0.5f", "0.0f"):
        source = tree / "custom_ops" / "kernels" / "packed_wrong_portable.cc"
        source.write_text(SOURCE.replace("WRONG", wrong))
        library = scratch_library.compile_library(tree, folder / "build")
        made[wrong] = library.rename(folder / f"{wrong}.so")
    return made


def run_nodes(library: Path) -> tuple[list[str], str]:
    printed, messages = scratch_library.run_python(library, CALLS)
    return json.loads(printed), messages


def test_wrong_kernel_is_reported_and_the_next_one_runs(libraries: dict[str, Path]) -> None:
    used, messages = run_nodes(libraries["0.5f"])
    assert used == [NEXT, NEXT]
    assert messages.count(f"kernel '{NAME}' computes wrong numbers on this processor") == 1


def test_right_kernel_is_chosen_without_a_word(libraries: dict[str, Path]) -> None:
    used, messages = run_nodes(libraries["0.0f"])
    assert used == [NAME, NAME]
    assert messages == ""
