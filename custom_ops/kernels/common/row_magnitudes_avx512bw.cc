// Largest and summed magnitudes of a row, which tell what kernels it may go to (rows.cc).
#include <immintrin.h>
#include <stdint.h>

#include "../kernel_list.h"
#include "mask_avx512.h"

namespace onnx_ternary {
namespace avx512 {
namespace {

void RowMagnitudes(const float* x, int64_t count, int32_t* largest_bits, double* sum) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max_bits = _mm512_setzero_si512();
  __m512d total = _mm512_setzero_pd();
  for (int64_t k = 0; k < count;) {
    __m512 part = _mm512_setzero_ps();
    for (int64_t i = 0; i < 4 && k < count; ++i, k += 16) {
      const __m512i bits =
          _mm512_and_si512(_mm512_maskz_loadu_epi32(FirstSixteen(count - k), x + k), magnitude);
      max_bits = _mm512_max_epi32(max_bits, bits);
      part = _mm512_add_ps(part, _mm512_castsi512_ps(bits));
    }
    const __m256 halves =
        _mm256_add_ps(_mm512_castps512_ps256(part), _mm512_extractf32x8_ps(part, 1));
    total = _mm512_add_pd(total, _mm512_cvtps_pd(halves));
  }
  *largest_bits = _mm512_reduce_max_epi32(max_bits);
  *sum = _mm512_reduce_add_pd(total);
}

}  // namespace
}  // namespace avx512

extern const RowMagnitudesFunction row_magnitudes_avx512bw = avx512::RowMagnitudes;

}  // namespace onnx_ternary
