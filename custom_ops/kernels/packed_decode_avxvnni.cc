// Kernels for `packed`, AVX-VNNI (256 bits, processors without AVX-512): decode and vpdpbusd (four
// products of unsigned codes and signed activations added to an int32), for int8 activations and
// for float activations as fixed point of three int8 digits. Digits and rows are vectors that share
// the unpacking of codes.
//
// Layout: span.h; activations are laid out in the order of the fields. The codes of a column and
// span are one register; a block is B/16 of its eight lanes of int32. Loads of codes are unaligned
// (memory-mapped files); everything in prepared and scratch is 64-byte aligned.
//
// vpdpbusd runs twice a cycle and takes five cycles, so ten chains of additions are wanted and
// twelve fit the sixteen registers: few vectors meet four columns at a time, more two.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files), d is an int8 in [-128, 127], and vpdpbusd
// does not saturate. A lane takes 16 products per span, at most 16 * 3 * 128 in magnitude; K < 2^24
// has at most 2^17 spans: below 2^30. One int8 row keeps two of the four fields at 4 times their
// value, in lanes of their own: 8 * 12 * 128 per span, below 2^31 in 2^17 spans, and a multiple of
// 4, so the shift that joins them is exact. The sum over a column's eight lanes may wrap, but
// sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in magnitude, and so exact
// modulo 2^32.
//
// With scales per group, lanes begin with minus the sum of their activations, so that they are sums
// of level * d, 16 inputs: at most 16 * 8355711 < 2^27 with three digits put together (what wraps
// before comes back). They are added times their scale in float32: below 2^47 * kLargestBlockScale
// < 2^128 for any K; an integer times a float32 does not underflow. Lanes of a column are added in
// float64.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/decode_avx2.h"
#include "common/dot_avxvnni.h"
#include "kernel_list.h"

#if defined(__clang__)
#define OTN_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define OTN_UNROLL _Pragma("GCC unroll 16")
#else
#define OTN_UNROLL
#endif

