// Kernels for `packed`, AVX-512 VNNI: decode and vpdpbusd (four products of unsigned codes and
// signed activations added to an int32), for int8 activations and for float activations as fixed
// point of three int8 digits. Rows share the unpacking of codes.
//
// Layout: docs/index_format.md sections 2.1 and 2.3. A span is 128 inputs: one block, or several
// smaller ones, of four columns. 2-bit codes in blocks of 128 are read as they lie: 32 bytes a
// column and span, bits 2j..2j+1 of byte i the code (level + 1) of input 32 j + i, two columns a
// register. Smaller blocks and bits are brought to that form in registers: a byte of block b of a
// column goes to bytes (B/4) b .. of its 32, so field j of byte (B/4) b + i is input
// B b + (B/4) j + i of the span, and activations are laid out in that order. A block is B/16 of
// the eight lanes of int32 of a column. Loads of codes are unaligned (memory-mapped files);
// everything in prepared is 64-byte aligned.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files), d is an int8 in [-128, 127], and vpdpbusd
// does not saturate. A lane takes 16 products a span, at most 16 * 3 * 128 in magnitude; K < 2^24
// has at most 2^17 spans: below 2^30. The sum over a column's eight lanes may wrap, but
// sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in magnitude, and so exact
// modulo 2^32.
//
// With scales per group, lanes begin with minus the sum of their activations, so that they are sums
// of level * d. Pairs of them, 32 inputs, are at most 32 * 8355711 < 2^31 with three digits put
// together, and are added times their scale in float32: below 2^47 * kLargestBlockScale < 2^128 for
// any K; an integer times a float32 does not underflow.
//
// C headers and intrinsics only, everything in the anonymous namespace: no weak symbol compiled for
// AVX-512 may leave this file.
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own AVX-512 headers warn (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/quantize_absmax.h"
#include "common/quantize_row.h"
#include "common/span_avx512.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace avx512vnni {
namespace {

using namespace avx512;

constexpr int64_t kLanes = 8;  // of a column in a span, int32
constexpr int64_t kPrefetchBytes = 6144;
// Codes of a column chunk, read once for every group of rows: they stay in L2.
constexpr int64_t kChunkBytes = 128 << 10;

bool Accepts(const Layer* layer) {
  return layer->index_format == IndexFormat::packed &&
         (!PerGroup(layer) || layer->block_scales != nullptr);
}

bool AcceptsFloat(const Layer* layer) {
  return layer->activation == Activation::float32 && Accepts(layer);
}

bool AcceptsInt8(const Layer* layer) {
  return layer->activation == Activation::int8 && Accepts(layer);
}

// As QuantizeActivationRow, compiled for this instruction set where it is a matter of absmax.
float QuantizeRow(const Layer* layer, const float* x, int8_t* q) {
  const bool absmax = layer->activation_rule == ActivationRule::absmax_division ||
                      layer->activation_rule == ActivationRule::absmax_reciprocal;
  return (absmax ? QuantizeAbsmaxRow : QuantizeActivationRow)(layer, x, q);
}

// Blocks of whole spans.
int64_t PaddedBlocks(const Layer* layer) { return NumSpans(layer) * (kSpan / layer->block_size); }

__mmask8 FirstFour(int64_t count) { return (__mmask8)(count >= 4 ? 15u : (1u << count) - 1u); }

// Four floats of which the first `count` lie in the array; the others are zero.
__m128 LoadFloats(const float* p, int64_t count) { return _mm_maskz_loadu_ps(FirstFour(count), p); }

void StoreFloats(float* p, __m128 v, int64_t count) { _mm_mask_storeu_ps(p, FirstFour(count), v); }

// Scales of columns n..n+3; not for scales per group.
__m128 LoadScale(const Layer* layer, int64_t n) {
  if (layer->scale_kind == ScaleKind::per_tensor) return _mm_set1_ps(layer->scale[0]);
  return LoadFloats(layer->scale + n, layer->N - n);
}

__m128 LoadBias(const Layer* layer, int64_t n) {
  return layer->bias ? LoadFloats(layer->bias + n, layer->N - n) : _mm_setzero_ps();
}

size_t ScratchBytes(const Layer*, int64_t, int64_t) { return 0; }

// Four rows by four columns, row by row in one register; rows from `count` on are not touched.
void StoreTile(float* y, int64_t N, __m512 tile, int64_t count, int64_t num_columns) {
  StoreFloats(y, _mm512_castps512_ps128(tile), num_columns);
  if (count > 1) StoreFloats(y + N, _mm512_extractf32x4_ps(tile, 1), num_columns);
  if (count > 2) StoreFloats(y + 2 * N, _mm512_extractf32x4_ps(tile, 2), num_columns);
  if (count > 3) StoreFloats(y + 3 * N, _mm512_extractf32x4_ps(tile, 3), num_columns);
}

// A number a row, of which `count` lie in the array, for the four columns of each.
__m512i RowsI32(const int32_t* p, int64_t count) {
  const __m512i rows = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(FirstFour(count), p));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                  rows);
}

