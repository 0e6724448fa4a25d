// What the VNNI kernels make of a tile: loads and stores of four columns, the order of activations
// in a span, products of a span.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "common/span_avx512.h"

namespace onnx_ternary {
namespace avx512vnni {
namespace {

using namespace avx512;

constexpr int64_t kLanes = 8;  // of a column in a span, int32
constexpr int64_t kPrefetchBytes = 6144;

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

// Four rows by four columns, row by row in one register; rows from `count` on are not touched.
void StoreTile(float* y, int64_t N, __m512 tile, int64_t count, int64_t num_columns) {
  StoreFloats(y, _mm512_castps512_ps128(tile), num_columns);
  if (count > 1) StoreFloats(y + N, _mm512_extractf32x4_ps(tile, 1), num_columns);
  if (count > 2) StoreFloats(y + 2 * N, _mm512_extractf32x4_ps(tile, 2), num_columns);
  if (count > 3) StoreFloats(y + 3 * N, _mm512_extractf32x4_ps(tile, 3), num_columns);
}

// One number per row, of which `count` lie in the array, for the four columns of each row.
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

// One number per row, of which `count` lie in the array, for the four columns of each row.
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

}  // namespace
}  // namespace avx512vnni
}  // namespace onnx_ternary
