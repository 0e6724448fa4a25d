// One row by bits in blocks of 128, AVX2: lookup in registers, for packed_gemv_int8_1x4 and
// packed_gemv_float_1x4. The idea, its tables and ranges: common/bits.h.
//
// `vpshufb` looks up 32 sums at once: a register of transposed codes is bytes 2k of sixteen columns
// in its low half and bytes 2k + 1 in its high half, with a table of each half for the low and the
// high nibble: tables (spans, 8 registers, 2 nibbles, parts, 2 halves, 16). Pairs of parts are
// widened to int16 by maddubs, after eight lookups of four registers.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/bits.h"
#include "common/decode_avx2.h"

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int kRegisters = 8;  // of transposed codes of a span

// A table of four inputs: entries with bit j set contain q[16 * j]. out: parts, 32 bytes apart.
inline void FillTable(const int8_t* q, uint8_t* out) {
  const __m256i bits[4] = {
      _mm256_setr_epi16(0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1, 0, -1),
      _mm256_setr_epi16(0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1, 0, 0, -1, -1),
      _mm256_setr_epi16(0, 0, 0, 0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, -1, -1),
      _mm256_setr_epi16(0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1)};
  __m256i sums = _mm256_set1_epi16((int16_t)NegativeInputs(q));
  for (int j = 0; j < 4; ++j) {
    sums = _mm256_add_epi16(sums, _mm256_and_si256(_mm256_set1_epi16(q[16 * j]), bits[j]));
  }
  const __m256i low = _mm256_and_si256(sums, _mm256_set1_epi16(kPartMask));
  const __m256i high = _mm256_srli_epi16(sums, kPartBits);
  const __m256i parts = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
  _mm_store_si128((__m128i*)out, _mm256_castsi256_si128(parts));
  _mm_store_si128((__m128i*)(out + 32), _mm256_extracti128_si256(parts, 1));
}

// The same of fixed point.
inline void FillTable(const int32_t* q, uint8_t* out) {
  const __m256i bit0 = _mm256_setr_epi32(0, -1, 0, -1, 0, -1, 0, -1);
  const __m256i bit1 = _mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1);
  const __m256i bit3 = _mm256_setr_epi32(0, 0, 0, 0, -1, -1, -1, -1);
  const __m256i mask = _mm256_set1_epi32(kPartMask);
  // Entries 0 to 3 and 8 to 11; 4 to 7 and 12 to 15: packing leaves them in order.
  __m256i sums[2];
  sums[0] = _mm256_set1_epi32(NegativeInputs(q));
  sums[0] = _mm256_add_epi32(sums[0], _mm256_and_si256(_mm256_set1_epi32(q[0]), bit0));
  sums[0] = _mm256_add_epi32(sums[0], _mm256_and_si256(_mm256_set1_epi32(q[16]), bit1));
  sums[0] = _mm256_add_epi32(sums[0], _mm256_and_si256(_mm256_set1_epi32(q[48]), bit3));
  sums[1] = _mm256_add_epi32(sums[0], _mm256_set1_epi32(q[32]));
  for (int p = 0; p < kFloatParts; ++p) {
    const __m256i words =
        _mm256_packs_epi32(_mm256_and_si256(sums[0], mask), _mm256_and_si256(sums[1], mask));
    const __m128i bytes =
        _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_store_si128((__m128i*)(out + 32 * p), bytes);
    sums[0] = _mm256_srli_epi32(sums[0], kPartBits);
    sums[1] = _mm256_srli_epi32(sums[1], kPartBits);
  }
}

template <typename Q>
inline void FillSpan(const Q* q, int parts, uint8_t* tables) {
  for (int i = 0; i < kBitBlockBytes; ++i) {
    for (int nibble = 0; nibble < 2; ++nibble) {
      FillTable(q + 64 * nibble + i, tables + (i / 2 * 2 + nibble) * parts * 32 + i % 2 * 16);
    }
  }
}

inline size_t BitsInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return BitsRowLayout(layer, kInt8Parts).bytes * (size_t)rows + (size_t)(NumSpans(layer) * kSpan);
}

