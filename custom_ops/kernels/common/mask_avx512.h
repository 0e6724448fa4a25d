// Masks of the first lanes. C headers and intrinsics only, internal linkage only.
#pragma once

#include <stdint.h>

#include "intrinsics_avx512.h"
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
