#include "index_view.h"

#include <algorithm>
#include <cstring>

#include "dispatch/kernel_registry.h"
#include "pack.h"
#include "unsigned.h"

namespace onnx_ternary {
namespace {

template <typename T>
bool Aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(T) == 0;
}

// Points *pointer at a copy in `owned` where it is not aligned for T.
template <typename T>
void CopyIfMisaligned(const T** pointer, int64_t count, std::vector<T>* owned) {
  if (*pointer == nullptr || Aligned(*pointer)) return;
  owned->resize(static_cast<size_t>(count));
  std::memcpy(owned->data(), *pointer, owned->size() * sizeof(T));
  *pointer = owned->data();
}

// See Layer::block_scales; empty where a scale is too large.
std::vector<float> BlockScales(const Layer& layer) {
  const float* end = layer.scale + layer.num_groups * layer.N;
  if (*std::max_element(layer.scale, end) > kLargestBlockScale) return {};
  constexpr int64_t kSpan = 128;
  const int64_t blocks_a_span = kSpan / layer.block_size;
  const int64_t num_blocks =
      (layer.num_k_blocks + blocks_a_span - 1) / blocks_a_span * blocks_a_span;
  // Kernels load sixteen floats at the last span.
  std::vector<float> scales(static_cast<size_t>(layer.num_column_tiles * num_blocks * 4 + 16));
  // A cache line of a row at a time: all of it is read while it is near.
  constexpr int64_t kColumns = 16;
  for (int64_t first = 0; first < layer.N; first += kColumns) {
    const int64_t last = std::min(first + kColumns, layer.N);
    for (int64_t block = 0; block < layer.num_k_blocks; ++block) {
      const float* row = layer.scale + block * layer.block_size / layer.group_size * layer.N;
      for (int64_t n = first; n < last; ++n) {
        scales[static_cast<size_t>((n / 4 * num_blocks + block) * 4 + n % 4)] = row[n];
      }
    }
  }
  return scales;
}

int64_t NumScales(const Layer& layer) {
  switch (layer.scale_kind) {
    case ScaleKind::per_tensor:
      return 1;
    case ScaleKind::per_column:
      return layer.N;
    case ScaleKind::per_group:
      break;
  }
  return layer.num_groups * layer.N;
}

}  // namespace

void IndexView::TakePackedCodes(const NodeChecker& checker, const OtnNode& node) {
  checker.CheckPackedShapes(layer_);
  layer_.codes = static_cast<const uint8_t*>(node.codes);
  if (layer_.storage == Storage::dense) {
    ExpandDense(layer_, &expanded_codes_);
    layer_.storage = Storage::two_bit;
    layer_.block_bytes = PackedBlockBytes(Storage::two_bit, layer_.block_size);
    layer_.codes = expanded_codes_.data();
  }
}

void IndexView::TakeRsrCodes(const NodeChecker& checker, const OtnNode& node) {
  checker.CheckRsrShapes(layer_);
  if (node.codes_element_bytes == 2) {
    layer_.permutation_u16 = static_cast<const uint16_t*>(node.codes);
  } else {
    layer_.permutation_u32 = static_cast<const uint32_t*>(node.codes);
  }
  layer_.segment_offsets = node.aux;
  const int64_t num_entries = layer_.num_planes * layer_.num_blocks * layer_.K;
  const int64_t num_offsets =
      layer_.num_planes * layer_.num_blocks * layer_.num_groups * (layer_.num_patterns + 1);
  CopyIfMisaligned(&layer_.permutation_u16, num_entries, &permutation_u16_);
  CopyIfMisaligned(&layer_.permutation_u32, num_entries, &permutation_u32_);
  CopyIfMisaligned(&layer_.segment_offsets, num_offsets, &segment_offsets_);
  checker.CheckPermutation(layer_);
  checker.CheckSegmentOffsets(layer_);
}

IndexView::IndexView(const OtnNode& node, const std::string& node_name) {
  const NodeChecker checker(node, node_name);
  layer_ = checker.Attributes();
  if (layer_.index_format == IndexFormat::packed) {
    TakePackedCodes(checker, node);
  } else {
    TakeRsrCodes(checker, node);
  }
  checker.CheckScale(&layer_);
  checker.CheckBias(&layer_);
  CopyIfMisaligned(&layer_.scale, NumScales(layer_), &scale_);
  CopyIfMisaligned(&layer_.bias, layer_.N, &bias_);
  if (layer_.index_format == IndexFormat::packed && layer_.scale_kind == ScaleKind::per_group &&
      BlockScalesAreRead()) {
    block_scales_ = BlockScales(layer_);
    if (!block_scales_.empty()) layer_.block_scales = block_scales_.data();
  }
  if (layer_.activation_rule == ActivationRule::dynamic_quantize_linear) {
    MakeUnsigned(&layer_, &column_sums_);
  }
}

}  // namespace onnx_ternary
