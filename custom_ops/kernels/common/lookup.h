// What the SIMD kernels that look up batches share: which tables there are, and what is in them.
//
// Lanes are rows of X. A table has the 81 sums +-x0 +-x1 +-x2 +-x3 of a group of four inputs, those
// of one byte of codes, at the byte's value in base 3.
//
// Internal linkage only.
#pragma once

#include "quantize_absmax.h"
#include "span.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kPatterns = 81;

// Where the accumulators of a step go: back to sums; to exact totals; or to totals times the scale
// of their group.
enum class Finish { sums, widen, weigh };

// Where the lanes of every input of a span stand, in lanes: (32 bytes, 4 fields).
inline void InputPlaces(const Layer* layer, int32_t* place) {
  const int64_t quarter = layer->block_size / 4;
  for (int64_t input = 0; input < kSpan; ++input) {
    const int64_t block = input / layer->block_size, in_block = input % layer->block_size;
    const int64_t p = block * quarter + in_block % quarter;
    place[input] = (int32_t)(p * 4 + in_block / quarter);
  }
}

// The nine sums d0 * a + d1 * b, digits d = 0, 1, 2 meaning -1, 0, 1, a's digit first. Rows has the
// type Vector, and Zero, Plus and Minus of it.
template <typename Rows>
OTN_ALWAYS_INLINE void PairSums(typename Rows::Vector a, typename Rows::Vector b,
                                typename Rows::Vector* sums) {
  const typename Rows::Vector zero = Rows::Zero();
  sums[8] = Rows::Plus(a, b);
  sums[6] = Rows::Minus(b, a);
  sums[2] = Rows::Minus(a, b);
  sums[0] = Rows::Minus(Rows::Minus(zero, a), b);
  sums[7] = b;
  sums[5] = a;
  sums[4] = zero;
  sums[3] = Rows::Minus(zero, a);
  sums[1] = Rows::Minus(zero, b);
}

// The longest chain of float32 additions: two per table row, then one per byte of the column, or of
// the group.
inline int64_t LookupDepth(const Layer* layer) {
  const int64_t inputs = PerGroup(layer) ? layer->group_size : NumSpans(layer) * kSpan;
  return Min(inputs, NumSpans(layer) * kSpan) / 4 + 2;
}

// Quantizes a block of `lanes` rows into in_order (lanes, padded_K) int8, zero past K and past the
// `valid_rows` of them. s: (valid_rows,).
inline void QuantizeBlock(const Layer* layer, const Call* call, const float* x, int64_t valid_rows,
                          int64_t lanes, float* s, int8_t* in_order) {
  const int64_t padded_K = NumSpans(layer) * kSpan;
  for (int64_t r = 0; r < valid_rows; ++r) {
    s[r] = QuantizeRow(layer, call, x + r * layer->K, in_order + r * padded_K);
    memset(in_order + r * padded_K + layer->K, 0, (size_t)(padded_K - layer->K));
  }
  memset(in_order + valid_rows * padded_K, 0, (size_t)((lanes - valid_rows) * padded_K));
}

}  // namespace
}  // namespace onnx_ternary