inline void PrepareBitsInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                            void* prepared) {
  const BitsRow layout = BitsRowLayout(layer, kInt8Parts);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  int8_t* in_order = (int8_t*)prepared + (size_t)rows * layout.bytes;
  for (int64_t row = 0; row < rows; ++row) {
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    *(float*)(base + layout.unit_offset) = QuantizeRow(layer, call, x + row * layer->K, in_order);
    memset(in_order + layer->K, 0, (size_t)(padded_K - layer->K));
    int32_t* offsets = (int32_t*)(base + layout.offsets_offset);
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      const int8_t* q = in_order + span * kSpan;
      FillSpan(q, kInt8Parts, (uint8_t*)base + span * SpanTables(kInt8Parts));
      offsets[span] = BitsOffset(layer->alphabet, q);
    }
  }
}

inline size_t BitsFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return BitsRowLayout(layer, kFloatParts).bytes * (size_t)rows;
}

inline void PrepareBitsFloat(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const BitsRow layout = BitsRowLayout(layer, kFloatParts);
  for (int64_t row = 0; row < rows; ++row) {
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    const float* x_row = x + row * layer->K;
    const int e = FixedPointExponent(AbsMax(x_row, layer->K));
    *(double*)(base + layout.unit_offset) = PowerOfTwo(-e);
    const TwoFactors factors = FactorsOfPower(e);
    int32_t* offsets = (int32_t*)(base + layout.offsets_offset);
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      int8_t digits[kDigits][kSpan];
      SpanDigits(factors, x_row + span * kSpan, layer->K - span * kSpan, digits);
      int32_t q[kSpan];
      for (int64_t i = 0; i < kSpan; ++i) {
        q[i] = digits[0][i] + 256 * digits[1][i] + 65536 * digits[2][i];
      }
      FillSpan(q, kFloatParts, (uint8_t*)base + span * SpanTables(kFloatParts));
      offsets[span] = BitsOffset(layer->alphabet, q);
    }
  }
}

// codes: those of a span of four tiles, (4 columns, 16 bytes) each. out k: bytes 2k of the sixteen
// columns, then bytes 2k + 1, in the order of kOrder below.
OTN_ALWAYS_INLINE void Transpose(const uint8_t* const* codes, __m256i* out) {
  // Halves of tiles in the order that leaves columns 0, 2, 4, 6 and 1, 3, 5, 7 at even bytes.
  const __m256i a0 = LoadU(codes[0]), a2 = LoadU(codes[0] + 32);
  const __m256i a4 = LoadU(codes[1]), a6 = LoadU(codes[1] + 32);
  const __m256i a1 = LoadU(codes[2]), a3 = LoadU(codes[2] + 32);
  const __m256i a5 = LoadU(codes[3]), a7 = LoadU(codes[3] + 32);
  const __m256i pairs[2][4] = {{_mm256_unpacklo_epi8(a0, a1), _mm256_unpacklo_epi8(a2, a3),
                                _mm256_unpacklo_epi8(a4, a5), _mm256_unpacklo_epi8(a6, a7)},
                               {_mm256_unpackhi_epi8(a0, a1), _mm256_unpackhi_epi8(a2, a3),
                                _mm256_unpackhi_epi8(a4, a5), _mm256_unpackhi_epi8(a6, a7)}};
  for (int half = 0; half < 2; ++half) {
    const __m256i* p = pairs[half];
    const __m256i low_left = _mm256_unpacklo_epi16(p[0], p[1]);
    const __m256i low_right = _mm256_unpacklo_epi16(p[2], p[3]);
    const __m256i high_left = _mm256_unpackhi_epi16(p[0], p[1]);
    const __m256i high_right = _mm256_unpackhi_epi16(p[2], p[3]);
    __m256i* o = out + 4 * half;
    o[0] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(low_left, low_right), 0xd8);
    o[1] = _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(low_left, low_right), 0xd8);
    o[2] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(high_left, high_right), 0xd8);
    o[3] = _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(high_left, high_right), 0xd8);
  }
}

