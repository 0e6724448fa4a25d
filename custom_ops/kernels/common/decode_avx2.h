// What the kernels for `packed` that decode on processors with AVX2 share: loads and stores of four
// columns, codes of a tile, fixed point, and how Y is made.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "fixed_point.h"
#include "magnitude.h"
#include "span_avx2.h"

namespace onnx_ternary {
namespace avx2 {
namespace {

// Four floats of which the first `count` lie in the array; the others are zero.
inline __m128 LoadFloats(const float* p, int64_t count) {
  if (count >= 4) return _mm_loadu_ps(p);
  float buffer[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return _mm_loadu_ps(buffer);
}

inline void StoreFloats(float* p, __m128 v, int64_t count) {
  if (count >= 4) {
    _mm_storeu_ps(p, v);
    return;
  }
  float buffer[4];
  _mm_storeu_ps(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// Scales of columns n..n+3; not for scales per group.
inline __m128 LoadScale(const Layer* layer, int64_t n) {
  if (layer->scale_kind == ScaleKind::per_tensor) return _mm_set1_ps(layer->scale[0]);
  return LoadFloats(layer->scale + n, layer->N - n);
}

// Codes of the tile at column n, (spans, 4, 32) bytes: the layer's, or made in `expanded`.
inline const uint8_t* TileCodes(const Layer* layer, int64_t n, uint8_t* expanded) {
  const uint8_t* codes = TileStart(layer, n);
  if (AsIs(layer)) return codes;
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    __m256i columns[kTile];
    ExpandSpan(layer, codes, span, columns);
    for (int c = 0; c < kTile; ++c) {
      _mm256_store_si256((__m256i*)(expanded + span * kTileSpanBytes) + c, columns[c]);
    }
  }
  return expanded;
}

// scratch of the decode kernels: scales, then an expanded tile
struct DecodeScratch {
  size_t expanded_offset, bytes;
};

inline DecodeScratch DecodeScratchLayout(const Layer* layer) {
  DecodeScratch layout;
  layout.expanded_offset = StripBytes(layer);
  layout.bytes =
      layout.expanded_offset + (AsIs(layer) ? 0 : (size_t)(NumSpans(layer) * kTileSpanBytes));
  return layout;
}

inline size_t DecodeScratchBytes(const Layer* layer, int64_t, int64_t) {
  return DecodeScratchLayout(layer).bytes;
}

inline __m128 LoadBias(const Layer* layer, int64_t n) {
  return layer->bias ? LoadFloats(layer->bias + n, layer->N - n) : _mm_setzero_ps();
}

// Sums of the eight int32 of each of four registers.
inline __m128i HorizontalSums(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// Sum of int8 values, exact: num_bytes is a multiple of 16.
inline int32_t SumBytes(const int8_t* q, int64_t num_bytes) {
  const __m128i one_u8 = _mm_set1_epi8(1);
  const __m128i one_i16 = _mm_set1_epi16(1);
  __m128i sum = _mm_setzero_si128();
  for (int64_t i = 0; i < num_bytes; i += 16) {
    const __m128i bytes = _mm_loadu_si128((const __m128i*)(q + i));
    sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(one_u8, bytes), one_i16));
  }
  sum = _mm_add_epi32(sum, _mm_unpackhi_epi64(sum, sum));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 1)));
}

// Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
inline __m128 FinishInt8(const Layer* layer, __m128i sum, float s, int64_t n) {
  const __m128 quotient = _mm_div_ps(_mm_cvtepi32_ps(sum), _mm_set1_ps(s));
  return _mm_add_ps(_mm_mul_ps(quotient, LoadScale(layer, n)), LoadBias(layer, n));
}

// In float64: weighted sums of groups may lie outside float32.
inline __m128 FinishGroupsInt8(const Layer* layer, __m256d total, float s, int64_t n) {
  const __m256d y = _mm256_div_pd(total, _mm256_set1_pd((double)s));
  return _mm_add_ps(_mm256_cvtpd_ps(y), LoadBias(layer, n));
}

inline float AbsMax(const float* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i max_bits = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    max_bits = _mm256_max_epi32(max_bits, _mm256_and_si256(LoadU(x + k), magnitude));
  }
  int32_t lanes[8], largest = 0;
  _mm256_storeu_si256((__m256i*)lanes, max_bits);
  for (int i = 0; i < 8; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return FloatOfBits(LargestBits(x + k, count - k, largest));
}

// The digits of a span of a row as fixed point, `count` inputs of which are at x and the others
// zero.
inline void SpanDigits(const TwoFactors& factors, const float* x, int64_t count,
                       int8_t (*digits)[kSpan]) {
  const __m256i half_i32 = _mm256_set1_epi32(128);
  // Byte 0 of each int32, lane by lane, then the int32 of both lanes in order.
  const __m256i low_bytes =
      _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256 scale_first = _mm256_set1_ps(factors.first);
  const __m256 scale_second = _mm256_set1_ps(factors.second);
  float buffer[kSpan];
  if (count < kSpan) {
    memset(buffer, 0, sizeof buffer);
    memcpy(buffer, x, (size_t)count * sizeof(float));
    x = buffer;
  }
  for (int64_t i = 0; i < kSpan; i += 8) {
    const __m256 scaled =
        _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), scale_first), scale_second);
    __m256i rest = _mm256_cvtps_epi32(scaled);  // to nearest
    for (int d = 0; d < kDigits; ++d) {
      // The low byte, read as int8, is the digit; (rest + 128) >> 8 takes it off.
      const __m256i bytes = _mm256_shuffle_epi8(rest, low_bytes);
      const uint32_t low = (uint32_t)_mm256_extract_epi32(bytes, 0);
      const uint32_t high = (uint32_t)_mm256_extract_epi32(bytes, 4);
      memcpy(digits[d] + i, &low, 4);
      memcpy(digits[d] + i + 4, &high, 4);
      rest = _mm256_srai_epi32(_mm256_add_epi32(rest, half_i32), 8);
    }
  }
}

}  // namespace
}  // namespace avx2
}  // namespace onnx_ternary
