// One row by bits in blocks of 128, any 64-bit ARM: lookup in registers by `tbl`, for the kernels
// that serve one row. The idea, its tables and ranges: bits.h.
//
// A register of transposed codes is one byte of sixteen columns, so it has a table for its low
// nibbles and one for its high ones: tables (spans, 16 bytes, 2 nibbles, parts, 16).
//
// prepared: a BitsRow for each row | digits of a row in order (digits, padded K) int8
//
// scratch: scales of a strip
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include "bits.h"
#include "decode_neon.h"

namespace onnx_ternary {
namespace neon {
namespace {

static_assert(kBitTiles == kStripTiles, "scales of a strip");

template <int kDigitCount>
constexpr int Parts() {
  return kDigitCount == 1 ? kInt8Parts : kFloatParts;
}

// ---------------------------------------------------------------------------------------------
// Tables

// A table of four inputs: entries with bit j set contain q[16 * j]. out: parts, 16 bytes apart.
inline void FillTable(const int8_t* q, uint8_t* out) {
  static constexpr int16_t kBits[3][8] = {
      {0, -1, 0, -1, 0, -1, 0, -1}, {0, 0, -1, -1, 0, 0, -1, -1}, {0, 0, 0, 0, -1, -1, -1, -1}};
  int16x8_t low = vdupq_n_s16((int16_t)NegativeInputs(q));
  for (int j = 0; j < 3; ++j) {
    low = vaddq_s16(low, vandq_s16(vdupq_n_s16(q[16 * j]), vld1q_s16(kBits[j])));
  }
  const uint16x8_t sums[2] = {vreinterpretq_u16_s16(low),
                              vreinterpretq_u16_s16(vaddq_s16(low, vdupq_n_s16(q[48])))};
  const uint8x16_t bytes = vcombine_u8(vmovn_u16(sums[0]), vmovn_u16(sums[1]));
  vst1q_u8(out, vandq_u8(bytes, vdupq_n_u8(kPartMask)));
  vst1q_u8(out + 16, vcombine_u8(vshrn_n_u16(sums[0], kPartBits), vshrn_n_u16(sums[1], kPartBits)));
}

// The same of fixed point.
inline void FillTable(const int32_t* q, uint8_t* out) {
  static constexpr int32_t kBits[2][4] = {{0, -1, 0, -1}, {0, 0, -1, -1}};
  int32x4_t first = vdupq_n_s32(NegativeInputs(q));
  for (int j = 0; j < 2; ++j) {
    first = vaddq_s32(first, vandq_s32(vdupq_n_s32(q[16 * j]), vld1q_s32(kBits[j])));
  }
  uint32x4_t sums[4];
  for (int i = 0; i < 4; ++i) {
    const int32_t others = (i % 2 ? q[32] : 0) + (i / 2 ? q[48] : 0);
    sums[i] = vreinterpretq_u32_s32(vaddq_s32(first, vdupq_n_s32(others)));
  }
  for (int p = 0; p < kFloatParts; ++p) {
    const uint16x8_t low =
        vuzp1q_u16(vreinterpretq_u16_u32(sums[0]), vreinterpretq_u16_u32(sums[1]));
    const uint16x8_t high =
        vuzp1q_u16(vreinterpretq_u16_u32(sums[2]), vreinterpretq_u16_u32(sums[3]));
    const uint8x16_t bytes = vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
    vst1q_u8(out + 16 * p, vandq_u8(bytes, vdupq_n_u8(kPartMask)));
    for (int i = 0; i < 4; ++i) sums[i] = vshrq_n_u32(sums[i], kPartBits);
  }
}

template <typename Q>
inline void FillSpan(const Q* q, int parts, uint8_t* tables) {
  for (int64_t i = 0; i < kBitBlockBytes; ++i) {
    for (int64_t nibble = 0; nibble < 2; ++nibble) {
      FillTable(q + 64 * nibble + i, tables + (i * 2 + nibble) * parts * 16);
    }
  }
}

template <int kDigitCount>
size_t BitsPreparedBytes(const Layer* layer, int64_t rows) {
  return BitsRowLayout(layer, Parts<kDigitCount>()).bytes * (size_t)rows +
         (size_t)(kDigitCount * NumSpans(layer) * kSpan);
}

template <int kDigitCount>
void PrepareBits(const Layer* layer, const Call* call, const float* x, int64_t rows,
                 void* prepared) {
  constexpr int kParts = Parts<kDigitCount>();
  const BitsRow layout = BitsRowLayout(layer, kParts);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  int8_t* digits = (int8_t*)prepared + (size_t)rows * layout.bytes;
  for (int64_t row = 0; row < rows; ++row) {
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    const float* x_row = x + row * layer->K;
    if (kDigitCount == 1) {
      *(float*)(base + layout.unit_offset) = QuantizeRow(layer, call, x_row, digits);
      memset(digits + layer->K, 0, (size_t)(padded_K - layer->K));
    } else {
      *(double*)(base + layout.unit_offset) = FixedPointRow(layer, x_row, padded_K, digits);
    }
    int32_t* offsets = (int32_t*)(base + layout.offsets_offset);
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      uint8_t* tables = (uint8_t*)base + span * SpanTables(kParts);
      const int8_t* first = digits + span * kSpan;
      if constexpr (kDigitCount == 1) {
        FillSpan(first, kParts, tables);
        offsets[span] = BitsOffset(layer->alphabet, first);
      } else {
        int32_t q[kSpan];
        for (int64_t i = 0; i < kSpan; ++i) {
          q[i] = first[i] + 256 * first[padded_K + i] + 65536 * first[2 * padded_K + i];
        }
        FillSpan(q, kParts, tables);
        offsets[span] = BitsOffset(layer->alphabet, q);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The product

// codes: those of a span of four tiles, (4 columns, 16 bytes) each. out i: byte kByteOrder[i] of
// the sixteen columns, in order.
constexpr int kByteOrder[16] = {0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15};

OTN_ALWAYS_INLINE void Transpose(const uint8_t* const* codes, uint8x16_t* out) {
  uint8x16_t bytes[2][8];  // even and odd ones of two columns in turns
  OTN_UNROLL
  for (int i = 0; i < 8; ++i) {
    const uint8_t* source = codes[i / 2] + i % 2 * 32;
    const uint8x16_t a = vld1q_u8(source), b = vld1q_u8(source + 16);
    bytes[0][i] = vtrn1q_u8(a, b);
    bytes[1][i] = vtrn2q_u8(a, b);
  }
  OTN_UNROLL
  for (int odd = 0; odd < 2; ++odd) {
    uint32x4_t words[2][4];
    OTN_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint16x8_t a = vreinterpretq_u16_u8(bytes[odd][2 * i]);
      const uint16x8_t b = vreinterpretq_u16_u8(bytes[odd][2 * i + 1]);
      words[0][i] = vreinterpretq_u32_u16(vtrn1q_u16(a, b));
      words[1][i] = vreinterpretq_u32_u16(vtrn2q_u16(a, b));
    }
    OTN_UNROLL
    for (int second = 0; second < 2; ++second) {
      uint32x4_t* w = words[second];
      Transpose4x4(w);
      OTN_UNROLL
      for (int i = 0; i < 4; ++i) out[odd * 8 + second * 4 + i] = vreinterpretq_u8_u32(w[i]);
    }
  }
}

// What a span of sixteen columns looks up, part by part and eight columns in a register.
template <int kParts>
OTN_ALWAYS_INLINE void LookUpParts(const uint8_t* const* codes, const uint8_t* tables,
                                   uint16x8_t (*sums)[2]) {
  const uint8x16_t mask = vdupq_n_u8(15);
  uint8x16_t transposed[kBitBlockBytes];
  Transpose(codes, transposed);
  OTN_UNROLL
  for (int four = 0; four < 4; ++four) {
    uint8x16_t parts[kParts];
    OTN_UNROLL
    for (int k = 4 * four; k < 4 * four + 4; ++k) {
      const uint8x16_t low = vandq_u8(transposed[k], mask), high = vshrq_n_u8(transposed[k], 4);
      const uint8_t* table = tables + kByteOrder[k] * 2 * kParts * 16;
      OTN_UNROLL
      for (int p = 0; p < kParts; ++p) {
        const uint8x16_t found = vqtbl1q_u8(vld1q_u8(table + p * 16), low);
        parts[p] = k % 4 == 0 ? found : vaddq_u8(parts[p], found);
        parts[p] = vaddq_u8(parts[p], vqtbl1q_u8(vld1q_u8(table + (kParts + p) * 16), high));
        OTN_IN_REGISTER(parts[p]);
      }
    }
    OTN_UNROLL
    for (int p = 0; p < kParts; ++p) {
      const uint8x8_t low = vget_low_u8(parts[p]);
      sums[p][0] = four == 0 ? vmovl_u8(low) : vaddw_u8(sums[p][0], low);
      sums[p][1] = four == 0 ? vmovl_high_u8(parts[p]) : vaddw_high_u8(sums[p][1], parts[p]);
    }
  }
}

// Columns 4 t to 4 t + 3 of eight as int32.
OTN_ALWAYS_INLINE uint32x4_t Half(int t, uint16x8_t v) {
  return t % 2 ? vmovl_high_u16(v) : vmovl_u16(vget_low_u16(v));
}

// The same sums put together, columns (16,).
template <int kParts>
OTN_ALWAYS_INLINE void LookUpSpan(const uint8_t* const* codes, const uint8_t* tables,
                                  int32x4_t* columns) {
  uint16x8_t sums[kParts][2];
  LookUpParts<kParts>(codes, tables, sums);
  OTN_UNROLL
  for (int t = 0; t < kBitTiles; ++t) {
    const int half = t / 2;
    uint32x4_t sum = Half(t, vmlaq_n_u16(sums[0][half], sums[1][half], 1 << kPartBits));
    if constexpr (kParts == kFloatParts) {
      const uint16x8_t pair = vmlaq_n_u16(sums[2][half], sums[3][half], 1 << kPartBits);
      sum = vmlaq_n_u32(sum, Half(t, pair), 1 << 2 * kPartBits);
      sum = vmlaq_n_u32(sum, Half(t, sums[4][half]), 1 << 4 * kPartBits);
    }
    columns[t] = vreinterpretq_s32_u32(sum);
  }
}

// totals (16 columns): scale * sum(level * q) over all spans from column n on. scales: (4 tiles,
// spans, 4). Out of line: benchmarks/count_kernels.py finds the loop by its name.
template <int kParts>
OTN_NEVER_INLINE void DotBitsGroups(const Layer* layer, int64_t n, const uint8_t* tables,
                                    const int32_t* offsets, const float* scales, Wide* totals) {
  const uint8_t* codes[kBitTiles];
  BitTiles(layer, n, codes);
  const int64_t num_spans = NumSpans(layer);
  const int32_t factor = layer->alphabet == Alphabet::binary_01 ? 1 : 2;
  Wide total[kBitTiles];
  OTN_UNROLL
  for (int t = 0; t < kBitTiles; ++t) total[t].low = total[t].high = vdupq_n_f64(0.0);
  for (int64_t span = 0; span < num_spans; ++span) {
    int32x4_t columns[kBitTiles];
    LookUpSpan<kParts>(codes, tables + span * SpanTables(kParts), columns);
    OTN_UNROLL
    for (int t = 0; t < kBitTiles; ++t) {
      codes[t] += kTile * kBitBlockBytes;
      const Wide scale = WidenF32(vld1q_f32(scales + (t * num_spans + span) * kTile));
      AddUnit(total + t, vmulq_n_s32(columns[t], factor), -offsets[span], scale);
    }
  }
  OTN_UNROLL
  for (int t = 0; t < kBitTiles; ++t) totals[t] = total[t];
}

// The same without scales, in integers: an int8 row's sums may wrap, but sum(level * q) is at most
// 128 K <= 2^31 - 128 in magnitude, and so exact modulo 2^32.
OTN_NEVER_INLINE void DotBitsInt8(const Layer* layer, int64_t n, const uint8_t* tables,
                                  const int32_t* offsets, int32x4_t* totals) {
  const uint8_t* codes[kBitTiles];
  BitTiles(layer, n, codes);
  int32x4_t total[kBitTiles];
  OTN_UNROLL
  for (int t = 0; t < kBitTiles; ++t) total[t] = vdupq_n_s32(0);
  uint32_t offset = 0;
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    int32x4_t columns[kBitTiles];
    LookUpSpan<kInt8Parts>(codes, tables + span * SpanTables(kInt8Parts), columns);
    offset += (uint32_t)offsets[span];
    OTN_UNROLL
    for (int t = 0; t < kBitTiles; ++t) {
      codes[t] += kTile * kBitBlockBytes;
      total[t] = vaddq_s32(total[t], columns[t]);
    }
  }
  const int32_t factor = layer->alphabet == Alphabet::binary_01 ? 1 : 2;
  for (int t = 0; t < kBitTiles; ++t) {
    totals[t] = vmlaq_n_s32(vdupq_n_s32((int32_t)offset), total[t], factor);
  }
}

OTN_NEVER_INLINE void DotBitsFloat(const Layer* layer, int64_t n, const uint8_t* tables,
                                   const int32_t* offsets, Wide* totals) {
  const uint8_t* codes[kBitTiles];
  BitTiles(layer, n, codes);
  int64x2_t low[kBitTiles], high[kBitTiles];
  OTN_UNROLL
  for (int t = 0; t < kBitTiles; ++t) low[t] = high[t] = vdupq_n_s64(0);
  int64_t offset = 0;
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    int32x4_t columns[kBitTiles];
    LookUpSpan<kFloatParts>(codes, tables + span * SpanTables(kFloatParts), columns);
    offset += offsets[span];
    OTN_UNROLL
    for (int t = 0; t < kBitTiles; ++t) {
      codes[t] += kTile * kBitBlockBytes;
      low[t] = vaddw_s32(low[t], vget_low_s32(columns[t]));
      high[t] = vaddw_high_s32(high[t], columns[t]);
    }
  }
  const bool twice = layer->alphabet != Alphabet::binary_01;
  const int64x2_t start = vdupq_n_s64(offset);
  for (int t = 0; t < kBitTiles; ++t) {
    if (twice) {
      low[t] = vaddq_s64(low[t], low[t]);
      high[t] = vaddq_s64(high[t], high[t]);
    }
    totals[t].low = vcvtq_f64_s64(vaddq_s64(low[t], start));
    totals[t].high = vcvtq_f64_s64(vaddq_s64(high[t], start));
  }
}

// Y of sixteen columns from n on of one row; columns from `end` on are not written. scales: as
// above, of groups.
inline void GemvBitsInt8(const Layer* layer, const char* base, const float* scales, int64_t n,
                         int64_t end, float* y) {
  const BitsRow layout = BitsRowLayout(layer, kInt8Parts);
  const uint8_t* tables = (const uint8_t*)base;
  const int32_t* offsets = (const int32_t*)(base + layout.offsets_offset);
  const float s = *(const float*)(base + layout.unit_offset);
  Wide wide[kBitTiles];
  int32x4_t sums[kBitTiles];
  if (PerGroup(layer)) {
    DotBitsGroups<kInt8Parts>(layer, n, tables, offsets, scales, wide);
  } else {
    DotBitsInt8(layer, n, tables, offsets, sums);
  }
  for (int64_t t = 0; t < kBitTiles && n + t * kTile < end; ++t) {
    const int64_t column = n + t * kTile;
    const float32x4_t result = PerGroup(layer) ? FinishGroupsInt8(layer, wide[t], s, column)
                                               : FinishInt8(layer, sums[t], s, column);
    StoreFloats(y + column, result, end - column);
  }
}

inline void GemvBitsFloat(const Layer* layer, const char* base, const float* scales, int64_t n,
                          int64_t end, float* y) {
  const BitsRow layout = BitsRowLayout(layer, kFloatParts);
  const uint8_t* tables = (const uint8_t*)base;
  const int32_t* offsets = (const int32_t*)(base + layout.offsets_offset);
  const double unit = *(const double*)(base + layout.unit_offset);
  Wide totals[kBitTiles];
  if (PerGroup(layer)) {
    DotBitsGroups<kFloatParts>(layer, n, tables, offsets, scales, totals);
  } else {
    DotBitsFloat(layer, n, tables, offsets, totals);
  }
  for (int64_t t = 0; t < kBitTiles && n + t * kTile < end; ++t) {
    const int64_t column = n + t * kTile;
    if (!PerGroup(layer)) {
      const Wide scale = WidenF32(LoadScale(layer, column));
      totals[t].low = vmulq_f64(totals[t].low, scale.low);
      totals[t].high = vmulq_f64(totals[t].high, scale.high);
    }
    StoreFloats(y + column, FinishFloat(layer, totals[t], unit, column), end - column);
  }
}

// ---------------------------------------------------------------------------------------------
// Kernels that look bits up and decode what else there is with Ops: Ops::LooksUp(layer, digits)
// says whether looking bits of blocks of 128 up is faster.

template <typename Ops, int kDigitCount>
bool LooksUp(const Layer* layer) {
  return IsBits(layer) && Ops::LooksUp(layer, kDigitCount);
}

template <typename Ops, int kDigitCount>
size_t GemvPreparedBytes(const Layer* layer, int64_t rows) {
  if (LooksUp<Ops, kDigitCount>(layer)) return BitsPreparedBytes<kDigitCount>(layer, rows);
  return PreparedBytes<Ops, kDigitCount>(layer, rows);
}

template <typename Ops, int kDigitCount>
void PrepareGemv(const Layer* layer, const Call* call, const float* x, int64_t rows,
                 void* prepared) {
  if (LooksUp<Ops, kDigitCount>(layer)) {
    PrepareBits<kDigitCount>(layer, call, x, rows, prepared);
  } else {
    Prepare<Ops, kDigitCount>(layer, call, x, rows, prepared);
  }
}

template <typename Ops, int kDigitCount>
void ComputeGemv(const Layer* layer, const float* x, int64_t rows, const void* prepared,
                 int64_t begin, int64_t end, float* y, void* scratch) {
  if (!LooksUp<Ops, kDigitCount>(layer)) {
    return Compute<Ops, kDigitCount>(layer, x, rows, prepared, begin, end, y, scratch);
  }
  const size_t row_bytes = BitsRowLayout(layer, Parts<kDigitCount>()).bytes;
  const auto gemv = kDigitCount == 1 ? GemvBitsInt8 : GemvBitsFloat;
  for (int64_t n = begin; n < end; n += kBitColumns) {
    const float* scales = PerGroup(layer) ? StripScales(layer, n, n, (float*)scratch) : nullptr;
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * row_bytes;
      gemv(layer, base, scales, n, end, y + row * layer->N);
    }
  }
}

}  // namespace
}  // namespace neon
}  // namespace onnx_ternary
