// Kernels for `packed`, AVX2, that decode: GEMV (int8, and float as fixed point) and GEMM (int8).
//
// Layout: span.h; activations are laid out in the order of the fields. A unit is one block:
// B/16 int32 lanes of a register. Everything in prepared and scratch is 64-byte aligned.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files: sums then wrap, which intrinsics define).
// d is an int8 in [-128, 127].
//   code field at scale 1: maddubs adds two products, |.| <= 2 * 2 * 128 = 512
//   code field at scale 4 (mask 12, not shifted): |.| <= 2 * 8 * 128 = 2048
// so two maddubs per span at scale 4 over 8 spans reach 16 * -2048 = -32768 and 16 * 8 * 127 * 2 =
// 32512: exactly int16. Sums are widened to int32 every 8 spans. There the sum over codes may wrap
// for K above 2^23, but sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in
// magnitude, and so exact modulo 2^32.
//
// With scales per group, units are summed exactly, weighted in float64 and added up there in the
// order of the units. A span at scale 1 is four maddubs, 4 * 512; the three digits of a unit are
// put together first: at most 128 * 8355711 < 2^31.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/decode_avx2.h"
#include "kernel_list.h"
#include "packed_decode_avx2_bits.h"

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kWiden = 8;  // spans an int16 sum may cover, see above

// Hides DRAM latency: three KB ahead were best on Zen 3 (27.6 against 24 weights/cycle without).
constexpr int64_t kPrefetchBytes = 3072;

// int16 sums of the fields at scale 1 and at scale 4, as eight int32. Every sum at scale 4 is a
// multiple of 4, so the shift is exact, and 16 * 512 + 32768 / 4 = 16384 still fits int16.
__m256i Widen(__m256i sum_scale1, __m256i sum_scale4) {
  const __m256i sum = _mm256_add_epi16(sum_scale1, _mm256_srai_epi16(sum_scale4, 2));
  return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

// sums (padded units,): of q over each.
void UnitSums(const Layer* layer, const int8_t* q, int32_t* sums) {
  for (int64_t u = 0; u < PaddedUnits(layer); ++u) {
    sums[u] = SumBytes(q + u * layer->block_size, layer->block_size);
  }
}

// total += scale * (sum - the unit's activations) for four columns.
inline __m256d AddUnit(__m256d total, __m128i sum, const int32_t* unit_sum, const float* scales) {
  const __m128i exact = _mm_sub_epi32(sum, _mm_set1_epi32(*unit_sum));
  return _mm256_fmadd_pd(_mm256_cvtepi32_pd(exact), _mm256_cvtps_pd(_mm_load_ps(scales)), total);
}

// The same for the units of one span, from the eight int32 of each column. unit_sums and scales
// (units, 4) begin at the span.
inline __m256d AddUnits(int64_t block_size, __m256d total, const __m256i* columns,
                        const int32_t* unit_sums, const float* scales) {
  const __m256i a = columns[0], b = columns[1], c = columns[2], d = columns[3];
  if (block_size == kSpan) {
    return AddUnit(total, HorizontalSums(a, b, c, d), unit_sums, scales);
  }
  // Registers of four columns, one unit in each half.
  __m256i units[4];
  int count = 1;
  if (block_size == 16) {
    const __m256i low_ab = _mm256_unpacklo_epi32(a, b), high_ab = _mm256_unpackhi_epi32(a, b);
    const __m256i low_cd = _mm256_unpacklo_epi32(c, d), high_cd = _mm256_unpackhi_epi32(c, d);
    units[0] = _mm256_unpacklo_epi64(low_ab, low_cd);
    units[1] = _mm256_unpackhi_epi64(low_ab, low_cd);
    units[2] = _mm256_unpacklo_epi64(high_ab, high_cd);
    units[3] = _mm256_unpackhi_epi64(high_ab, high_cd);
    count = 4;
  } else {
    const __m256i ab = _mm256_hadd_epi32(a, b), cd = _mm256_hadd_epi32(c, d);
    if (block_size == 64) {
      units[0] = _mm256_hadd_epi32(ab, cd);
    } else {
      const __m256 x = _mm256_castsi256_ps(ab), y = _mm256_castsi256_ps(cd);
      units[0] = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88));
      units[1] = _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd));
      count = 2;
    }
  }
  for (int i = 0; i < count; ++i) {
    total = AddUnit(total, _mm256_castsi256_si128(units[i]), unit_sums + i, scales + i * kTile);
  }
  for (int i = 0; i < count; ++i) {
    total = AddUnit(total, _mm256_extracti128_si256(units[i], 1), unit_sums + count + i,
                    scales + (count + i) * kTile);
  }
  return total;
}

