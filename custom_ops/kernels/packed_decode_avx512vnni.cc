// Kernels for `packed`, AVX-512 VNNI: decode and vpdpbusd (four products of unsigned codes and
// signed activations added to an int32), for int8 activations and for float activations as fixed
// point of three int8 digits. Rows share the unpacking of codes.
//
// Layout: span.h; activations are laid out in the order of the fields. A block is B/16 of
// the eight lanes of int32 of a column. Loads of codes are unaligned (memory-mapped files);
// everything in prepared is 64-byte aligned.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files), d is an int8 in [-128, 127], and vpdpbusd
// does not saturate. A lane takes 16 products per span, at most 16 * 3 * 128 in magnitude; K < 2^24
// has at most 2^17 spans: below 2^30. The sum over a column's eight lanes may wrap, but
// sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in magnitude, and so exact
// modulo 2^32.
//
// With scales per group, lanes begin with minus the sum of their activations, so that they are sums
// of level * d. Pairs of them, 32 inputs, are at most 32 * 8355711 < 2^31 with three digits put
// together, and are added times their scale in float32: below 2^47 * kLargestBlockScale < 2^128 for
// any K; an integer times a float32 does not underflow.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/fixed_point.h"
#include "common/magnitude.h"
#include "common/quantize_absmax.h"
#include "common/span_avx512.h"
#include "kernel_list.h"
#include "packed_decode_avx512vnni_groups.h"
#include "packed_decode_avx512vnni_tile.h"

namespace onnx_ternary {
namespace avx512vnni {
namespace {

// Codes of a column chunk, read once for every group of rows: they stay in L2.
constexpr int64_t kChunkBytes = 128 << 10;

// Adds to acc (kDigits * kRows, two pairs of columns, kChains) sum(code * q) over all spans of one
// column tile. q: (num_spans, kDigits, kRows, 128) int8.
template <int kVectors, int kChains, bool kAsIs>
OTN_ALWAYS_INLINE void AddSpans(const Decoder& decoder, const uint8_t* tile_codes, const int8_t* q,
                                int64_t num_spans, __m512i (*acc)[2][kChains]) {
  const __m512i mask3 = _mm512_set1_epi8(3);
  for (int64_t span = 0; span < num_spans; ++span) {
    const int8_t* q_span = q + span * (kVectors * kSpan);
    PrefetchSpan<1, kAsIs>(decoder, tile_codes, span);
    __m512i v01, v23;
    LoadSpan<kAsIs>(decoder, tile_codes, span, &v01, &v23);
    OTN_UNROLL16
    for (int j = 0; j < 4; ++j) {
      const __m512i field01 = _mm512_and_si512(_mm512_srli_epi16(v01, (unsigned)(2 * j)), mask3);
      const __m512i field23 = _mm512_and_si512(_mm512_srli_epi16(v23, (unsigned)(2 * j)), mask3);
      OTN_UNROLL16
      for (int v = 0; v < kVectors; ++v) {
        OTN_DOT(acc[v][0][j % kChains], acc[v][1][j % kChains], field01, field23,
                q_span + v * kSpan + j * 32);
      }
    }
  }
}

// Chains of additions, eight at least in all, to hide their latency.
template <int kVectors>
struct Chains {
  static constexpr int kCount = kVectors == 1 ? 4 : kVectors <= 3 ? 2 : 1;
};

template <int kVectors, int kChains>
OTN_ALWAYS_INLINE void Clear(__m512i (*acc)[2][kChains]) {
  OTN_UNROLL16
  for (int v = 0; v < kVectors; ++v) {
    OTN_UNROLL16
    for (int i = 0; i < kChains; ++i) acc[v][0][i] = acc[v][1][i] = _mm512_setzero_si512();
  }
}

template <int kChains>
OTN_ALWAYS_INLINE __m512i Total(const __m512i* chains) {
  __m512i sum = chains[0];
  OTN_UNROLL16
  for (int i = 1; i < kChains; ++i) sum = _mm512_add_epi32(sum, chains[i]);
  return sum;
}

// sums: (kDigits, kRows / 4, 4 rows, 4 columns) int32, the sums of the lanes of acc (kDigits *
// kRows, two pairs of columns, kChains) modulo 2^32; zero past kRows.
template <int kDigits, int kRows, int kChains>
OTN_ALWAYS_INLINE void AddLanes(const __m512i (*acc)[2][kChains], __m512i* sums) {
  constexpr int kQuads = (kRows + 3) / 4;
  const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  OTN_UNROLL16
  for (int quad = 0; quad < kDigits * kQuads; ++quad) {
    __m512i pairs[4];
    OTN_UNROLL16
    for (int i = 0; i < 4; ++i) {
      const int r = quad % kQuads * 4 + i;
      if (r >= kRows) {
        pairs[i] = _mm512_setzero_si512();
        continue;
      }
      const int v = quad / kQuads * kRows + r;
      const __m512i a = Total<kChains>(acc[v][0]);
      const __m512i b = Total<kChains>(acc[v][1]);
      // Columns 0 and 1 are the halves of a, 2 and 3 those of b. In each 128-bit lane now: column 0
      // (or 1), 2 (or 3), the same, the same.
      pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    const __m512i r01 = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[0], pairs[1]),
                                         _mm512_unpackhi_epi64(pairs[0], pairs[1]));
    const __m512i r23 = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2], pairs[3]),
                                         _mm512_unpackhi_epi64(pairs[2], pairs[3]));
    // Lanes 0 and 1 of each belong to columns 0 and 2, lanes 2 and 3 to columns 1 and 3.
    const __m512i even = _mm512_shuffle_i32x4(r01, r23, 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r01, r23, 0xdd);
    sums[quad] = _mm512_permutexvar_epi32(order, _mm512_add_epi32(even, odd));
  }
}

