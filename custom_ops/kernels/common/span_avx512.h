// What the AVX-512 kernels for `packed` share: codes of every block size and storage in the form of
// span.h, two columns per register, made in registers where they lie otherwise.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "../../layer.h"
#include "mask_avx512.h"
#include "span.h"

#if defined(__GNUC__)
#define OTN_UNROLL16 _Pragma("GCC unroll 16")
#else
#define OTN_UNROLL16
#endif

namespace onnx_ternary {
namespace avx512 {
namespace {

// Largest magnitude of x (count,), as bits (magnitude.h).
inline int32_t AbsMaxBits(const float* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max_bits = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 16) {
    const __m512i bits = _mm512_maskz_loadu_epi32(FirstSixteen(count - k), x + k);
    max_bits = _mm512_max_epi32(max_bits, _mm512_and_si512(bits, magnitude));
  }
  return _mm512_reduce_max_epi32(max_bits);
}

struct ScaleAndBias {
  __m512 scale, bias;
};

// Of the valid columns from `column` on; scale 1 where scales are per group, applied before.
inline ScaleAndBias LoadScaleAndBias(const Layer* layer, int64_t column, __mmask16 valid) {
  return {layer->scale_kind == ScaleKind::per_tensor ? _mm512_set1_ps(layer->scale[0])
          : layer->scale_kind == ScaleKind::per_column
              ? _mm512_maskz_loadu_ps(valid, layer->scale + column)
              : _mm512_set1_ps(1.0f),
          layer->bias ? _mm512_maskz_loadu_ps(valid, layer->bias + column) : _mm512_setzero_ps()};
}

struct Decoder {
  int64_t tile_bytes;
  int64_t span_bytes;
  bool as_is;
  bool one_bit;
  __m512i order01, order23;  // 16-bit words of the two sources
  // 1bit: level + 1 is bit + (bit & repeat | constant), 2 bit or 1 + bit.
  __m512i repeat, constant;
};

Decoder MakeDecoder(const Layer* layer) {
  Decoder decoder;
  decoder.tile_bytes = TileBytes(layer);
  decoder.one_bit = layer->storage == Storage::one_bit;
  decoder.span_bytes = kSpan / layer->block_size * kTile * layer->block_bytes;
  decoder.as_is = !decoder.one_bit && layer->block_size == kSpan;
  const bool zero_one = layer->alphabet == Alphabet::binary_01;
  decoder.repeat = _mm512_set1_epi8(zero_one ? 0 : -1);
  decoder.constant = _mm512_set1_epi8(zero_one ? 0x55 : 0);
  // Byte p of the 32 of column c lies at byte p % (B/4) of block p / (B/4). The second source of
  // bits is the first one shifted: odd bits, the second half of a block's B/4 bytes.
  const int64_t quarter = layer->block_size / 4;
  uint16_t words[64];
  for (int64_t word = 0; word < 64; ++word) {
    const int64_t column = word / 16, p = word % 16 * 2;
    const int64_t block = p / quarter, i = p % quarter;
    const int64_t half = decoder.one_bit ? i / layer->block_bytes : 0;
    const int64_t at = (block * kTile + column) * layer->block_bytes + i - half * quarter / 2;
    words[word] = (uint16_t)(at / 2 + half * 32);
  }
  decoder.order01 = _mm512_loadu_si512(words);
  decoder.order23 = _mm512_loadu_si512(words + 32);
  return decoder;
}

__mmask64 FirstBytes(int64_t count) {
  return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << Max(count, 0)) - 1;
}

// A masked load reads nothing past the last block of a tile; what is missing becomes some code,
// which meets activations of zero.
template <bool kAsIs>
OTN_ALWAYS_INLINE void LoadSpan(const Decoder& decoder, const uint8_t* tile_codes, int64_t span,
                                __m512i* v01, __m512i* v23) {
  const uint8_t* codes = tile_codes + span * decoder.span_bytes;
  if (kAsIs) {
    *v01 = _mm512_loadu_si512(codes);
    *v23 = _mm512_loadu_si512(codes + 64);
#if defined(__GNUC__)
    // gcc 12 repeats the loads, which may cross cache lines, for each of the four fields (one int8
    // row: 46 us instead of 29 for K = N = 2560, Zen 5).
    __asm__("" : "+v"(*v01), "+v"(*v23));
#endif
    return;
  }
  const int64_t left = decoder.tile_bytes - span * decoder.span_bytes;
  if (!decoder.one_bit) {
    __m512i first, second;
    if (left >= 2 * 64) {
      first = _mm512_loadu_si512(codes);
      second = _mm512_loadu_si512(codes + 64);
    } else {
      first = _mm512_maskz_loadu_epi8(FirstBytes(left), codes);
      second = _mm512_maskz_loadu_epi8(FirstBytes(left - 64), codes + 64);
    }
    *v01 = _mm512_permutex2var_epi16(first, decoder.order01, second);
    *v23 = _mm512_permutex2var_epi16(first, decoder.order23, second);
    return;
  }
  const __m512i first = _mm512_maskz_loadu_epi8(FirstBytes(left), codes);
  const __m512i even = _mm512_set1_epi8(0x55);
  const __m512i odd_bits = _mm512_srli_epi16(first, 1);
  const __m512i bits01 =
      _mm512_and_si512(_mm512_permutex2var_epi16(first, decoder.order01, odd_bits), even);
  const __m512i bits23 =
      _mm512_and_si512(_mm512_permutex2var_epi16(first, decoder.order23, odd_bits), even);
  *v01 = _mm512_add_epi8(
      bits01, _mm512_or_si512(_mm512_and_si512(bits01, decoder.repeat), decoder.constant));
  *v23 = _mm512_add_epi8(
      bits23, _mm512_or_si512(_mm512_and_si512(bits23, decoder.repeat), decoder.constant));
}

}  // namespace
}  // namespace avx512
}  // namespace onnx_ternary