// The same from the sixteen int16 of each column, at most 2048 in magnitude: two additions of
// neighbors reach 8192.
inline __m256d AddSpan(int64_t block_size, __m256d total, const __m256i* columns,
                       const int32_t* unit_sums, const float* scales) {
  const __m256i one = _mm256_set1_epi16(1);
  if (block_size >= 64) {
    const __m256i quarters = _mm256_hadd_epi16(_mm256_hadd_epi16(columns[0], columns[1]),
                                               _mm256_hadd_epi16(columns[2], columns[3]));
    const __m256i halves = _mm256_madd_epi16(quarters, one);
    const __m128i low = _mm256_castsi256_si128(halves);
    const __m128i high = _mm256_extracti128_si256(halves, 1);
    if (block_size == kSpan) return AddUnit(total, _mm_add_epi32(low, high), unit_sums, scales);
    total = AddUnit(total, low, unit_sums, scales);
    return AddUnit(total, high, unit_sums + 1, scales + kTile);
  }
  __m256i columns_i32[kTile];
  for (int c = 0; c < kTile; ++c) columns_i32[c] = _mm256_madd_epi16(columns[c], one);
  return AddUnits(block_size, total, columns_i32, unit_sums, scales);
}

// The four fields of 32 bytes, at scale 1.
inline void Fields(__m256i v, __m256i* fields) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  fields[0] = _mm256_and_si256(v, mask3);
  fields[1] = _mm256_and_si256(_mm256_srli_epi16(v, 2), mask3);
  fields[2] = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask3);
  fields[3] = _mm256_and_si256(_mm256_srli_epi16(v, 6), mask3);
}

// sum(code * q) over one span of one column, sixteen int16.
inline __m256i DotSpan(const __m256i* fields, const int8_t* q) {
  return _mm256_add_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(fields[0], LoadA(q)),
                                           _mm256_maddubs_epi16(fields[1], LoadA(q + 32))),
                          _mm256_add_epi16(_mm256_maddubs_epi16(fields[2], LoadA(q + 64)),
                                           _mm256_maddubs_epi16(fields[3], LoadA(q + 96))));
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_int8_1x4: one row, four columns. prepared, per row:
//   q     (num_spans * 128,) int8, zero past K
//   sums  () int32: sum of q; with scales per group (padded units,): over each unit
//   s     float
// and one row in order. Load 32 bytes v and s = v >> 4; v & 3, v & 12, s & 3, s & 12 are the four
// fields, two of them at scale 4, summed apart.

struct Int8Row {
  size_t sums_offset, s_offset, bytes;
};

int64_t NumSums(const Layer* layer) { return PerGroup(layer) ? PaddedUnits(layer) : 1; }

Int8Row Int8RowLayout(const Layer* layer) {
  Int8Row row;
  row.sums_offset = (size_t)(NumSpans(layer) * kSpan);
  row.s_offset = row.sums_offset + RoundUp64((size_t)NumSums(layer) * sizeof(int32_t));
  row.bytes = row.s_offset + 64;
  return row;
}

size_t GemvInt8PreparedBytes(const Layer* layer, int64_t rows) {
  if (IsBits(layer)) return BitsInt8PreparedBytes(layer, rows);
  return Int8RowLayout(layer).bytes * (size_t)rows + (size_t)(NumSpans(layer) * kSpan);
}

// Quantizes a row to in_order (padded K,) and sums it up. Returns s.
float QuantizeAndSum(const Layer* layer, const Call* call, const float* x, int8_t* in_order,
                     int32_t* sums) {
  const int64_t padded_K = NumSpans(layer) * kSpan;
  const float s = QuantizeRow(layer, call, x, in_order);
  memset(in_order + layer->K, 0, (size_t)(padded_K - layer->K));
  if (PerGroup(layer)) {
    UnitSums(layer, in_order, sums);
  } else {
    *sums = SumBytes(in_order, padded_K);
  }
  return s;
}

void PrepareGemvInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  if (IsBits(layer)) return PrepareBitsInt8(layer, call, x, rows, prepared);
  const Int8Row layout = Int8RowLayout(layer);
  int8_t* in_order = (int8_t*)prepared + (size_t)rows * layout.bytes;
  for (int64_t row = 0; row < rows; ++row) {
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    *(float*)(base + layout.s_offset) = QuantizeAndSum(layer, call, x + row * layer->K, in_order,
                                                       (int32_t*)(base + layout.sums_offset));
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      OrderSpan(layer, in_order + span * kSpan, (int8_t*)base + span * kSpan);
    }
  }
}

// sum(code * q) over spans [begin, end), at most kWiden, of one column tile: (4,) of eight int32.
inline void DotInt8Short(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                         __m256i* sum_i32) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i mask12 = _mm256_set1_epi8(12);
  __m256i scale1_i16[kTile], scale4_i16[kTile];
  for (int c = 0; c < kTile; ++c) scale1_i16[c] = scale4_i16[c] = _mm256_setzero_si256();
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = tile_codes + b * kTileSpanBytes;
    const int8_t* q_block = q + b * kSpan;
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    for (int c = 0; c < kTile; ++c) {
      const __m256i v = LoadU(codes + c * kSpanBytes);
      const __m256i s = _mm256_srli_epi16(v, 4);
      scale1_i16[c] = _mm256_add_epi16(
          scale1_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(v, mask3), LoadA(q_block)));
      scale4_i16[c] = _mm256_add_epi16(
          scale4_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(v, mask12), LoadA(q_block + 32)));
      scale1_i16[c] = _mm256_add_epi16(
          scale1_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(s, mask3), LoadA(q_block + 64)));
      scale4_i16[c] = _mm256_add_epi16(
          scale4_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(s, mask12), LoadA(q_block + 96)));
    }
  }
  for (int c = 0; c < kTile; ++c) sum_i32[c] = Widen(scale1_i16[c], scale4_i16[c]);
}

// sum(level * q) over spans [begin, end) of one column tile, four columns.
inline __m128i DotInt8(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                       int32_t sum_q) {
  __m256i sum_i32[kTile];
  DotInt8Short(tile_codes, q, begin, Min(begin + kWiden, end), sum_i32);
  for (int64_t b = begin + kWiden; b < end; b += kWiden) {
    __m256i part_i32[kTile];
    DotInt8Short(tile_codes, q, b, Min(b + kWiden, end), part_i32);
    for (int c = 0; c < kTile; ++c) sum_i32[c] = _mm256_add_epi32(sum_i32[c], part_i32[c]);
  }
  return _mm_sub_epi32(HorizontalSums(sum_i32[0], sum_i32[1], sum_i32[2], sum_i32[3]),
                       _mm_set1_epi32(sum_q));
}

void GemvInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  if (IsBits(layer)) return GemvBitsInt8(layer, rows, prepared, begin, end, y);
  const Int8Row layout = Int8RowLayout(layer);
  const DecodeScratch memory = DecodeScratchLayout(layer);
  const int64_t num_spans = NumSpans(layer);
  const int64_t span_units = SpanUnits(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = TileCodes(layer, n, (uint8_t*)scratch + memory.expanded_offset);
    const float* scales = PerGroup(layer) ? StripScales(layer, begin, n, (float*)scratch) : nullptr;
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * layout.bytes;
      const int8_t* q = (const int8_t*)base;
      const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
      const float s = *(const float*)(base + layout.s_offset);
      __m128 result;
      if (!scales) {
        result = FinishInt8(layer, DotInt8(codes, q, 0, num_spans, sums[0]), s, n);
      } else {
        __m256d total = _mm256_setzero_pd();
        for (int64_t span = 0; span < num_spans; ++span) {
          const uint8_t* span_codes = codes + span * kTileSpanBytes;
          _mm_prefetch((const char*)span_codes + kPrefetchBytes, _MM_HINT_T0);
          _mm_prefetch((const char*)span_codes + kPrefetchBytes + 64, _MM_HINT_T0);
          __m256i columns[kTile];
          for (int c = 0; c < kTile; ++c) {
            __m256i fields[4];
            Fields(LoadU(span_codes + c * kSpanBytes), fields);
            columns[c] = DotSpan(fields, q + span * kSpan);
          }
          total = AddSpan(layer->block_size, total, columns, sums + span * span_units,
                          scales + span * span_units * kTile);
        }
        result = FinishGroupsInt8(layer, total, s, n);
      }
      StoreFloats(y + row * layer->N + n, result, end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_float_1x4: one row as fixed point (fixed_point.h), the decode loop above three times
// over one unpack.
//
// prepared, per row:
//   digits  (num_spans, 3, 128) int8
//   sums    (3,) int32; with scales per group (padded units,), of q itself
//   unit    float64, 2^-e

struct FixedRow {
  size_t sums_offset, unit_offset, bytes;
};

FixedRow FixedRowLayout(const Layer* layer) {
  FixedRow row;
  row.sums_offset = (size_t)(NumSpans(layer) * kDigits * kSpan);
  row.unit_offset =
      row.sums_offset + RoundUp64((size_t)(PerGroup(layer) ? PaddedUnits(layer) : kDigits) * 4);
  row.bytes = row.unit_offset + 64;
  return row;
}

size_t GemvFloatPreparedBytes(const Layer* layer, int64_t rows) {
  if (IsBits(layer)) return BitsFloatPreparedBytes(layer, rows);
  return FixedRowLayout(layer).bytes * (size_t)rows;
}

void PrepareGemvFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  if (IsBits(layer)) return PrepareBitsFloat(layer, x, rows, prepared);
  const FixedRow layout = FixedRowLayout(layer);
  const int64_t K = layer->K;
  const int64_t span_units = SpanUnits(layer);
  const int64_t num_spans = NumSpans(layer);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * K;
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    int8_t* digits = (int8_t*)base;
    int32_t* sums = (int32_t*)(base + layout.sums_offset);
    const int e = FixedPointExponent(AbsMax(x_row, K));
    *(double*)(base + layout.unit_offset) = PowerOfTwo(-e);
    const TwoFactors factors = FactorsOfPower(e);
    for (int64_t b = 0; b < num_spans; ++b) {
      int8_t in_order[kDigits][kSpan];
      SpanDigits(factors, x_row + b * kSpan, K - b * kSpan, in_order);
      for (int d = 0; d < kDigits; ++d) {
        OrderSpan(layer, in_order[d], digits + (b * kDigits + d) * kSpan);
        if (!PerGroup(layer)) {
          sums[d] = (b == 0 ? 0 : sums[d]) + SumBytes(in_order[d], kSpan);
          continue;
        }
        for (int64_t u = 0; u < span_units; ++u) {
          const int32_t sum =
              SumBytes(in_order[d] + u * layer->block_size, layer->block_size) * (1 << 8 * d);
          sums[b * span_units + u] = (d == 0 ? 0 : sums[b * span_units + u]) + sum;
        }
      }
    }
  }
}

// sum(code * digit) over spans [begin, end), at most kWiden, of column c of a tile: (3,) of eight
// int32.
inline void DotDigits(const uint8_t* tile_codes, int c, const int8_t* digits, int64_t begin,
                      int64_t end, __m256i* sum_i32) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i mask12 = _mm256_set1_epi8(12);
  __m256i scale1_i16[kDigits], scale4_i16[kDigits];
  for (int d = 0; d < kDigits; ++d) scale1_i16[d] = scale4_i16[d] = _mm256_setzero_si256();
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = tile_codes + b * kTileSpanBytes + c * kSpanBytes;
    const int8_t* digits_block = digits + b * kDigits * kSpan;
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    const __m256i v = LoadU(codes);
    const __m256i s = _mm256_srli_epi16(v, 4);
    const __m256i field0 = _mm256_and_si256(v, mask3);
    const __m256i field1 = _mm256_and_si256(v, mask12);
    const __m256i field2 = _mm256_and_si256(s, mask3);
    const __m256i field3 = _mm256_and_si256(s, mask12);
    for (int d = 0; d < kDigits; ++d) {
      const int8_t* p = digits_block + d * kSpan;
      scale1_i16[d] = _mm256_add_epi16(scale1_i16[d], _mm256_maddubs_epi16(field0, LoadA(p)));
      scale4_i16[d] = _mm256_add_epi16(scale4_i16[d], _mm256_maddubs_epi16(field1, LoadA(p + 32)));
      scale1_i16[d] = _mm256_add_epi16(scale1_i16[d], _mm256_maddubs_epi16(field2, LoadA(p + 64)));
      scale4_i16[d] = _mm256_add_epi16(scale4_i16[d], _mm256_maddubs_epi16(field3, LoadA(p + 96)));
      OTN_IN_REGISTER(scale1_i16[d]);
      OTN_IN_REGISTER(scale4_i16[d]);
    }
  }
  for (int d = 0; d < kDigits; ++d) sum_i32[d] = Widen(scale1_i16[d], scale4_i16[d]);
}