namespace onnx_ternary {
namespace avxvnni {
namespace {

using namespace avx2;

constexpr int64_t kLanes = 8;  // of a column in a span, int32
constexpr int64_t kMaxRows = 64;
constexpr int64_t kPrefetchBytes = 3072;
constexpr int kMostVectors = 6;
constexpr int kMostGroupRows = 4;

// Columns whose accumulators fit the registers.
template <int kVectors>
struct Columns {
  static constexpr int kCount = kVectors <= 3 ? 4 : 2;
};

// ---------------------------------------------------------------------------------------------
// Rows. prepared:
//   q        (row groups, num_spans, digits, rows of the group, 128) int8, zero past K
//   sums     (rows, digits) int32: of q; with scales per group (row groups, num_spans, rows of the
//            group, 8): minus the sum of a lane's q, all digits
//   factors  (rows,) float64: s, or 2^-e
//   a row in order, before it is spread over the spans (padded K,) int8

struct RowsLayout {
  int64_t digits;
  int64_t num_groups;  // of rows, cut evenly
  size_t sums_offset, factors_offset, row_offset, bytes;
};

RowsLayout MakeRowsLayout(const Layer* layer, int64_t rows) {
  const int64_t spans = NumSpans(layer);
  RowsLayout layout;
  layout.digits = layer->activation == Activation::float32 ? kDigits : 1;
  const int64_t most =
      PerGroup(layer) && layout.digits == 1 ? kMostGroupRows : kMostVectors / layout.digits;
  layout.num_groups = (rows + most - 1) / most;
  const int64_t sums = PerGroup(layer) ? spans * kLanes : layout.digits;
  layout.sums_offset = (size_t)(rows * spans * layout.digits * kSpan);
  layout.factors_offset = layout.sums_offset + RoundUp64((size_t)(rows * sums) * sizeof(int32_t));
  layout.row_offset = layout.factors_offset + RoundUp64((size_t)rows * sizeof(double));
  layout.bytes = layout.row_offset + (size_t)(spans * kSpan);
  return layout;
}

int64_t GroupStart(const RowsLayout& layout, int64_t rows, int64_t group) {
  return rows * group / layout.num_groups;
}

size_t PreparedBytes(const Layer* layer, int64_t rows) { return MakeRowsLayout(layer, rows).bytes; }

// Where a row goes, digit by digit and span by span.
struct RowPlace {
  int8_t* q;
  int32_t* sums;
  int64_t group_rows;
  int64_t digits;
};

RowPlace PlaceOfRow(const Layer* layer, const RowsLayout& layout, int64_t first, int64_t count,
                    int64_t row, void* prepared) {
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  const int64_t group_bytes = NumSpans(layer) * layout.digits * kSpan;
  return {(int8_t*)base + first * group_bytes + (row - first) * kSpan,
          PerGroup(layer) ? sums + (first * NumSpans(layer) + row - first) * kLanes
                          : sums + row * layout.digits,
          count, layout.digits};
}

// Minus the sums of a digit's activations that meet in a lane, times 2^(8 digit), added to starts.
void TakeLaneSums(const int8_t* q, int digit, int32_t* starts) {
  const __m256i one = _mm256_set1_epi8(1);
  __m256i sums = _mm256_setzero_si256();
  for (int64_t i = 0; i < kSpan; i += 32) sums = Dot(sums, one, LoadA(q + i));
  sums = _mm256_slli_epi32(sums, 8 * digit);
  _mm256_store_si256((__m256i*)starts, _mm256_sub_epi32(LoadA(starts), sums));
}

// Puts one digit of a span in its place. in_order: (128,).
void PlaceSpan(const Layer* layer, const RowPlace& place, int64_t span, int digit,
               const int8_t* in_order) {
  int8_t* q = place.q + (span * place.digits + digit) * place.group_rows * kSpan;
  OrderSpan(layer, in_order, q);
  if (!PerGroup(layer)) {
    place.sums[digit] = (span == 0 ? 0 : place.sums[digit]) + SumBytes(in_order, kSpan);
    return;
  }
  int32_t* starts = place.sums + span * place.group_rows * kLanes;
  if (digit == 0) memset(starts, 0, kLanes * sizeof(int32_t));
  TakeLaneSums(q, digit, starts);
}

// Returns s.
double PlaceInt8Row(const Layer* layer, const Call* call, const float* x, const RowPlace& place,
                    int8_t* in_order) {
  const float s = QuantizeRow(layer, call, x, in_order);
  memset(in_order + layer->K, 0, (size_t)(NumSpans(layer) * kSpan - layer->K));
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    PlaceSpan(layer, place, span, 0, in_order + span * kSpan);
  }
  return (double)s;
}

// Returns 2^-e.
double PlaceFloatRow(const Layer* layer, const float* x, const RowPlace& place) {
  const int e = FixedPointExponent(AbsMax(x, layer->K));
  const TwoFactors factors = FactorsOfPower(e);
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    int8_t in_order[kDigits][kSpan];
    SpanDigits(factors, x + span * kSpan, layer->K - span * kSpan, in_order);
    for (int d = 0; d < kDigits; ++d) PlaceSpan(layer, place, span, d, in_order[d]);
  }
  return PowerOfTwo(-e);
}

void Prepare(const Layer* layer, const Call* call, const float* x, int64_t rows, void* prepared) {
  const RowsLayout layout = MakeRowsLayout(layer, rows);
  double* factors = (double*)((char*)prepared + layout.factors_offset);
  int8_t* in_order = (int8_t*)prepared + layout.row_offset;
  for (int64_t group = 0; group < layout.num_groups; ++group) {
    const int64_t first = GroupStart(layout, rows, group);
    const int64_t end = GroupStart(layout, rows, group + 1);
    for (int64_t row = first; row < end; ++row) {
      const RowPlace place = PlaceOfRow(layer, layout, first, end - first, row, prepared);
      const float* x_row = x + row * layer->K;
      factors[row] = layout.digits == 1 ? PlaceInt8Row(layer, call, x_row, place, in_order)
                                        : PlaceFloatRow(layer, x_row, place);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// One scale per tensor or column

// Half a tile or a whole one: sums (vectors, columns) of eight int32, sum(code * q) over all spans.
// codes: (num_spans, 4 columns, 32), from the first of kColumns columns on; q: (num_spans, vectors,
// 128).
template <int kVectors, int kColumns>
OTN_ALWAYS_INLINE void DotColumns(const uint8_t* codes, const int8_t* q, int64_t num_spans,
                                  __m256i (*sums)[kTile]) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  __m256i acc[kVectors][kColumns];
  OTN_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    OTN_UNROLL
    for (int c = 0; c < kColumns; ++c) acc[v][c] = _mm256_setzero_si256();
  }
  for (int64_t span = 0; span < num_spans; ++span, codes += kTileSpanBytes) {
    const int8_t* q_span = q + span * (kVectors * kSpan);
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    if (kColumns > 2) _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    OTN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      __m256i v = LoadU(codes + c * kSpanBytes);
      OTN_IN_REGISTER(v);
      OTN_UNROLL
      for (int j = 0; j < 4; ++j) {
        const __m256i field = _mm256_and_si256(_mm256_srli_epi16(v, 2 * j), mask3);
        OTN_UNROLL
        for (int w = 0; w < kVectors; ++w) OTN_DOT(acc[w][c], field, q_span + w * kSpan + j * 32);
      }
    }
  }
  OTN_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    OTN_UNROLL
    for (int c = 0; c < kColumns; ++c) sums[v][c] = acc[v][c];
  }
}