// Adds what four registers of transposed codes look up to sums, (pairs of parts, even and odd
// columns) of int16.
template <int kParts>
OTN_ALWAYS_INLINE void AddLookups(const __m256i* codes, const uint8_t* tables, __m256i (*sums)[2]) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i parts[kParts];
  for (int p = 0; p < kParts; ++p) parts[p] = _mm256_setzero_si256();
  for (int k = 0; k < kRegisters / 2; ++k) {
    const __m256i low = _mm256_and_si256(codes[k], mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes[k], 4), mask);
    const uint8_t* table = tables + k * 2 * kParts * 32;
    for (int p = 0; p < kParts; ++p) {
      parts[p] = _mm256_add_epi8(parts[p], _mm256_shuffle_epi8(LoadA(table + p * 32), low));
      parts[p] =
          _mm256_add_epi8(parts[p], _mm256_shuffle_epi8(LoadA(table + (kParts + p) * 32), high));
      OTN_IN_REGISTER(parts[p]);
    }
  }
  for (int p = 0; p < kParts; ++p) {
    const int weight = p % 2 == 0 ? 1 : 1 << kPartBits;
    __m256i* sum = sums[p / 2];
    sum[0] = _mm256_add_epi16(sum[0],
                              _mm256_maddubs_epi16(parts[p], _mm256_set1_epi16((int16_t)weight)));
    sum[1] = _mm256_add_epi16(
        sum[1], _mm256_maddubs_epi16(parts[p], _mm256_set1_epi16((int16_t)(weight << 8))));
  }
}

// What a span of sixteen columns looks up, in order.
template <int kParts>
OTN_ALWAYS_INLINE void LookUpSpan(const uint8_t* const* codes, const uint8_t* tables,
                                  __m128i* columns) {
  constexpr int kPairs = (kParts + 1) / 2;
  __m256i transposed[kRegisters];
  Transpose(codes, transposed);
  __m256i sums[kPairs][2];
  for (int i = 0; i < kPairs; ++i) sums[i][0] = sums[i][1] = _mm256_setzero_si256();
  AddLookups<kParts>(transposed, tables, sums);
  AddLookups<kParts>(transposed + kRegisters / 2, tables + SpanTables(kParts) / 2, sums);
  const __m128i zero = _mm_setzero_si128();
  const __m128i weights = _mm_set1_epi32(1 | 1 << (2 * kPartBits + 16));
  for (int odd = 0; odd < 2; ++odd) {
    __m128i words[kPairs];
    for (int i = 0; i < kPairs; ++i) {
      words[i] = _mm_add_epi16(_mm256_castsi256_si128(sums[i][odd]),
                               _mm256_extracti128_si256(sums[i][odd], 1));
    }
    // Columns 0, 4, 8, 12 and 1, 5, 9, 13 of eight; interleaved they are in order.
    __m128i left, right;
    if (kPairs == 1) {
      left = _mm_unpacklo_epi16(words[0], zero);
      right = _mm_unpackhi_epi16(words[0], zero);
    } else {
      left = _mm_madd_epi16(_mm_unpacklo_epi16(words[0], words[kPairs / 2]), weights);
      right = _mm_madd_epi16(_mm_unpackhi_epi16(words[0], words[kPairs / 2]), weights);
      const __m128i top_left = _mm_unpacklo_epi16(words[kPairs - 1], zero);
      const __m128i top_right = _mm_unpackhi_epi16(words[kPairs - 1], zero);
      left = _mm_add_epi32(left, _mm_slli_epi32(top_left, 4 * kPartBits));
      right = _mm_add_epi32(right, _mm_slli_epi32(top_right, 4 * kPartBits));
    }
    columns[2 * odd] = _mm_unpacklo_epi32(left, right);
    columns[2 * odd + 1] = _mm_unpackhi_epi32(left, right);
  }
}

