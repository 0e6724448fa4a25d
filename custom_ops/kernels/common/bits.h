// One row by bits in blocks of 128: lookup in registers, what processors share.
//
// Four bits of a column choose one of the 16 sums of four inputs, and a byte shuffle looks up 16
// such sums at once. So codes of 16 columns are transposed a span (128 inputs) at a time: byte i of
// a block holds inputs 16 j + i, 0 <= j < 8, its low nibble those of j < 4, and the bytes i of
// sixteen columns become neighbors.
//
// Tables. The sum of the inputs whose bits are 1, minus the sum of the negative ones among the
// four, lies in [0, sum |q|], and is kept in parts of five bits, one byte each: two parts for int8
// (4 * 128 = 512 < 2^10) and five for fixed point (4 * 8355711 < 2^25).
//
// Ranges. A byte adds up eight lookups: 8 * 31 = 248. A span has 32 lookups a column, so a pair of
// parts, low + 32 * high, is at most 32 * 31 + 32 * 32 * 31 = 32736, an int16. A span's sum is at
// most 128 * 8355711, and twice that is below 2^31. Spans are weighted and added in float64, where
// integer sums are exact (2^24 * 2^23), or added in integers.
//
// C headers and internal linkage only.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "span.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kBitColumns = 16;
constexpr int64_t kBitTiles = kBitColumns / kTile;
constexpr int64_t kBitBlockBytes = 16;
constexpr int kPartBits = 5;
constexpr int kPartMask = (1 << kPartBits) - 1;
constexpr int kInt8Parts = 2;
constexpr int kFloatParts = 5;

inline bool IsBits(const Layer* layer) {
  return layer->storage == Storage::one_bit && layer->block_size == kSpan;
}

// A row in prepared:
//   tables   (spans, 16 bytes of a block, 2 nibbles, parts, 16) uint8, in an order of the processor
//   offsets  (spans,) int32: sum(level * q) of a span minus (twice, binary_pm) what is looked up
//   unit     float: s (int8), or double: 2^-e (float)
struct BitsRow {
  size_t offsets_offset, unit_offset, bytes;
};

constexpr int64_t SpanTables(int parts) { return kBitBlockBytes * 2 * parts * 16; }

inline BitsRow BitsRowLayout(const Layer* layer, int parts) {
  BitsRow row;
  row.offsets_offset = (size_t)(NumSpans(layer) * SpanTables(parts));
  row.unit_offset = row.offsets_offset + RoundUp64((size_t)NumSpans(layer) * sizeof(int32_t));
  row.bytes = row.unit_offset + 64;
  return row;
}

// What makes entries of a table positive: minus the sum of the negative ones of four inputs.
template <typename Q>
inline int32_t NegativeInputs(const Q* q) {
  int32_t sum = 0;
  for (int j = 0; j < 4; ++j) sum -= q[16 * j] < 0 ? q[16 * j] : 0;
  return sum;
}

// The offset of a span of q.
template <typename Q>
inline int32_t BitsOffset(Alphabet alphabet, const Q* q) {
  int32_t negative = 0, magnitude = 0;
  for (int64_t i = 0; i < kSpan; ++i) {
    negative += q[i] < 0 ? q[i] : 0;
    magnitude += q[i] < 0 ? -q[i] : q[i];
  }
  return alphabet == Alphabet::binary_01 ? negative : -magnitude;
}

// Where codes of sixteen columns from n on lie. Tiles past the last one repeat the first; their
// sums are dropped.
inline void BitTiles(const Layer* layer, int64_t n, const uint8_t** codes) {
  for (int64_t t = 0; t < kBitTiles; ++t) {
    const bool inside = n / kTile + t < layer->num_column_tiles;
    codes[t] = TileStart(layer, n) + (inside ? t * TileBytes(layer) : 0);
  }
}

}  // namespace
}  // namespace onnx_ternary