// The same for one vector and four columns: fields 1 and 3 stay at 4 times their value, which saves
// two of seven instructions that unpack.
OTN_ALWAYS_INLINE void DotOneVector(const uint8_t* codes, const int8_t* q, int64_t num_spans,
                                    __m256i (*sums)[kTile]) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i mask12 = _mm256_set1_epi8(12);
  __m256i scale1[kTile], scale4[kTile];
  OTN_UNROLL
  for (int c = 0; c < kTile; ++c) scale1[c] = scale4[c] = _mm256_setzero_si256();
  for (int64_t span = 0; span < num_spans; ++span, codes += kTileSpanBytes, q += kSpan) {
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      __m256i v = LoadU(codes + c * kSpanBytes);
      OTN_IN_REGISTER(v);
      const __m256i high = _mm256_srli_epi16(v, 4);
      const __m256i field0 = _mm256_and_si256(v, mask3), field1 = _mm256_and_si256(v, mask12);
      const __m256i field2 = _mm256_and_si256(high, mask3);
      const __m256i field3 = _mm256_and_si256(high, mask12);
      OTN_DOT(scale1[c], field0, q);
      OTN_DOT(scale4[c], field1, q + 32);
      OTN_DOT(scale1[c], field2, q + 64);
      OTN_DOT(scale4[c], field3, q + 96);
    }
  }
  OTN_UNROLL
  for (int c = 0; c < kTile; ++c) {
    sums[0][c] = _mm256_add_epi32(scale1[c], _mm256_srai_epi32(scale4[c], 2));
  }
}

