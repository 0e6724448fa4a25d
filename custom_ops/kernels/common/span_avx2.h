// What the AVX2 kernels for `packed` share: codes of every block size and storage in the form of
// span.h, one register per column and span, and the activation rules.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "../../layer.h"
#include "quantize_absmax.h"
#include "quantize_row.h"
#include "span.h"

// Keeps an accumulator of a long loop in its register: gcc 12 regroups additions across iterations
// and spills (eight rows of int8: 152 instead of 169 GMAC/s, Zen 5).
#if defined(__GNUC__)
#define OTN_IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define OTN_IN_REGISTER(v) (void)(v)
#endif

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kGemmMaxRows = 64;

inline __m256i LoadU(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i LoadA(const void* p) { return _mm256_load_si256((const __m256i*)p); }

// rows: pieces of block_bytes of the four columns, unit after unit. columns: those of each column
// side by side, 32 bytes.
inline void GatherColumns(int64_t piece_bytes, const __m256i* rows, __m256i* columns) {
  if (piece_bytes == 16) {
    for (int i = 0; i < 2; ++i) {
      columns[2 * i] = _mm256_permute2x128_si256(rows[i], rows[2 + i], 0x20);
      columns[2 * i + 1] = _mm256_permute2x128_si256(rows[i], rows[2 + i], 0x31);
    }
    return;
  }
  if (piece_bytes == 8) {
    const __m256i even01 = _mm256_unpacklo_epi64(rows[0], rows[1]);
    const __m256i odd01 = _mm256_unpackhi_epi64(rows[0], rows[1]);
    const __m256i even23 = _mm256_unpacklo_epi64(rows[2], rows[3]);
    const __m256i odd23 = _mm256_unpackhi_epi64(rows[2], rows[3]);
    columns[0] = _mm256_permute2x128_si256(even01, even23, 0x20);
    columns[1] = _mm256_permute2x128_si256(odd01, odd23, 0x20);
    columns[2] = _mm256_permute2x128_si256(even01, even23, 0x31);
    columns[3] = _mm256_permute2x128_si256(odd01, odd23, 0x31);
    return;
  }
  const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
  const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
  const __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
  columns[0] = _mm256_unpacklo_epi64(low01, low23);
  columns[1] = _mm256_unpackhi_epi64(low01, low23);
  columns[2] = _mm256_unpacklo_epi64(high01, high23);
  columns[3] = _mm256_unpackhi_epi64(high01, high23);
  // Now the even units, then the odd ones.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int c = 0; c < kTile; ++c) columns[c] = _mm256_permutevar8x32_epi32(columns[c], order);
}

// One span of the tile's codes in the form of 2-bit blocks of 128, one register per column.
inline void ExpandSpan(const Layer* layer, const uint8_t* tile_codes, int64_t span,
                       __m256i* columns) {
  uint8_t padded[kTileSpanBytes];
  const uint8_t* source = WholeSpan(layer, tile_codes, span, padded);
  __m256i rows[4];
  if (layer->storage == Storage::two_bit) {
    for (int i = 0; i < 4; ++i) rows[i] = LoadU(source + i * 32);
    GatherColumns(layer->block_bytes, rows, columns);
    return;
  }
  // Even bits and odd ones, the two halves of a 2-bit block, at the places of 2-bit codes. Level +
  // 1 is twice the bit, or one more than the bit.
  const __m256i mask = _mm256_set1_epi8(0x55);
  __m256i halves[2][2];
  for (int i = 0; i < 2; ++i) {
    const __m256i v = LoadU(source + i * 32);
    for (int half = 0; half < 2; ++half) {
      const __m256i bits = _mm256_and_si256(half ? _mm256_srli_epi16(v, 1) : v, mask);
      halves[half][i] = _mm256_add_epi8(bits, layer->alphabet == Alphabet::binary_01 ? mask : bits);
    }
  }
  switch (layer->block_bytes) {
    case 16:
      rows[0] = halves[0][0];
      rows[1] = halves[0][1];
      rows[2] = halves[1][0];
      rows[3] = halves[1][1];
      break;
    case 8:
      rows[0] = halves[0][0];
      rows[1] = halves[1][0];
      rows[2] = halves[0][1];
      rows[3] = halves[1][1];
      break;
    case 4:
      for (int i = 0; i < 2; ++i) {
        rows[2 * i] = _mm256_permute2x128_si256(halves[0][i], halves[1][i], 0x20);
        rows[2 * i + 1] = _mm256_permute2x128_si256(halves[0][i], halves[1][i], 0x31);
      }
      break;
    default:
      // Two bytes of each half make four of a unit: two units (c0 c1 c2 c3) in 128 bits.
      for (int i = 0; i < 2; ++i) {
        const __m256i low = _mm256_unpacklo_epi16(halves[0][i], halves[1][i]);
        const __m256i high = _mm256_unpackhi_epi16(halves[0][i], halves[1][i]);
        rows[2 * i] = _mm256_permute2x128_si256(low, high, 0x20);
        rows[2 * i + 1] = _mm256_permute2x128_si256(low, high, 0x31);
      }
      break;
  }
  GatherColumns(layer->block_bytes == 2 ? 4 : layer->block_bytes, rows, columns);
}

}  // namespace
}  // namespace avx2
}  // namespace onnx_ternary
