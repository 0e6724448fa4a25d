// float16 and bfloat16 to float32 and back, round to nearest even, NaN kept. Straight-line integer
// code that compilers vectorize on any processor. A float32 subnormal is an operand only where it
// is added to 0.5, so nothing depends on the flush-to-zero mode a session may set.
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

inline float Float16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  const uint32_t subnormal = BitsOf(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t finite = magnitude < 0x0400u ? subnormal : normal;
  return FloatOf(sign | (magnitude >= 0x7c00u ? special : finite));
}

inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  // Rounding may carry into the exponent, and from the largest float16 into infinity.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // 0.5 has a last place of 2^-24, the float16 subnormals' unit: the addition rounds to it.
  const uint32_t subnormal =
      BitsOf(FloatOf(magnitude < 0x38800000u ? magnitude : 0u) + 0.5f) - BitsOf(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? nan : half;
  return static_cast<uint16_t>(sign | half);
}

inline float BFloat16ToFloat(uint16_t half) { return FloatOf(static_cast<uint32_t>(half) << 16); }

inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

}  // namespace onnx_ternary
