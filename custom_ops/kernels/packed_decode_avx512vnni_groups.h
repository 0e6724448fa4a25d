// Columns whose scales are per group. Pairs of lanes of a block (blocks of 16: of a column, once
// weighted) are added, converted to float32, weighted and added up over the spans; lanes are
// reduced once, at the end of a column.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "packed_decode_avx512vnni_tile.h"

namespace onnx_ternary {
namespace avx512vnni {
namespace {

// [a0 + a1, a2 + a3, b0 + b1, b2 + b3] in every 128 bits.
OTN_ALWAYS_INLINE __m512i AddPairs(__m512i a, __m512i b) {
  const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                          _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}

OTN_ALWAYS_INLINE __m512 AddPairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

enum class Blocks { as_is, paired, sixteen };  // 2-bit ones of 128, 32 inputs and more, 16

// Where the scale of a lane lies among those of a span (blocks, 4 columns).
struct LaneScales {
  int64_t span_floats;
  __m512i order;             // pairs of lanes
  __m512i order01, order23;  // lanes, for blocks of 16
};

LaneScales MakeLaneScales(const Layer* layer) {
  const int32_t block_lanes = (int32_t)layer->block_size / 16;
  int32_t order[48];
  for (int32_t lane = 0; lane < 16; ++lane) {
    const int32_t quarter = lane / 4;
    const int32_t column = quarter / 2 + lane / 2 % 2 * 2;
    const int32_t first = quarter % 2 * 4 + lane % 2 * 2;  // of the column's lanes
    order[lane] = first / block_lanes * (int32_t)kTile + column;
  }
  for (int32_t lane = 0; lane < 32; ++lane) {
    order[16 + lane] = lane % 8 / block_lanes * (int32_t)kTile + lane / 8;
  }
  return {kSpan / layer->block_size * kTile, _mm512_loadu_si512(order),
          _mm512_loadu_si512(order + 16), _mm512_loadu_si512(order + 32)};
}

// Where activations of a group of rows lie: starts (num_spans, rows of the group, 8) int32, minus
// the sums of activations of a lane; factors s or units 2^-e (rows,).
struct GroupRows {
  const int8_t* q;
  const int32_t* starts;
  const double* factors;
};

struct SpanScales {
  __m512 scale01, scale23;  // the first alone for pairs
};

template <Blocks kBlocks>
OTN_ALWAYS_INLINE SpanScales LoadSpanScales(const LaneScales& lanes, const float* scales) {
  if (kBlocks == Blocks::as_is) {
    const __m512 four = _mm512_broadcast_f32x4(_mm_loadu_ps(scales));
    return {_mm512_permutevar_ps(four, lanes.order), four};
  }
  const __m512 first = _mm512_loadu_ps(scales);
  if (kBlocks == Blocks::paired) return {_mm512_permutexvar_ps(lanes.order, first), first};
  const __m512 second = _mm512_loadu_ps(scales + 16);
  return {_mm512_permutex2var_ps(first, lanes.order01, second),
          _mm512_permutex2var_ps(first, lanes.order23, second)};
}

template <Blocks kBlocks>
OTN_ALWAYS_INLINE __m512 AddWeighted(__m512 total, __m512i sum01, __m512i sum23,
                                     const SpanScales& scales) {
  if (kBlocks == Blocks::sixteen) {
    return _mm512_add_ps(total, AddPairs(_mm512_mul_ps(_mm512_cvtepi32_ps(sum01), scales.scale01),
                                         _mm512_mul_ps(_mm512_cvtepi32_ps(sum23), scales.scale23)));
  }
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(AddPairs(sum01, sum23)), scales.scale01, total);
}

// What the columns of kRows rows share.
template <int kDigits, int kRows, Blocks kBlocks>
struct GroupColumns {
  const Layer* layer;
  GroupRows rows;
  Decoder decoder;
  LaneScales lanes;
  float* y;

  static constexpr bool kAsIs = kBlocks == Blocks::as_is;
  // Digits side by side where there are registers for it, to hide the latency of additions.
  static constexpr bool kTogether = kDigits * kRows <= 6;