// sum(level * q) of one column tile, four columns, exact.
inline __m256d DotFixedPoint(const uint8_t* tile_codes, const int8_t* digits, int64_t num_spans,
                             const int32_t* sums) {
  __m256i sum_i32[kTile][kDigits];
  for (int c = 0; c < kTile; ++c) {
    DotDigits(tile_codes, c, digits, 0, Min(kWiden, num_spans), sum_i32[c]);
  }
  for (int64_t b = kWiden; b < num_spans; b += kWiden) {
    for (int c = 0; c < kTile; ++c) {
      __m256i part_i32[kDigits];
      DotDigits(tile_codes, c, digits, b, Min(b + kWiden, num_spans), part_i32);
      for (int d = 0; d < kDigits; ++d) {
        sum_i32[c][d] = _mm256_add_epi32(sum_i32[c][d], part_i32[d]);
      }
    }
  }
  __m256d total = _mm256_setzero_pd();
  for (int d = kDigits - 1; d >= 0; --d) {
    const __m128i sum =
        _mm_sub_epi32(HorizontalSums(sum_i32[0][d], sum_i32[1][d], sum_i32[2][d], sum_i32[3][d]),
                      _mm_set1_epi32(sums[d]));
    total = _mm256_add_pd(_mm256_mul_pd(total, _mm256_set1_pd(256.0)), _mm256_cvtepi32_pd(sum));
  }
  return total;
}

// The same times the scales of groups.
inline __m256d DotFixedPointGroups(const Layer* layer, const uint8_t* tile_codes,
                                   const int8_t* digits, const int32_t* unit_sums,
                                   const float* scales) {
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i base = _mm256_set1_epi16(256);
  const int64_t num_spans = NumSpans(layer);
  const int64_t span_units = SpanUnits(layer);
  __m256d total = _mm256_setzero_pd();
  for (int64_t span = 0; span < num_spans; ++span) {
    const uint8_t* codes = tile_codes + span * kTileSpanBytes;
    const int8_t* q = digits + span * kDigits * kSpan;
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    __m256i columns[kTile];
    for (int c = 0; c < kTile; ++c) {
      __m256i fields[4];
      Fields(LoadU(codes + c * kSpanBytes), fields);
      const __m256i low = _mm256_madd_epi16(DotSpan(fields, q), one);
      const __m256i middle = _mm256_madd_epi16(DotSpan(fields, q + kSpan), base);
      const __m256i high = _mm256_madd_epi16(DotSpan(fields, q + 2 * kSpan), one);
      columns[c] = _mm256_add_epi32(_mm256_add_epi32(low, middle), _mm256_slli_epi32(high, 16));
    }
    total = AddUnits(layer->block_size, total, columns, unit_sums + span * span_units,
                     scales + span * span_units * kTile);
  }
  return total;
}

void GemvFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  if (IsBits(layer)) return GemvBitsFloat(layer, rows, prepared, begin, end, y);
  const FixedRow layout = FixedRowLayout(layer);
  const DecodeScratch memory = DecodeScratchLayout(layer);
  const int64_t num_spans = NumSpans(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = TileCodes(layer, n, (uint8_t*)scratch + memory.expanded_offset);
    const float* scales = PerGroup(layer) ? StripScales(layer, begin, n, (float*)scratch) : nullptr;
    const __m256d bias = _mm256_cvtps_pd(LoadBias(layer, n));
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * layout.bytes;
      const int8_t* digits = (const int8_t*)base;
      const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
      const __m256d unit = _mm256_set1_pd(*(const double*)(base + layout.unit_offset));
      const __m256d total = scales ? DotFixedPointGroups(layer, codes, digits, sums, scales)
                                   : _mm256_mul_pd(DotFixedPoint(codes, digits, num_spans, sums),
                                                   _mm256_cvtps_pd(LoadScale(layer, n)));
      const __m256d result = _mm256_add_pd(_mm256_mul_pd(total, unit), bias);
      StoreFloats(y + row * layer->N + n, _mm256_cvtpd_ps(result), end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_8x4: eight rows share one unpack. Fields are shifted to scale 1, so one
// accumulator per row is enough: four maddubs per span, 4 * 512 = 2048 at most, and 16 spans reach
// 64 * -512 = -32768 and 64 * 2 * 2 * 127 = 32512, exactly int16. prepared:
//   q     (row groups, num_spans, 8 rows, 128) int8
//   sums  (rows,) int32: sum of q; with scales per group (rows, padded units): over each unit
//   s     (rows,) float

constexpr int64_t kRowGroup = 8;
constexpr int64_t kWidenShifted = 16;

struct Int8Rows {
  size_t sums_offset, s_offset, bytes;
};

Int8Rows Int8RowsLayout(const Layer* layer, int64_t rows) {
  const size_t row_groups = (size_t)((rows + kRowGroup - 1) / kRowGroup);
  Int8Rows layout;
  layout.sums_offset = row_groups * (size_t)(NumSpans(layer) * kRowGroup * kSpan);
  layout.s_offset =
      layout.sums_offset + RoundUp64((size_t)(rows * NumSums(layer)) * sizeof(int32_t));
  // One row in order, before it is spread over the blocks.
  layout.bytes =
      layout.s_offset + RoundUp64((size_t)rows * sizeof(float)) + (size_t)(NumSpans(layer) * kSpan);
  return layout;
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8RowsLayout(layer, rows).bytes;
}

void PrepareGemmInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const int64_t num_spans = NumSpans(layer);
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  float* s = (float*)(base + layout.s_offset);
  int8_t* in_order = (int8_t*)(base + layout.bytes - (size_t)(num_spans * kSpan));
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantizeAndSum(layer, call, x + row * layer->K, in_order, sums + row * NumSums(layer));
    int8_t* q =
        (int8_t*)base + row / kRowGroup * num_spans * kRowGroup * kSpan + row % kRowGroup * kSpan;
    for (int64_t span = 0; span < num_spans; ++span) {
      OrderSpan(layer, in_order + span * kSpan, q + span * kRowGroup * kSpan);
    }
  }
}

// sum(code * q) over spans [begin, end) of one column tile into sum_i32 (kRows, 4).
template <int kRows>
void DotInt8Rows(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                 __m256i (*sum_i32)[kTile]) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i one = _mm256_set1_epi16(1);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTile; ++c) sum_i32[r][c] = _mm256_setzero_si256();
  }
  for (int64_t b0 = begin; b0 < end; b0 += kWidenShifted) {
    const int64_t b1 = Min(b0 + kWidenShifted, end);
    for (int c = 0; c < kTile; ++c) {
      __m256i sum_i16[kRows];
      for (int r = 0; r < kRows; ++r) sum_i16[r] = _mm256_setzero_si256();
      for (int64_t b = b0; b < b1; ++b) {
        const __m256i v = LoadU(tile_codes + b * kTileSpanBytes + c * kSpanBytes);
        const __m256i field0 = _mm256_and_si256(v, mask3);
        const __m256i field1 = _mm256_and_si256(_mm256_srli_epi16(v, 2), mask3);
        const __m256i field2 = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask3);
        const __m256i field3 = _mm256_and_si256(_mm256_srli_epi16(v, 6), mask3);
        const int8_t* p = q + b * kRowGroup * kSpan;
        for (int r = 0; r < kRows; ++r) {
          const int8_t* q_row = p + r * kSpan;
          sum_i16[r] = _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field0, LoadA(q_row)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field1, LoadA(q_row + 32)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field2, LoadA(q_row + 64)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field3, LoadA(q_row + 96)));
          OTN_IN_REGISTER(sum_i16[r]);
        }
      }
      for (int r = 0; r < kRows; ++r) {
        sum_i32[r][c] = _mm256_add_epi32(sum_i32[r][c], _mm256_madd_epi16(sum_i16[r], one));
      }
    }
  }
}