// sums: as above, sum(code * q) over all spans of one column tile. q: (num_spans, kDigits, kRows,
// 128) int8.
template <int kDigits, int kRows, bool kAsIs>
OTN_ALWAYS_INLINE void DotVectors(const Decoder& decoder, const uint8_t* tile_codes,
                                  const int8_t* q, int64_t num_spans, __m512i* sums) {
  constexpr int kVectors = kDigits * kRows;
  constexpr int kChains = Chains<kVectors>::kCount;
  __m512i acc[kVectors][2][kChains];
  Clear<kVectors, kChains>(acc);
  AddSpans<kVectors, kChains, kAsIs>(decoder, tile_codes, q, num_spans, acc);
  AddLanes<kDigits, kRows, kChains>(acc, sums);
}

// The same of two column tiles that share the loads of q, which take a vector pipe each: sums
// (kDigits, two tiles times kRows rows, 4 columns), zero past them.
template <int kDigits, int kRows, bool kAsIs>
OTN_ALWAYS_INLINE void DotVectorsOfTwo(const Decoder& decoder, const uint8_t* tile_codes,
                                       const int8_t* q, int64_t num_spans, __m512i* sums) {
  static_assert(2 * kRows <= 4, "rows of both tiles in one register");
  constexpr int kVectors = kDigits * kRows;
  const __m512i mask3 = _mm512_set1_epi8(3);
  __m512i acc[2 * kVectors][2][1];  // kDigits, 2 tiles, kRows
  Clear<2 * kVectors, 1>(acc);
  for (int64_t span = 0; span < num_spans; ++span) {
    const int8_t* q_span = q + span * (kVectors * kSpan);
    __m512i codes[2][2];
    OTN_UNROLL16
    for (int t = 0; t < 2; ++t) {
      const uint8_t* tile = tile_codes + t * decoder.tile_bytes;
      PrefetchSpan<2, kAsIs>(decoder, tile, span);
      LoadSpan<kAsIs>(decoder, tile, span, &codes[t][0], &codes[t][1]);
    }
    OTN_UNROLL16
    for (int j = 0; j < 4; ++j) {
      __m512i field[2][2];
      OTN_UNROLL16
      for (int i = 0; i < 4; ++i) {
        field[i / 2][i % 2] =
            _mm512_and_si512(_mm512_srli_epi16(codes[i / 2][i % 2], (unsigned)(2 * j)), mask3);
      }
      OTN_UNROLL16
      for (int v = 0; v < kVectors; ++v) {
        const int first = v / kRows * 2 * kRows + v % kRows, second = first + kRows;
        OTN_DOT2(acc[first][0][0], acc[first][1][0], acc[second][0][0], acc[second][1][0],
                 field[0][0], field[0][1], field[1][0], field[1][1], q_span + v * kSpan + j * 32);
      }
    }
  }
  AddLanes<kDigits, 2 * kRows, 1>(acc, sums);
}