  // kTiles tiles of four columns from n on; columns from `end` on are not written.
  template <int kTiles>
  void Tiles(int64_t n, int64_t end) const {
    const int64_t num_spans = NumSpans(layer);
    const int64_t tile_scales = PaddedUnits(layer) * kTile;
    const uint8_t* codes = layer->codes + n / kTile * decoder.tile_bytes;
    const float* all_scales = layer->block_scales + n / kTile * tile_scales;
    const __m512i mask3 = _mm512_set1_epi8(3);
    __m512 totals[kTiles][kRows];
    __m512i sums[kTiles][kRows][2];
    SpanScales scales[kTiles];
    OTN_UNROLL16
    for (int t = 0; t < kTiles; ++t) {
      scales[t] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      OTN_UNROLL16
      for (int r = 0; r < kRows; ++r) {
        totals[t][r] = _mm512_setzero_ps();
        sums[t][r][0] = sums[t][r][1] = _mm512_setzero_si512();
      }
    }
    for (int64_t span = 0; span < num_spans; ++span) {
      __m512i v01[kTiles], v23[kTiles];
      OTN_UNROLL16
      for (int t = 0; t < kTiles; ++t) {
        const uint8_t* tile_codes = codes + t * decoder.tile_bytes;
        PrefetchSpan<kTiles, kAsIs>(decoder, tile_codes, span);
        LoadSpan<kAsIs>(decoder, tile_codes, span, &v01[t], &v23[t]);
      }
      __m512i fields[kTiles][4][2];
      __m512i acc[kTiles][kDigits][kRows][2];
      OTN_UNROLL16
      for (int step = 0; step < kDigits * 4; ++step) {
        const int j = kTogether ? step / kDigits : step % 4;
        const int digit = kDigits - 1 - (kTogether ? step % kDigits : step / 4);
        const int8_t* q = rows.q + (span * kDigits + digit) * (kRows * kSpan) + j * 32;
        if (digit == kDigits - 1) {
          const unsigned shift = (unsigned)(2 * j);
          OTN_UNROLL16
          for (int t = 0; t < kTiles; ++t) {
            fields[t][j][0] = _mm512_and_si512(_mm512_srli_epi16(v01[t], shift), mask3);
            fields[t][j][1] = _mm512_and_si512(_mm512_srli_epi16(v23[t], shift), mask3);
          }
        }
        OTN_UNROLL16
        for (int r = 0; r < kRows; ++r) {
          if (j == 0) {
            const int32_t* start = rows.starts + (span * kRows + r) * kLanes;
            const __m512i begin =
                digit == 0 ? _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i*)start))
                           : _mm512_setzero_si512();
            OTN_UNROLL16
            for (int t = 0; t < kTiles; ++t) {
              // The sums of the span before, between products of this one: done at its end they
              // cost a twentieth more (eight int8 rows, Zen 5).
              if (digit == kDigits - 1) {
                totals[t][r] =
                    AddWeighted<kBlocks>(totals[t][r], sums[t][r][0], sums[t][r][1], scales[t]);
              }
              acc[t][digit][r][0] = acc[t][digit][r][1] = begin;
            }
          }
          if (kTiles == 1) {
            OTN_DOT(acc[0][digit][r][0], acc[0][digit][r][1], fields[0][j][0], fields[0][j][1],
                    q + r * kSpan);
          } else {
            OTN_DOT2(acc[0][digit][r][0], acc[0][digit][r][1], acc[kTiles - 1][digit][r][0],
                     acc[kTiles - 1][digit][r][1], fields[0][j][0], fields[0][j][1],
                     fields[kTiles - 1][j][0], fields[kTiles - 1][j][1], q + r * kSpan);
          }
          if (j < 3) continue;
          OTN_UNROLL16
          for (int i = 0; i < 2 * kTiles; ++i) {
            const __m512i sum = acc[i / 2][digit][r][i % 2];
            __m512i* into = &sums[i / 2][r][i % 2];
            *into = digit == kDigits - 1 ? sum : _mm512_add_epi32(_mm512_slli_epi32(*into, 8), sum);
          }
        }
      }
      OTN_UNROLL16
      for (int t = 0; t < kTiles; ++t) {
        scales[t] =
            LoadSpanScales<kBlocks>(lanes, all_scales + t * tile_scales + span * lanes.span_floats);
      }
    }
    OTN_UNROLL16
    for (int t = 0; t < kTiles; ++t) {
      OTN_UNROLL16
      for (int r = 0; r < kRows; ++r) {
        totals[t][r] = AddWeighted<kBlocks>(totals[t][r], sums[t][r][0], sums[t][r][1], scales[t]);
      }
      Finish(totals[t], n + t * kTile, end);
    }
  }

  // Y of the tile at column n.
  OTN_ALWAYS_INLINE void Finish(const __m512* totals, int64_t n, int64_t end) const {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    const __m512d bias = _mm512_broadcast_f64x4(_mm256_cvtps_pd(LoadBias(layer, n)));
    OTN_UNROLL16
    for (int r = 0; r < kRows; r += 4) {
      __m512 total[4];
      OTN_UNROLL16
      for (int i = 0; i < 4; ++i) total[i] = r + i < kRows ? totals[r + i] : _mm512_setzero_ps();
      // In every 128 bits of these: columns 0 and 2 (or 1 and 3) of both rows.
      const __m512 r01 = AddPairs(total[0], total[1]), r23 = AddPairs(total[2], total[3]);
      const __m512 sums =
          _mm512_permutexvar_ps(order, _mm512_add_ps(_mm512_shuffle_f32x4(r01, r23, 0x88),
                                                     _mm512_shuffle_f32x4(r01, r23, 0xdd)));
      TwoByFour wide = {_mm512_cvtps_pd(_mm512_castps512_ps256(sums)),
                        _mm512_cvtps_pd(_mm512_extractf32x8_ps(sums, 1))};
      const TwoByFour factor = RowsF64(rows.factors + r, kRows - r);
      if (kDigits == 1) {
        wide.rows01 = _mm512_div_pd(wide.rows01, factor.rows01);
        wide.rows23 = _mm512_div_pd(wide.rows23, factor.rows23);
      } else {
        wide.rows01 = _mm512_mul_pd(wide.rows01, factor.rows01);
        wide.rows23 = _mm512_mul_pd(wide.rows23, factor.rows23);
      }
      wide.rows01 = _mm512_add_pd(wide.rows01, bias);
      wide.rows23 = _mm512_add_pd(wide.rows23, bias);
      StoreTile(y + r * layer->N + n, layer->N, Narrow(wide), kRows - r, end - n);
    }
  }
};