// sums: (kRows, num_sums) int32.
template <int kRows>
void GemmInt8RowGroup(const Layer* layer, const int8_t* q, const int32_t* sums, const float* s,
                      int64_t begin, int64_t end, float* y, void* scratch) {
  const DecodeScratch memory = DecodeScratchLayout(layer);
  const int64_t num_spans = NumSpans(layer);
  const int64_t num_sums = NumSums(layer);
  const int64_t span_units = SpanUnits(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = TileCodes(layer, n, (uint8_t*)scratch + memory.expanded_offset);
    if (!PerGroup(layer)) {
      __m256i sum_i32[kRows][kTile];
      DotInt8Rows<kRows>(codes, q, 0, num_spans, sum_i32);
      for (int r = 0; r < kRows; ++r) {
        const __m128i sum = _mm_sub_epi32(
            HorizontalSums(sum_i32[r][0], sum_i32[r][1], sum_i32[r][2], sum_i32[r][3]),
            _mm_set1_epi32(sums[r]));
        StoreFloats(y + r * layer->N + n, FinishInt8(layer, sum, s[r], n), end - n);
      }
      continue;
    }
    const float* scales = StripScales(layer, begin, n, (float*)scratch);
    __m256d total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_pd();
    for (int64_t span = 0; span < num_spans; ++span) {
      __m256i columns[kRows][kTile];
      for (int c = 0; c < kTile; ++c) {
        __m256i fields[4];
        Fields(LoadU(codes + span * kTileSpanBytes + c * kSpanBytes), fields);
        for (int r = 0; r < kRows; ++r) {
          const int8_t* q_row = q + (span * kRowGroup + r) * kSpan;
          columns[r][c] = DotSpan(fields, q_row);
        }
      }
      const int64_t unit = span * span_units;
      for (int r = 0; r < kRows; ++r) {
        total[r] = AddSpan(layer->block_size, total[r], columns[r], sums + r * num_sums + unit,
                           scales + unit * kTile);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      StoreFloats(y + r * layer->N + n, FinishGroupsInt8(layer, total[r], s[r], n), end - n);
    }
  }
}

using RowGroupFunction = void (*)(const Layer*, const int8_t*, const int32_t*, const float*,
                                  int64_t, int64_t, float*, void*);

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  static constexpr RowGroupFunction kFunctions[kRowGroup] = {
      GemmInt8RowGroup<1>, GemmInt8RowGroup<2>, GemmInt8RowGroup<3>, GemmInt8RowGroup<4>,
      GemmInt8RowGroup<5>, GemmInt8RowGroup<6>, GemmInt8RowGroup<7>, GemmInt8RowGroup<8>};
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  // Row groups outside: their activations stay in L1 or L2 while the codes stream past.
  for (int64_t row = 0; row < rows; row += kRowGroup) {
    const int8_t* q = (const int8_t*)base + row * NumSpans(layer) * kSpan;
    const int32_t* sums = (const int32_t*)(base + layout.sums_offset) + row * NumSums(layer);
    const float* s = (const float*)(base + layout.s_offset) + row;
    const int64_t count = Min(rows - row, kRowGroup);
    kFunctions[count - 1](layer, q, sums, s, begin, end, y + row * layer->N, scratch);
  }
}

}  // namespace
}  // namespace avx2

extern const Kernel packed_gemv_int8_1x4_avx2 = {
    "packed_gemv_int8_1x4_avx2",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/2,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    avx2::GemvInt8PreparedBytes,
    avx2::PrepareGemvInt8,
    avx2::DecodeScratchBytes,
    avx2::GemvInt8,
};

extern const Kernel packed_gemm_int8_8x4_avx2 = {
    "packed_gemm_int8_8x4_avx2",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    avx2::GemmInt8PreparedBytes,
    avx2::PrepareGemmInt8,
    avx2::DecodeScratchBytes,
    avx2::GemmInt8,
};

extern const Kernel packed_gemv_float_1x4_avx2 = {
    "packed_gemv_float_1x4_avx2",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/4,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/true,
    avx2::GemvFloatPreparedBytes,
    avx2::PrepareGemvFloat,
    avx2::DecodeScratchBytes,
    avx2::GemvFloat,
};

}  // namespace onnx_ternary