int64_t ChunkColumns(const Layer* layer) { return Max(kChunkBytes / TileBytes(layer), 1) * kTile; }

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_8x4: up to eight rows per pass. prepared:
//   q     (row groups, num_spans, rows of the group, 128) int8, zero past K
//   sums  (rows,) int32: sum of q; with scales per group (row groups, num_spans, rows of the group,
//         8): minus the sum of a lane's q
//   s     (rows,) float32; with scales per group (rows,) float64
//   a row in order, before it is spread over the spans

constexpr int64_t kRowGroup = 8;
constexpr int64_t kInt8MaxRows = 64;

struct Int8Rows {
  size_t sums_offset, s_offset, row_offset, bytes;
};

Int8Rows Int8RowsLayout(const Layer* layer, int64_t rows) {
  const size_t padded_K = (size_t)(NumSpans(layer) * kSpan);
  const int64_t sums = PerGroup(layer) ? NumSpans(layer) * kLanes : 1;
  Int8Rows layout;
  layout.sums_offset = (size_t)rows * padded_K;
  layout.s_offset = layout.sums_offset + RoundUp64((size_t)(rows * sums) * sizeof(int32_t));
  layout.row_offset = layout.s_offset + RoundUp64((size_t)rows * sizeof(double));
  layout.bytes = layout.row_offset + padded_K;
  return layout;
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8RowsLayout(layer, rows).bytes;
}

void PrepareGemmInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const InputOrder order = MakeInputOrder(layer);
  const int64_t num_spans = NumSpans(layer);
  const int64_t padded_K = num_spans * kSpan;
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  float* s = (float*)(base + layout.s_offset);
  double* s_wide = (double*)(base + layout.s_offset);
  int8_t* in_order = (int8_t*)(base + layout.row_offset);
  for (int64_t row = 0; row < rows; ++row) {
    const float s_row = QuantizeRow(layer, call, x + row * layer->K, in_order);
    memset(in_order + layer->K, 0, (size_t)(padded_K - layer->K));
    if (PerGroup(layer)) {
      s_wide[row] = (double)s_row;
    } else {
      s[row] = s_row;
      sums[row] = SumBytes(in_order, padded_K);
    }
    const int64_t group_row = row / kRowGroup * kRowGroup;
    const int64_t group_rows = Min(rows - group_row, kRowGroup);
    const int64_t stride = group_rows * kSpan;
    int8_t* q = (int8_t*)base + group_row * padded_K + (row - group_row) * kSpan;
    int32_t* starts = sums + (group_row * num_spans + row - group_row) * kLanes;
    for (int64_t span = 0; span < num_spans; ++span) {
      int8_t* out = q + span * stride;
      memcpy(out, in_order + span * kSpan, (size_t)kSpan);
      if (!order.as_is) OrderSpan(out, order.first, order.second);
      if (!PerGroup(layer)) continue;
      int32_t* start = starts + span * group_rows * kLanes;
      memset(start, 0, kLanes * sizeof(int32_t));
      TakeLaneSums(out, 0, start);
    }
  }
}

