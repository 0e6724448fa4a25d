// bfloat16 to float32 and back, round to nearest even, NaN kept. Straight-line integer code that
// compilers vectorize on any processor. float16 is ONNX Runtime's to convert (custom_op.cc).
#pragma once

#include <cstdint>
#include <cstring>

namespace onnx_ternary {

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float BFloat16ToFloat(uint16_t half) { return FloatOf(static_cast<uint32_t>(half) << 16); }

inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace onnx_ternary