__m512 RowsF32(const float* p, int64_t count) {
  return _mm512_castsi512_ps(RowsI32((const int32_t*)p, count));
}

// Two rows by four columns in float64.
struct TwoByFour {
  __m512d rows01, rows23;
};

TwoByFour Widen(__m512i tile) {
  return {_mm512_cvtepi32_pd(_mm512_castsi512_si256(tile)),
          _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(tile, 1))};
}

// A number a row, of which `count` lie in the array, for the four columns of each.
TwoByFour RowsF64(const double* p, int64_t count) {
  const __m512d rows = _mm512_castpd256_pd512(_mm256_maskz_loadu_pd(FirstFour(count), p));
  return {_mm512_permutexvar_pd(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), rows),
          _mm512_permutexvar_pd(_mm512_setr_epi64(2, 2, 2, 2, 3, 3, 3, 3), rows)};
}

__m512 Narrow(TwoByFour tile) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(tile.rows01)),
                            _mm512_cvtpd_ps(tile.rows23), 1);
}

// Sum of int8 values, exact: num_bytes is a multiple of 16.
int32_t SumBytes(const int8_t* q, int64_t num_bytes) {
  const __m128i one = _mm_set1_epi8(1);
  __m128i sum = _mm_setzero_si128();
  for (int64_t i = 0; i < num_bytes; i += 16) {
    sum = _mm_dpbusd_epi32(sum, one, _mm_load_si128((const __m128i*)(q + i)));
  }
  sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

// Sums of the activations of a span that meet in a lane, times 2^shift, taken off the lanes'
// starts.
void TakeLaneSums(const int8_t* q, int shift, int32_t* starts) {
  const __m256i one = _mm256_set1_epi8(1);
  __m256i sums = _mm256_setzero_si256();
  for (int64_t i = 0; i < kSpan; i += 32) {
    sums = _mm256_dpbusd_epi32(sums, one, _mm256_load_si256((const __m256i*)(q + i)));
  }
  sums = _mm256_slli_epi32(sums, (unsigned)shift);
  _mm256_store_si256((__m256i*)starts,
                     _mm256_sub_epi32(_mm256_load_si256((const __m256i*)starts), sums));
}

// Puts the 128 activations of a span in the order of the fields.
void OrderSpan(int8_t* q, __m512i first_order, __m512i second_order) {
  const __m512i first = _mm512_load_si512(q);
  const __m512i second = _mm512_load_si512(q + 64);
  _mm512_store_si512(q, _mm512_permutex2var_epi32(first, first_order, second));
  _mm512_store_si512(q + 64, _mm512_permutex2var_epi32(first, second_order, second));
}

struct InputOrder {
  bool as_is;
  __m512i first, second;  // words of four inputs
};

InputOrder MakeInputOrder(const Layer* layer) {
  const int32_t words = (int32_t)layer->block_size / 16;  // of a field and block
  int32_t order[32];
  for (int32_t word = 0; word < 32; ++word) {
    const int32_t field = word / 8, block = word % 8 / words;
    order[word] = block * words * 4 + field * words + word % words;
  }
  return {layer->block_size == kSpan, _mm512_loadu_si512(order), _mm512_loadu_si512(order + 16)};
}

// acc0 += dot(field0, *q), acc1 += dot(field1, *q), q (32,) int8 for both halves of the registers.
// gcc 12 loads ahead and spills two thirds of twenty-four accumulators (20 us instead of 16 for
// eight float rows of K = N = 512 on Zen 5); one assembler statement keeps them in place.
// Sanitizers cannot see its loads.
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
#define OTN_DOT(acc0, acc1, field0, field1, q)                                        \
  do {                                                                                \
    const __m512i d = _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i*)(q))); \
    (acc0) = _mm512_dpbusd_epi32((acc0), (field0), d);                                \
    (acc1) = _mm512_dpbusd_epi32((acc1), (field1), d);                                \
  } while (0)
