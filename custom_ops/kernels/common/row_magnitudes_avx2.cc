// Largest and summed magnitudes of a row, which tell what kernels it may go to (rows.cc).
#include <immintrin.h>
#include <stdint.h>

#include "../kernel_list.h"
#include "magnitude.h"

namespace onnx_ternary {
namespace avx2 {
namespace {

void RowMagnitudes(const float* x, int64_t count, int32_t* largest_bits, double* sum) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i max_bits = _mm256_setzero_si256();
  __m256d total = _mm256_setzero_pd();
  int32_t largest = 0;
  int64_t k = 0;
  for (; k + 32 <= count; k += 32) {
    __m256 part = _mm256_setzero_ps();
    for (int64_t i = 0; i < 32; i += 8) {
      const __m256i bits =
          _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(x + k + i)), magnitude);
      max_bits = _mm256_max_epi32(max_bits, bits);
      part = _mm256_add_ps(part, _mm256_castsi256_ps(bits));
    }
    total = _mm256_add_pd(total, _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(part),
                                                            _mm256_extractf128_ps(part, 1))));
  }
  double sums[4];
  int32_t lanes[8];
  _mm256_storeu_pd(sums, total);
  _mm256_storeu_si256((__m256i*)lanes, max_bits);
  for (int i = 0; i < 8; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  double rest = 0.0;
  for (; k < count; ++k) {
    const int32_t bits = MagnitudeBits(x + k);
    largest = bits > largest ? bits : largest;
    rest += (double)FloatOfBits(bits);
  }
  *largest_bits = largest;
  *sum = sums[0] + sums[1] + sums[2] + sums[3] + rest;
}

}  // namespace
}  // namespace avx2

extern const RowMagnitudesFunction row_magnitudes_avx2 = avx2::RowMagnitudes;

}  // namespace onnx_ternary
