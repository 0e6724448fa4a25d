// Masks of the first lanes. C headers and intrinsics only, internal linkage only.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own AVX-512 headers warn (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stdint.h>

#include "scalar.h"

namespace onnx_ternary {
namespace avx512 {
namespace {

inline __mmask16 FirstSixteen(int64_t count) {
  return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << Max(count, 0)) - 1u);
}

}  // namespace
}  // namespace avx512
}  // namespace onnx_ternary