template <int kRows, bool kAsIs>
void GemmInt8Rows(const Layer* layer, const int8_t* q, const int32_t* sums, const float* s,
                  int64_t begin, int64_t end, float* y) {
  constexpr int kQuads = (kRows + 3) / 4;
  const Decoder decoder = MakeDecoder(layer);
  const int64_t num_spans = NumSpans(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = layer->codes + n / kTile * decoder.tile_bytes;
    const __m512 bias = _mm512_broadcast_f32x4(LoadBias(layer, n));
    const __m512 scale = _mm512_broadcast_f32x4(LoadScale(layer, n));
    __m512i dot[kQuads];
    DotVectors<1, kRows, kAsIs>(decoder, codes, q, num_spans, dot);
    for (int i = 0; i < kQuads; ++i) {
      // Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
      const int r = 4 * i;
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(dot[i], RowsI32(sums + r, kRows - r)));
      const __m512 product = _mm512_mul_ps(_mm512_div_ps(sum, RowsF32(s + r, kRows - r)), scale);
      StoreTile(y + r * layer->N + n, layer->N, _mm512_add_ps(product, bias), kRows - r, end - n);
    }
  }
}

using Int8Function = void (*)(const Layer*, const int8_t*, const int32_t*, const float*, int64_t,
                              int64_t, float*);

