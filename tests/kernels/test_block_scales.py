"""A kernel that says it reads scales beside the codes is given them, in the order of the codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support import scratch_library

NAME = "packed_gemm_float_scales_portable"
# Y is what the kernel finds: the scales of blocks from the first to the last zero behind them.
SOURCE = """
#include <string.h>

#include "kernel_list.h"

namespace onnx_ternary {
namespace portable {
namespace {

int64_t Depth(const Layer*) { return 0; }
size_t PreparedBytes(const Layer*, int64_t) { return 0; }
void Prepare(const Layer*, const Call*, const float*, int64_t, void*) {}
size_t ScratchBytes(const Layer*, int64_t, int64_t) { return 0; }
void Compute(const Layer* layer, const float*, int64_t, const void*, int64_t, int64_t, float* y,
             void*) {
  const int64_t span_blocks = 128 / layer->block_size;
  const int64_t num_blocks = (layer->num_k_blocks + span_blocks - 1) / span_blocks * span_blocks;
  const int64_t count = layer->num_column_tiles * num_blocks * 4 + 16;
  memcpy(y, layer->block_scales, static_cast<size_t>(count) * sizeof(float));
}

}  // namespace
}  // namespace portable

extern const Kernel packed_gemm_float_scales_portable = {
    "packed_gemm_float_scales_portable", IndexFormat::packed, Activation::float32, Isa::portable,
    /*accepts=*/nullptr, /*max_rows=*/64, /*column_step=*/4, portable::Depth,
    /*fixed_point=*/false, portable::PreparedBytes, portable::Prepare, portable::ScratchBytes,
    portable::Compute, /*reads_block_scales=*/true,
};

}  // namespace onnx_ternary
"""
# K takes 21 blocks, of which the last span lacks three; the last column tile has one column.
CALLS = """
import json
import numpy as np
from onnx_ternary.errors import LibraryError
from tests.support.kernel_node import make_node
node = make_node(
    np.random.default_rng(0), "packed", "float", 655, 21, block_size=32, scale_kind="group",
    num_group_blocks=2)
x = np.zeros((29, 655), np.float32)
y, used = node.run(x, NAME)
scale = node.scale.tolist()
node.scale[3, 20] = 1.3e24
try:
    node.run(x, NAME)
    refused = ""
except LibraryError as error:
    refused = str(error)
print(json.dumps([used, y.tolist(), scale, refused]))
"""

pytestmark = scratch_library.NEEDS


def test_block_scales_are_made_for_a_kernel_that_reads_them(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    scratch_library.copy_sources(tree)
    scratch_library.add_kernel(tree, NAME, "packed_scales", SOURCE)
    library = scratch_library.compile_library(tree, tmp_path / "build")
    printed, _ = scratch_library.run_python(library, CALLS.replace("NAME", repr(NAME)))
    used, y, scale, refused = json.loads(printed)
    assert used == NAME
    by_block = np.zeros((24, 24), np.float32)
    by_block[:21, :21] = np.repeat(np.array(scale, np.float32), 2, axis=0)[:21]
    expected = by_block.reshape(24, 6, 4).transpose(1, 0, 2)
    found = np.array(y, np.float32).ravel()[: expected.size + 16]
    np.testing.assert_array_equal(found, np.append(expected.ravel(), np.zeros(16)))
    assert "cannot serve" in refused
