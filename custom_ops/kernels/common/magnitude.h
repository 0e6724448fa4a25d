// Magnitudes of float32 as bits: without the sign they order as integers do, infinity above every
// number and NaN above infinity. C headers and internal linkage only.
#pragma once

#include <stdint.h>
#include <string.h>

namespace onnx_ternary {
namespace {

inline int32_t MagnitudeBits(const float* x) {
  int32_t bits;
  memcpy(&bits, x, sizeof bits);
  return bits & 0x7fffffff;
}

inline float FloatOfBits(int32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The larger of `largest` and the magnitudes of x (count,).
inline int32_t LargestBits(const float* x, int64_t count, int32_t largest) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = MagnitudeBits(x + i);
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

}  // namespace
}  // namespace onnx_ternary