template <bool kAsIs>
void GemmInt8Of(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
                float* y) {
  static constexpr Int8Function kFunctions[kRowGroup] = {
      GemmInt8Rows<1, kAsIs>, GemmInt8Rows<2, kAsIs>, GemmInt8Rows<3, kAsIs>,
      GemmInt8Rows<4, kAsIs>, GemmInt8Rows<5, kAsIs>, GemmInt8Rows<6, kAsIs>,
      GemmInt8Rows<7, kAsIs>, GemmInt8Rows<8, kAsIs>};
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
  const float* s = (const float*)(base + layout.s_offset);
  const double* s_wide = (const double*)(base + layout.s_offset);
  const int64_t chunk = ChunkColumns(layer);
  for (int64_t n = begin; n < end; n += chunk) {
    const int64_t chunk_end = Min(n + chunk, end);
    for (int64_t row = 0; row < rows; row += kRowGroup) {
      const int8_t* q = (const int8_t*)base + row * NumSpans(layer) * kSpan;
      const int64_t count = Min(rows - row, kRowGroup);
      if (PerGroup(layer)) {
        const GroupRows group = {q, sums + row * NumSpans(layer) * kLanes, s_wide + row};
        SelectGroupColumns<1>(layer, count)(layer, group, n, chunk_end, y + row * layer->N);
      } else {
        kFunctions[count - 1](layer, q, sums + row, s + row, n, chunk_end, y + row * layer->N);
      }
    }
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void*) {
  (AsIs(layer) ? GemmInt8Of<true> : GemmInt8Of<false>)(layer, rows, prepared, begin, end, y);
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_float_4x4: rows as fixed point (fixed_point.h), each digit a vector of its own in the
// loop above; up to four rows per pass.
//
// prepared:
//   digits  (row groups, num_spans, 3, rows of the group, 128) int8, zero past K
//   sums    (3, rows) int32; with scales per group (row groups, num_spans, rows of the group, 8),
//           minus the sum of a lane's q
//   units   (rows,) float64, 2^-e

constexpr int64_t kFixedRowGroup = 4;
constexpr int64_t kFixedMaxRows = 16;

struct FixedRows {
  size_t sums_offset, units_offset, bytes;
};

FixedRows FixedRowsLayout(const Layer* layer, int64_t rows) {
  const int64_t sums = PerGroup(layer) ? NumSpans(layer) * kLanes : kDigits;
  FixedRows layout;
  layout.sums_offset = (size_t)(rows * NumSpans(layer) * kDigits * kSpan);
  layout.units_offset = layout.sums_offset + RoundUp64((size_t)(rows * sums) * sizeof(int32_t));
  layout.bytes = layout.units_offset + RoundUp64((size_t)rows * sizeof(double));
  return layout;
}

size_t FixedPreparedBytes(const Layer* layer, int64_t rows) {
  return FixedRowsLayout(layer, rows).bytes;
}

void PrepareFixed(const Layer* layer, const Call*, const float* x, int64_t rows, void* prepared) {
  const FixedRows layout = FixedRowsLayout(layer, rows);
  const InputOrder order = MakeInputOrder(layer);
  const int64_t K = layer->K;
  const int64_t num_spans = NumSpans(layer);
  const __m512i half = _mm512_set1_epi32(128);
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  double* units = (double*)(base + layout.units_offset);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * K;
    const int64_t group_row = row / kFixedRowGroup * kFixedRowGroup;
    const int64_t group_rows = Min(rows - group_row, kFixedRowGroup);
    const int64_t stride = group_rows * kSpan;  // of a digit
    int8_t* digits =
        (int8_t*)base + group_row * num_spans * kDigits * kSpan + (row - group_row) * kSpan;
    const int e = FixedPointExponent(FloatOfBits(AbsMaxBits(x_row, K)));
    units[row] = PowerOfTwo(-e);
    const __m512 exponent = _mm512_set1_ps((float)e);
    int32_t totals[kDigits] = {0, 0, 0};
    int32_t* starts = sums + (group_row * num_spans + row - group_row) * kLanes;
    for (int64_t span = 0; span < num_spans; ++span) {
      int8_t* out = digits + span * kDigits * stride;
      for (int64_t i = 0; i < kSpan; i += 16) {
        const int64_t k = span * kSpan + i;
        // Times 2^e, exact in one step also where 2^e is outside float32.
        const __m512 scaled =
            _mm512_scalef_ps(_mm512_maskz_loadu_ps(FirstSixteen(K - k), x_row + k), exponent);
        __m512i rest = _mm512_cvtps_epi32(scaled);  // to nearest
        for (int d = 0; d < kDigits; ++d) {
          // The low byte, read as int8, is the digit; (rest + 128) >> 8 takes it off.
          _mm_store_si128((__m128i*)(out + d * stride + i), _mm512_cvtepi32_epi8(rest));
          rest = _mm512_srai_epi32(_mm512_add_epi32(rest, half), 8);
        }
      }
      int32_t* start = starts + span * group_rows * kLanes;
      if (PerGroup(layer)) memset(start, 0, kLanes * sizeof(int32_t));
      for (int d = 0; d < kDigits; ++d) {
        int8_t* digit = out + d * stride;
        if (!order.as_is) OrderSpan(digit, order.first, order.second);
        if (PerGroup(layer)) {
          TakeLaneSums(digit, 8 * d, start);
        } else {
          totals[d] += SumBytes(digit, kSpan);
        }
      }
    }
    if (PerGroup(layer)) continue;
    for (int d = 0; d < kDigits; ++d) sums[d * rows + row] = totals[d];
  }
}

// Rows of a register of four rows by four columns.
struct TileRows {
  __m512i row;      // of every lane, for arrays of one number per row
  __m512i column;   // of every lane, for arrays of one number per column
  int64_t columns;  // tiles' columns
};

// kTiles tiles of kRows rows, tile by tile; lanes past them repeat others.
template <int kTiles, int kRows>
TileRows MakeTileRows() {
  int32_t row[16], column[16];
  for (int32_t lane = 0; lane < 16; ++lane) {
    row[lane] = lane / 4 % kRows;
    column[lane] = lane / 4 / kRows % kTiles * (int32_t)kTile + lane % 4;
  }
  return {_mm512_loadu_si512(row), _mm512_loadu_si512(column), kTiles * kTile};
}

__mmask16 FirstColumns(const TileRows& tile, int64_t left) {
  return FirstSixteen(Min(left, tile.columns));
}

TwoByFour RowsF64(const TileRows& tile, int64_t num_rows, const double* p) {
  const __m512d rows = _mm512_castpd256_pd512(_mm256_maskz_loadu_pd(FirstFour(num_rows), p));
  return {
      _mm512_permutexvar_pd(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(tile.row)), rows),
      _mm512_permutexvar_pd(_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(tile.row, 1)), rows)};
}