// dot (vectors,) of four columns: sum(code * q) modulo 2^32. Out of line, so that the loop has all
// registers.
template <int kVectors>
OTN_NEVER_INLINE void DotTile(const uint8_t* codes, const int8_t* q, int64_t num_spans,
                              __m128i* dot) {
  constexpr int kColumns = Columns<kVectors>::kCount;
  __m256i sums[kVectors][kTile];
  if constexpr (kVectors == 1) {
    DotOneVector(codes, q, num_spans, sums);
  } else {
    for (int c = 0; c < kTile; c += kColumns) {
      __m256i part[kVectors][kTile];
      DotColumns<kVectors, kColumns>(codes + c * kSpanBytes, q, num_spans, part);
      OTN_UNROLL
      for (int i = 0; i < kVectors * kColumns; ++i) {
        sums[i / kColumns][c + i % kColumns] = part[i / kColumns][i % kColumns];
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    dot[v] = HorizontalSums(sums[v][0], sums[v][1], sums[v][2], sums[v][3]);
  }
}

// A group of rows: q as in prepared; sums (rows, digits) or starts; factors (rows,).
struct RowGroup {
  const int8_t* q;
  const int32_t* sums;
  const double* factors;
};

// Y = sum(level * q) * scale * 2^-e + bias in float64.
inline __m128 FinishFloat(const Layer* layer, __m256d total, double unit, int64_t n) {
  const __m256d scale = _mm256_cvtps_pd(LoadScale(layer, n));
  const __m256d bias = _mm256_cvtps_pd(LoadBias(layer, n));
  const __m256d weighted = _mm256_mul_pd(_mm256_mul_pd(total, scale), _mm256_set1_pd(unit));
  return _mm256_cvtpd_ps(_mm256_add_pd(weighted, bias));
}

template <int kDigitCount, int kRows>
void ComputeRows(const Layer* layer, const RowGroup& rows, int64_t begin, int64_t end, float* y,
                 void* scratch) {
  constexpr int kVectors = kDigitCount * kRows;
  for (int64_t n = begin; n < end; n += kTile) {
    __m128i dot[kVectors];
    DotTile<kVectors>(TileCodes(layer, n, (uint8_t*)scratch), rows.q, NumSpans(layer), dot);
    for (int r = 0; r < kRows; ++r) {
      const int32_t* sums = rows.sums + r * kDigitCount;
      __m128 result;
      if (kDigitCount == 1) {
        const __m128i sum = _mm_sub_epi32(dot[r], _mm_set1_epi32(sums[0]));
        result = FinishInt8(layer, sum, (float)rows.factors[r], n);
      } else {
        __m256d total = _mm256_setzero_pd();
        for (int d = kDigitCount - 1; d >= 0; --d) {
          const __m128i sum = _mm_sub_epi32(dot[d * kRows + r], _mm_set1_epi32(sums[d]));
          total = _mm256_fmadd_pd(total, _mm256_set1_pd(256.0), _mm256_cvtepi32_pd(sum));
        }
        result = FinishFloat(layer, total, rows.factors[r], n);
      }
      StoreFloats(y + r * layer->N + n, result, end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Scales per group

// The scale of each of a column's eight lanes. scales: (blocks, 4 columns) of the span, from the
// column on; the last read ends 3 floats past the span (Layer::block_scales).
OTN_ALWAYS_INLINE __m256 LaneScales(int64_t block_size, const float* scales) {
  if (block_size == kSpan) return _mm256_broadcast_ss(scales);
  const __m256 b01 = _mm256_loadu_ps(scales);
  if (block_size == 64) return _mm256_permute_ps(b01, 0);
  const __m256 b0213 = _mm256_shuffle_ps(b01, _mm256_loadu_ps(scales + 8), 0);
  if (block_size == 32) {  // in 64 bits: 0 2 1 3
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(b0213), 0xd8));
  }
  const __m256 b4657 =
      _mm256_shuffle_ps(_mm256_loadu_ps(scales + 16), _mm256_loadu_ps(scales + 24), 0);
  const __m256 evens_odds = _mm256_shuffle_ps(b0213, b4657, 0x88);  // 0 2 4 6 1 3 5 7
  return _mm256_permutevar8x32_ps(evens_odds, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// Lanes of sum(level * q), all digits, of one row and column. q: (digits, rows, 128) from the row
// on.
template <int kDigitCount, int kRows>
OTN_ALWAYS_INLINE __m256i DotLanes(const __m256i* fields, const int8_t* q, const int32_t* starts) {
  __m256i acc[kDigitCount];
  OTN_UNROLL
  for (int d = 0; d < kDigitCount; ++d) acc[d] = d == 0 ? LoadA(starts) : _mm256_setzero_si256();
  OTN_UNROLL
  for (int j = 0; j < 4; ++j) {
    OTN_UNROLL
    for (int d = 0; d < kDigitCount; ++d) {
      OTN_DOT(acc[d], fields[j], q + d * kRows * kSpan + j * 32);
    }
  }
  __m256i sum = acc[kDigitCount - 1];
  OTN_UNROLL
  for (int d = kDigitCount - 2; d >= 0; --d) {
    sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 8), acc[d]);
  }
  return sum;
}

// totals (rows, columns) of eight float32: lanes of weighted sums. scales: (padded units, 4).
template <int kDigitCount, int kRows, int kColumns>
OTN_ALWAYS_INLINE void WeightedColumns(const Layer* layer, const uint8_t* codes,
                                       const RowGroup& rows, const float* scales,
                                       __m256 (*totals)[kTile]) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const int64_t block_size = layer->block_size;
  const int64_t span_floats = SpanUnits(layer) * kTile;
  const int64_t num_spans = NumSpans(layer);
  __m256 total[kRows][kColumns];
  OTN_UNROLL
  for (int i = 0; i < kRows * kColumns; ++i)
    total[i / kColumns][i % kColumns] = _mm256_setzero_ps();
  for (int64_t span = 0; span < num_spans; ++span, codes += kTileSpanBytes, scales += span_floats) {
    const int8_t* q = rows.q + span * (kDigitCount * kRows * kSpan);
    const int32_t* starts = rows.sums + span * (kRows * kLanes);
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    if (kColumns > 2) _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    OTN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      __m256i v = LoadU(codes + c * kSpanBytes);
      OTN_IN_REGISTER(v);
      __m256i fields[4];
      OTN_UNROLL
      for (int j = 0; j < 4; ++j) {
        fields[j] = _mm256_and_si256(_mm256_srli_epi16(v, 2 * j), mask3);
      }
      const __m256 scale = LaneScales(block_size, scales + c);
      OTN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m256i sum =
            DotLanes<kDigitCount, kRows>(fields, q + r * kSpan, starts + r * kLanes);
        total[r][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, total[r][c]);
      }
    }
  }
  OTN_UNROLL
  for (int i = 0; i < kRows * kColumns; ++i) {
    totals[i / kColumns][i % kColumns] = total[i / kColumns][i % kColumns];
  }
}

// Sums of the eight lanes of each of four columns, in float64.
inline __m256d AddLanes(const __m256* columns) {
  __m256d sums[kTile];
  for (int c = 0; c < kTile; ++c) {
    sums[c] = _mm256_add_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(columns[c])),
                            _mm256_cvtps_pd(_mm256_extractf128_ps(columns[c], 1)));
  }
  const __m256d s01 = _mm256_hadd_pd(sums[0], sums[1]), s23 = _mm256_hadd_pd(sums[2], sums[3]);
  return _mm256_add_pd(_mm256_permute2f128_pd(s01, s23, 0x20),
                       _mm256_permute2f128_pd(s01, s23, 0x31));
}