// sum(level * q) of the sixteen columns from n on, times the scales of groups where there are some.
template <int kParts>
inline void DotBits(const Layer* layer, int64_t n, const uint8_t* tables, const int32_t* offsets,
                    __m256d* totals) {
  const int64_t tile_bytes = TileBytes(layer);
  const uint8_t* codes[kBitTiles];
  BitTiles(layer, n, codes);
  for (int t = 0; t < kBitTiles; ++t) totals[t] = _mm256_setzero_pd();
  const int64_t group_spans = PerGroup(layer) ? layer->group_size / kSpan : 0;
  const float* scales = layer->scale + n;
  const bool twice = layer->alphabet != Alphabet::binary_01;
  int64_t in_group = 0;
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    __m128i columns[kBitTiles];
    // The next columns' codes: 20 % less time than without, two ahead no better (Zen 1, DRAM).
    for (int t = 0; t < kBitTiles; ++t) {
      _mm_prefetch((const char*)codes[t] + kBitTiles * tile_bytes, _MM_HINT_T0);
    }
    LookUpSpan<kParts>(codes, tables + span * SpanTables(kParts), columns);
    const __m128i offset = _mm_set1_epi32(offsets[span]);
    // Two groups of columns ahead: 20 % less time than one ahead, four no better (Zen 1, DRAM).
    if (group_spans) _mm_prefetch((const char*)(scales + 2 * kBitColumns), _MM_HINT_T0);
    for (int t = 0; t < kBitTiles; ++t) {
      codes[t] += kTile * kBitBlockBytes;
      const __m128i looked_up = twice ? _mm_add_epi32(columns[t], columns[t]) : columns[t];
      const __m256d sum = _mm256_cvtepi32_pd(_mm_add_epi32(looked_up, offset));
      if (group_spans) {
        const __m128 scale = LoadFloats(scales + t * kTile, layer->N - n - t * kTile);
        totals[t] = _mm256_fmadd_pd(sum, _mm256_cvtps_pd(scale), totals[t]);
      } else {
        totals[t] = _mm256_add_pd(totals[t], sum);
      }
    }
    if (group_spans && ++in_group == group_spans) {
      in_group = 0;
      scales += layer->N;
    }
  }
}

inline void GemvBitsInt8(const Layer* layer, int64_t rows, const void* prepared, int64_t begin,
                         int64_t end, float* y) {
  const BitsRow layout = BitsRowLayout(layer, kInt8Parts);
  for (int64_t n = begin; n < end; n += kBitColumns) {
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * layout.bytes;
      const float s = *(const float*)(base + layout.unit_offset);
      __m256d totals[kBitTiles];
      DotBits<kInt8Parts>(layer, n, (const uint8_t*)base,
                          (const int32_t*)(base + layout.offsets_offset), totals);
      for (int64_t t = 0; t < kBitTiles && n + t * kTile < end; ++t) {
        const int64_t column = n + t * kTile;
        const __m128 result = PerGroup(layer)
                                  ? FinishGroupsInt8(layer, totals[t], s, column)
                                  : FinishInt8(layer, _mm256_cvtpd_epi32(totals[t]), s, column);
        StoreFloats(y + row * layer->N + column, result, end - column);
      }
    }
  }
}

inline void GemvBitsFloat(const Layer* layer, int64_t rows, const void* prepared, int64_t begin,
                          int64_t end, float* y) {
  const BitsRow layout = BitsRowLayout(layer, kFloatParts);
  for (int64_t n = begin; n < end; n += kBitColumns) {
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * layout.bytes;
      const __m256d unit = _mm256_set1_pd(*(const double*)(base + layout.unit_offset));
      __m256d totals[kBitTiles];
      DotBits<kFloatParts>(layer, n, (const uint8_t*)base,
                           (const int32_t*)(base + layout.offsets_offset), totals);
      for (int64_t t = 0; t < kBitTiles && n + t * kTile < end; ++t) {
        const int64_t column = n + t * kTile;
        __m256d total = totals[t];
        if (!PerGroup(layer)) {
          total = _mm256_mul_pd(total, _mm256_cvtps_pd(LoadScale(layer, column)));
        }
        const __m256d bias = _mm256_cvtps_pd(LoadBias(layer, column));
        const __m256d result = _mm256_add_pd(_mm256_mul_pd(total, unit), bias);
        StoreFloats(y + row * layer->N + column, _mm256_cvtpd_ps(result), end - column);
      }
    }
  }
}

}  // namespace
}  // namespace avx2
}  // namespace onnx_ternary