TwoByFour ColumnsF64(const TileRows& tile, __mmask16 valid, const float* p) {
  const __m512 lanes = _mm512_permutexvar_ps(tile.column, _mm512_maskz_loadu_ps(valid, p));
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(lanes)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(lanes, 1))};
}

// sum(level * q), exact, from the sums of the digits. sums: (3, stride) int32.
template <int kRows>
inline TwoByFour Combine(const TileRows& tile, const __m512i* dot, const int32_t* sums,
                         int64_t stride) {
  const __m512d base = _mm512_set1_pd(256.0);
  TwoByFour total;
  for (int d = 2; d >= 0; --d) {
    const __m512i rows = _mm512_maskz_loadu_epi32(FirstSixteen(kRows), sums + d * stride);
    const TwoByFour digit =
        Widen(_mm512_sub_epi32(dot[d], _mm512_permutexvar_epi32(tile.row, rows)));
    if (d == 2) {
      total = digit;
      continue;
    }
    total.rows01 = _mm512_fmadd_pd(total.rows01, base, digit.rows01);
    total.rows23 = _mm512_fmadd_pd(total.rows23, base, digit.rows23);
  }
  return total;
}
// Y of kTiles column tiles from n on, `left` columns that are wanted. dot: (3, kTiles * kRows rows,
// 4 columns); sums: (3, stride) int32; units: of every row.
template <int kTiles, int kRows>
OTN_ALWAYS_INLINE void FinishFixed(const Layer* layer, const TileRows& tile, const __m512i* dot,
                                   const int32_t* sums, int64_t stride, const TwoByFour& units,
                                   int64_t n, int64_t left, float* y) {
  TwoByFour total = Combine<kRows>(tile, dot, sums, stride);
  const __mmask16 valid = FirstColumns(tile, layer->N - n);
  TwoByFour scale, bias;
  if (layer->scale_kind == ScaleKind::per_tensor) {
    scale.rows01 = scale.rows23 = _mm512_set1_pd((double)layer->scale[0]);
  } else {
    scale = ColumnsF64(tile, valid, layer->scale + n);
  }
  if (layer->bias) {
    bias = ColumnsF64(tile, valid, layer->bias + n);
  } else {
    bias.rows01 = bias.rows23 = _mm512_setzero_pd();
  }
  total.rows01 = _mm512_mul_pd(_mm512_mul_pd(total.rows01, scale.rows01), units.rows01);
  total.rows23 = _mm512_mul_pd(_mm512_mul_pd(total.rows23, scale.rows23), units.rows23);
  total.rows01 = _mm512_add_pd(total.rows01, bias.rows01);
  total.rows23 = _mm512_add_pd(total.rows23, bias.rows23);
  const __m512 values = Narrow(total);
  StoreTile(y + n, layer->N, values, kRows, left);
  if (kTiles == 1) return;
  const __m512 second = _mm512_shuffle_f32x4(values, values, kRows == 1 ? 0xe5 : 0xee);
  StoreTile(y + n + kTile, layer->N, second, kRows, left - kTile);
}