// The same for two tiles of columns.
#define OTN_DOT2(acc0, acc1, acc2, acc3, field0, field1, field2, field3, q) \
  do {                                                                      \
    OTN_DOT(acc0, acc1, field0, field1, q);                                 \
    OTN_DOT(acc2, acc3, field2, field3, q);                                 \
  } while (0)
#else
#define OTN_DOT(acc0, acc1, field0, field1, q)                  \
  do {                                                          \
    __m512i d;                                                  \
    __asm__ volatile(                                           \
        "vbroadcasti64x4 %5, %2\n\t"                            \
        "vpdpbusd %2, %3, %0\n\t"                               \
        "vpdpbusd %2, %4, %1"                                   \
        : "+&v"(acc0), "+&v"(acc1), "=&v"(d)                    \
        : "v"(field0), "v"(field1), "m"(*(const __m256i*)(q))); \
  } while (0)
#define OTN_DOT2(acc0, acc1, acc2, acc3, field0, field1, field2, field3, q)               \
  do {                                                                                    \
    __m512i d;                                                                            \
    __asm__ volatile(                                                                     \
        "vbroadcasti64x4 %9, %4\n\t"                                                      \
        "vpdpbusd %4, %5, %0\n\t"                                                         \
        "vpdpbusd %4, %6, %1\n\t"                                                         \
        "vpdpbusd %4, %7, %2\n\t"                                                         \
        "vpdpbusd %4, %8, %3"                                                             \
        : "+&v"(acc0), "+&v"(acc1), "+&v"(acc2), "+&v"(acc3), "=&v"(d)                    \
        : "v"(field0), "v"(field1), "v"(field2), "v"(field3), "m"(*(const __m256i*)(q))); \
  } while (0)
#endif

// Of kTiles tiles that are computed together, one after the other in memory: what comes
// kPrefetchBytes later in this one, or in its successor, behind the others.
template <int kTiles, bool kAsIs>
OTN_ALWAYS_INLINE void PrefetchSpan(const Decoder& decoder, const uint8_t* codes, int64_t span) {
  int64_t at = span * decoder.span_bytes;
  if (kTiles == 1) {
    at += kPrefetchBytes;
  } else {
    at += Min(kPrefetchBytes, decoder.tile_bytes);
    if (at >= decoder.tile_bytes) at += (kTiles - 1) * decoder.tile_bytes;
  }
  const char* ahead = (const char*)codes + at;
  _mm_prefetch(ahead, _MM_HINT_T0);
  if (kAsIs || !decoder.one_bit) _mm_prefetch(ahead + 64, _MM_HINT_T0);
}

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
// Scales per group. Pairs of lanes of a block (blocks of 16: of a column, once weighted) are added,
// converted to float32, weighted and added up over the spans; lanes are reduced once, at the end of
// a column.

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
    const int64_t tile_scales = PaddedBlocks(layer) * kTile;
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

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_8x4: up to eight rows a pass. prepared:
//   q     (row groups, num_spans, rows of the group, 128) int8, zero past K
//   sums  (rows,) int32: sum of q; with scales per group (row groups, num_spans, rows of the group,
//         8): minus the sum of a lane's
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

