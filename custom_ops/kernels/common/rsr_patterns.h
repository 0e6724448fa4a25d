// What the kernels for `rsr` share: where segments lie, and what a pattern's digits mean. Layout:
// docs/index_format.md section 3. C headers and internal linkage only.
#pragma once

#include <stdint.h>

#include "../../layer.h"

namespace onnx_ternary {
namespace {

// Of one plane, column block and scale group: (num_patterns + 1,).
inline const uint32_t* SegmentOffsets(const Layer* layer, int64_t plane, int64_t block,
                                      int64_t group) {
  const int64_t index = (plane * layer->num_blocks + block) * layer->num_groups + group;
  return layer->segment_offsets + index * (layer->num_patterns + 1);
}

// What digit d of a pattern contributes: -1, 0 or 1 times its segmented sum.
struct DigitSigns {
  int base;
  int sign[3];
};

inline DigitSigns DigitSignsOf(const Layer* layer) {
  if (layer->storage == Storage::base3) return {3, {-1, 0, 1}};
  if (layer->alphabet == Alphabet::binary_pm) return {2, {-1, 1, 0}};
  return {2, {0, 1, 0}};
}

}  // namespace
}  // namespace onnx_ternary
