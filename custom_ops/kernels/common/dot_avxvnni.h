// The one instruction that AVX-VNNI adds to AVX2, vpdpbusd on ymm registers, and the same in AVX2
// for test builds (OTN_EMULATE), whose processors may lack it.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "scalar.h"

// OTN_DOT(acc, codes, q): acc (8 int32) += sums of four products of codes (32 uint8) and the 32
// int8 at q, which is 32-byte aligned; int32 wraps.
//
// One assembler statement keeps twelve accumulators in their registers and the load beside its use
// (gcc 12 loads ahead and spills). Sanitizers cannot see an assembler's loads.
#if defined(OTN_EMULATE) || defined(OTN_SANITIZE) || !defined(__GNUC__)
#define OTN_DOT(acc, codes, q) \
  (acc) = onnx_ternary::avxvnni::Dot((acc), (codes), _mm256_load_si256((const __m256i*)(q)))
#else
#define OTN_DOT(acc, codes, q)                   \
  __asm__ volatile("%{vex%} vpdpbusd %2, %1, %0" \
                   : "+x"(acc)                   \
                   : "x"(codes), "m"(*(const __m256i*)(q)))
#endif

namespace onnx_ternary {
namespace avxvnni {
namespace {

#if defined(OTN_EMULATE)
// Products of a uint8 and an int8 fit int16, and so do no two of them: even and odd bytes apart.
OTN_ALWAYS_INLINE __m256i Dot(__m256i acc, __m256i codes, __m256i q) {
  const __m256i one = _mm256_set1_epi16(1);
  const __m256i even = _mm256_mullo_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                                          _mm256_srai_epi16(_mm256_slli_epi16(q, 8), 8));
  const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(q, 8));
  const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(even, one), _mm256_madd_epi16(odd, one));
  return _mm256_add_epi32(acc, sum);
}
#else
OTN_ALWAYS_INLINE __m256i Dot(__m256i acc, __m256i codes, __m256i q) {
  return _mm256_dpbusd_avx_epi32(acc, codes, q);
}
#endif

}  // namespace
}  // namespace avxvnni
}  // namespace onnx_ternary