void PrepareGemmInt8(const Layer* layer, const float* x, int64_t rows, void* prepared) {
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
    const float s_row = QuantizeRow(layer, x + row * layer->K, in_order);
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
// packed_gemv_float_4x4: rows as 24-bit fixed point, q = round(x * 2^e), three balanced base-256
// digits, each a vector of its own in the loop above; up to four rows a pass.
//
// e is the largest integer with absmax * 2^e <= 8355711 = 127 * (1 + 256 + 65536), so every |q| is
// within three digits of [-128, 127], and absmax * 2^(e + 1) > 8355711: an input is off by at most
// 2^-e / 2 < absmax / 8355711 = absmax * 2^-22.994. Integer-valued inputs up to 2^22 are exact.
// sum(level * q) <= 2^24 * 2^23 is exact in float64, where digits, scale and bias are combined.
//
// prepared:
//   digits  (row groups, num_spans, 3, rows of the group, 128) int8, zero past K
//   sums    (3, rows) int32; with scales per group (row groups, num_spans, rows of the group, 8),
//           minus the sum of a lane's q
//   units   (rows,) float64, 2^-e

constexpr int kDigits = 3;
constexpr int32_t kFixedPointMax = 8355711;
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

float AbsMax(const float* x, int64_t count) {
  const int32_t largest = AbsMaxBits(x, count);
  float absmax;
  memcpy(&absmax, &largest, sizeof absmax);
  return absmax;
}

double PowerOfTwo(int exponent) {  // -1022 <= exponent <= 1023
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// e as above; 0 for a row of zeros, and some number for NaN and inf, which the op sends elsewhere.
int FixedPointExponent(float absmax) {
  if (!(absmax > 0.0f)) return 0;
  const double wide = (double)absmax;  // normal in float64, also where absmax is denormal
  uint64_t bits;
  memcpy(&bits, &wide, sizeof bits);
  const int exponent = (int)(bits >> 52) - 1023;  // absmax = 1.f * 2^exponent
  if (exponent > 127) return 0;
  const int e = 22 - exponent;
  return wide * PowerOfTwo(e) <= (double)kFixedPointMax ? e : e - 1;
}

void PrepareFixed(const Layer* layer, const float* x, int64_t rows, void* prepared) {
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
    const int e = FixedPointExponent(AbsMax(x_row, K));
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
  __m512i row;      // of every lane, for arrays of a number a row
  __m512i column;   // of every lane, for arrays of a number a column
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

// Sums of integers are exact. Scales per group: an addition a span, then those of four lanes of a
// column (a third one in blocks of 16 takes the place of a group's in T + G + 3).
int64_t Depth(const Layer* layer) { return PerGroup(layer) ? NumSpans(layer) + 2 : 0; }

}  // namespace
}  // namespace avx512vnni

extern const Kernel packed_gemm_int8_8x4_avx512vnni = {
    "packed_gemm_int8_8x4_avx512vnni",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx512vnni,
    avx512vnni::AcceptsInt8,
    /*max_rows=*/avx512vnni::kInt8MaxRows,
    /*column_step=*/avx512vnni::kTile,
    avx512vnni::Depth,
    /*fixed_point=*/false,
    avx512vnni::GemmInt8PreparedBytes,
    avx512vnni::PrepareGemmInt8,
    avx512vnni::ScratchBytes,
    avx512vnni::GemmInt8,
};

extern const Kernel packed_gemv_float_4x4_avx512vnni = {
    "packed_gemv_float_4x4_avx512vnni",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx512vnni,
    avx512vnni::AcceptsFloat,
    /*max_rows=*/avx512vnni::kFixedMaxRows,
    /*column_step=*/avx512vnni::kTile,
    avx512vnni::Depth,
    /*fixed_point=*/true,
    avx512vnni::FixedPreparedBytes,
    avx512vnni::PrepareFixed,
    avx512vnni::ScratchBytes,
    avx512vnni::GemvFloat,
};

}  // namespace onnx_ternary