// sums: (3, stride) int32.
template <int kRows, bool kAsIs>
void FixedRowsColumns(const Layer* layer, const int8_t* digits, const int32_t* sums, int64_t stride,
                      const double* units, int64_t begin, int64_t end, float* y) {
  constexpr int kTiles = kRows <= 2 ? 2 : 1;
  const Decoder decoder = MakeDecoder(layer);
  const int64_t num_spans = NumSpans(layer);
  const uint8_t* codes = layer->codes + begin / kTile * decoder.tile_bytes;
  int64_t n = begin;
  if constexpr (kTiles == 2) {
    const TileRows tile = MakeTileRows<kTiles, kRows>();
    const TwoByFour unit = RowsF64(tile, kRows, units);
    for (; n + kTile < end; n += 2 * kTile, codes += 2 * decoder.tile_bytes) {
      __m512i dot[kDigits];
      DotVectorsOfTwo<kDigits, kRows, kAsIs>(decoder, codes, digits, num_spans, dot);
      FinishFixed<kTiles, kRows>(layer, tile, dot, sums, stride, unit, n, end - n, y);
    }
  }
  const TileRows tile = MakeTileRows<1, kRows>();
  const TwoByFour unit = RowsF64(tile, kRows, units);
  for (; n < end; n += kTile, codes += decoder.tile_bytes) {
    __m512i dot[kDigits];
    DotVectors<kDigits, kRows, kAsIs>(decoder, codes, digits, num_spans, dot);
    FinishFixed<1, kRows>(layer, tile, dot, sums, stride, unit, n, end - n, y);
  }
}

using FixedFunction = void (*)(const Layer*, const int8_t*, const int32_t*, int64_t, const double*,
                               int64_t, int64_t, float*);

template <bool kAsIs>
void GemvFloatOf(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
                 float* y) {
  static constexpr FixedFunction kFunctions[kFixedRowGroup] = {
      FixedRowsColumns<1, kAsIs>, FixedRowsColumns<2, kAsIs>, FixedRowsColumns<3, kAsIs>,
      FixedRowsColumns<4, kAsIs>};
  const FixedRows layout = FixedRowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
  const double* units = (const double*)(base + layout.units_offset);
  const int64_t chunk = ChunkColumns(layer);
  for (int64_t n = begin; n < end; n += chunk) {
    const int64_t chunk_end = Min(n + chunk, end);
    for (int64_t row = 0; row < rows; row += kFixedRowGroup) {
      const int8_t* digits = (const int8_t*)base + row * NumSpans(layer) * kDigits * kSpan;
      const int64_t count = Min(rows - row, kFixedRowGroup);
      if (PerGroup(layer)) {
        const GroupRows group = {digits, sums + row * NumSpans(layer) * kLanes, units + row};
        SelectGroupColumns<kDigits>(layer, count)(layer, group, n, chunk_end, y + row * layer->N);
      } else {
        kFunctions[count - 1](layer, digits, sums + row, rows, units + row, n, chunk_end,
                              y + row * layer->N);
      }
    }
  }
}

void GemvFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void*) {
  (AsIs(layer) ? GemvFloatOf<true> : GemvFloatOf<false>)(layer, rows, prepared, begin, end, y);
}

// Sums of integers are exact. Scales per group: one addition per span, then those of four lanes of
// a column (a third one in blocks of 16 takes the place of a group's in T + G + 3).
int64_t Depth(const Layer* layer) { return PerGroup(layer) ? NumSpans(layer) + 2 : 0; }

}  // namespace
}  // namespace avx512vnni

extern const Kernel packed_gemm_int8_8x4_avx512vnni = {
    "packed_gemm_int8_8x4_avx512vnni",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx512vnni,
    /*accepts=*/nullptr,
    /*max_rows=*/avx512vnni::kInt8MaxRows,
    /*column_step=*/kTile,
    avx512vnni::Depth,
    /*fixed_point=*/false,
    avx512vnni::GemmInt8PreparedBytes,
    avx512vnni::PrepareGemmInt8,
    NoScratch,
    avx512vnni::GemmInt8,
    /*reads_block_scales=*/true,
};

extern const Kernel packed_gemv_float_4x4_avx512vnni = {
    "packed_gemv_float_4x4_avx512vnni",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx512vnni,
    /*accepts=*/nullptr,
    /*max_rows=*/avx512vnni::kFixedMaxRows,
    /*column_step=*/kTile,
    avx512vnni::Depth,
    /*fixed_point=*/true,
    avx512vnni::FixedPreparedBytes,
    avx512vnni::PrepareFixed,
    NoScratch,
    avx512vnni::GemvFloat,
    /*reads_block_scales=*/true,
};

}  // namespace onnx_ternary