template <int kDigitCount, int kRows>
OTN_NEVER_INLINE void WeightedTile(const Layer* layer, const uint8_t* codes, const RowGroup& rows,
                                   const float* scales, __m256d* totals) {
  constexpr int kColumns = kRows <= 2 ? 4 : 2;
  __m256 lanes[kRows][kTile];
  for (int c = 0; c < kTile; c += kColumns) {
    __m256 part[kRows][kTile];
    WeightedColumns<kDigitCount, kRows, kColumns>(layer, codes + c * kSpanBytes, rows, scales + c,
                                                  part);
    OTN_UNROLL
    for (int i = 0; i < kRows * kColumns; ++i) {
      lanes[i / kColumns][c + i % kColumns] = part[i / kColumns][i % kColumns];
    }
  }
  for (int r = 0; r < kRows; ++r) totals[r] = AddLanes(lanes[r]);
}

template <int kDigitCount, int kRows>
void ComputeGroups(const Layer* layer, const RowGroup& rows, int64_t begin, int64_t end, float* y,
                   void* scratch) {
  const int64_t tile_scales = PaddedUnits(layer) * kTile;
  for (int64_t n = begin; n < end; n += kTile) {
    __m256d totals[kRows];
    WeightedTile<kDigitCount, kRows>(layer, TileCodes(layer, n, (uint8_t*)scratch), rows,
                                     layer->block_scales + n / kTile * tile_scales, totals);
    const __m256d bias = _mm256_cvtps_pd(LoadBias(layer, n));
    for (int r = 0; r < kRows; ++r) {
      const __m256d factor = _mm256_set1_pd(rows.factors[r]);
      const __m256d value =
          kDigitCount == 1 ? _mm256_div_pd(totals[r], factor) : _mm256_mul_pd(totals[r], factor);
      const __m128 result = _mm256_cvtpd_ps(_mm256_add_pd(value, bias));
      StoreFloats(y + r * layer->N + n, result, end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------

using RowsFunction = void (*)(const Layer*, const RowGroup&, int64_t, int64_t, float*, void*);

RowsFunction Int8RowsFunction(const Layer* layer, int64_t rows) {
  static constexpr RowsFunction kPlain[kMostVectors] = {ComputeRows<1, 1>, ComputeRows<1, 2>,
                                                        ComputeRows<1, 3>, ComputeRows<1, 4>,
                                                        ComputeRows<1, 5>, ComputeRows<1, 6>};
  static constexpr RowsFunction kGroups[kMostGroupRows] = {
      ComputeGroups<1, 1>, ComputeGroups<1, 2>, ComputeGroups<1, 3>, ComputeGroups<1, 4>};
  return PerGroup(layer) ? kGroups[rows - 1] : kPlain[rows - 1];
}

RowsFunction FloatRowsFunction(const Layer* layer, int64_t rows) {
  static constexpr RowsFunction kPlain[2] = {ComputeRows<kDigits, 1>, ComputeRows<kDigits, 2>};
  static constexpr RowsFunction kGroups[2] = {ComputeGroups<kDigits, 1>, ComputeGroups<kDigits, 2>};
  return PerGroup(layer) ? kGroups[rows - 1] : kPlain[rows - 1];
}

// Codes of an expanded tile.
size_t ScratchBytes(const Layer* layer, int64_t, int64_t) {
  return AsIs(layer) ? 0 : (size_t)(NumSpans(layer) * kTileSpanBytes);
}

void Compute(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
             int64_t end, float* y, void* scratch) {
  const RowsLayout layout = MakeRowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int64_t spans = NumSpans(layer);
  const int64_t row_sums = PerGroup(layer) ? spans * kLanes : layout.digits;
  // Row groups outside: their activations stay in L1 or L2 while the codes stream past.
  for (int64_t group = 0; group < layout.num_groups; ++group) {
    const int64_t first = GroupStart(layout, rows, group);
    const int64_t count = GroupStart(layout, rows, group + 1) - first;
    const RowGroup of = {(const int8_t*)base + first * spans * layout.digits * kSpan,
                         (const int32_t*)(base + layout.sums_offset) + first * row_sums,
                         (const double*)(base + layout.factors_offset) + first};
    const RowsFunction function =
        layout.digits == 1 ? Int8RowsFunction(layer, count) : FloatRowsFunction(layer, count);
    function(layer, of, begin, end, y + first * layer->N, scratch);
  }
}

// Sums of integers are exact. Scales per group: one addition per span.
int64_t Depth(const Layer* layer) { return PerGroup(layer) ? NumSpans(layer) : 0; }

}  // namespace
}  // namespace avxvnni

extern const Kernel packed_gemm_int8_6x2_avxvnni = {
    "packed_gemm_int8_6x2_avxvnni",
    IndexFormat::packed,
    Activation::int8,
    Isa::avxvnni,
    /*accepts=*/nullptr,
    /*max_rows=*/avxvnni::kMaxRows,
    /*column_step=*/kTile,
    avxvnni::Depth,
    /*fixed_point=*/false,
    avxvnni::PreparedBytes,
    avxvnni::Prepare,
    avxvnni::ScratchBytes,
    avxvnni::Compute,
    /*reads_block_scales=*/true,
};

extern const Kernel packed_gemv_float_2x2_avxvnni = {
    "packed_gemv_float_2x2_avxvnni",
    IndexFormat::packed,
    Activation::float32,
    Isa::avxvnni,
    /*accepts=*/nullptr,
    /*max_rows=*/avxvnni::kMaxRows,
    /*column_step=*/kTile,
    avxvnni::Depth,
    /*fixed_point=*/true,
    avxvnni::PreparedBytes,
    avxvnni::Prepare,
    avxvnni::ScratchBytes,
    avxvnni::Compute,
    /*reads_block_scales=*/true,
};

}  // namespace onnx_ternary