// Columns [begin, end) of kRows rows. Two tiles at a time share activations while accumulators fit
// (one int8 row: 160 GMAC/s to 173, float 93 to 105).
template <int kDigits, int kRows, Blocks kBlocks>
void ComputeGroups(const Layer* layer, const GroupRows& rows, int64_t begin, int64_t end,
                   float* y) {
  const GroupColumns<kDigits, kRows, kBlocks> columns = {layer, rows, MakeDecoder(layer),
                                                         MakeLaneScales(layer), y};
  constexpr int kTiles = kDigits * kRows <= 3 ? 2 : 1;
  int64_t n = begin;
  for (; kTiles > 1 && n + kTile < end; n += kTiles * kTile) columns.template Tiles<kTiles>(n, end);
  for (; n < end; n += kTile) columns.template Tiles<1>(n, end);
}

using GroupFunction = void (*)(const Layer*, const GroupRows&, int64_t, int64_t, float*);

template <int kDigits, Blocks kBlocks>
GroupFunction GroupColumnsOf(int64_t rows) {
  static constexpr GroupFunction kFew[4] = {
      ComputeGroups<kDigits, 1, kBlocks>, ComputeGroups<kDigits, 2, kBlocks>,
      ComputeGroups<kDigits, 3, kBlocks>, ComputeGroups<kDigits, 4, kBlocks>};
  if constexpr (kDigits == 1) {
    static constexpr GroupFunction kMany[4] = {
        ComputeGroups<1, 5, kBlocks>, ComputeGroups<1, 6, kBlocks>, ComputeGroups<1, 7, kBlocks>,
        ComputeGroups<1, 8, kBlocks>};
    if (rows > 4) return kMany[rows - 5];
  }
  return kFew[rows - 1];
}

template <int kDigits>
GroupFunction SelectGroupColumns(const Layer* layer, int64_t rows) {
  if (AsIs(layer)) return GroupColumnsOf<kDigits, Blocks::as_is>(rows);
  if (layer->block_size > 16) return GroupColumnsOf<kDigits, Blocks::paired>(rows);
  return GroupColumnsOf<kDigits, Blocks::sixteen>(rows);
}

}  // namespace
}  // namespace avx512vnni
}  // namespace onnx_ternary
