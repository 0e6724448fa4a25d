// A row of floats as 24-bit fixed point, q = round(x * 2^e) in three balanced base-256 digits, so
// that int8 products compute it.
//
// e is the largest integer with absmax * 2^e <= 8355711 = 127 * (1 + 256 + 65536), so every |q| is
// within three digits of [-128, 127], and absmax * 2^(e + 1) > 8355711: an input is off by at most
// 2^-e / 2 < absmax / 8355711 = absmax * 2^-22.994. Integer-valued inputs up to 2^22 are exact.
// sum(level * q) <= 2^24 * 2^23 is exact in float64, where digits, scale and bias are combined.
//
// C headers and internal linkage only.
#pragma once

#include <stdint.h>
#include <string.h>

namespace onnx_ternary {
namespace {

constexpr int kDigits = 3;
constexpr int32_t kFixedPointMax = 8355711;

inline double PowerOfTwo(int exponent) {  // -1022 <= exponent <= 1023
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// e as above; 0 for a row of zeros, and some number for NaN and inf, which the op sends elsewhere.
inline int FixedPointExponent(float absmax) {
  if (!(absmax > 0.0f)) return 0;
  const double wide = (double)absmax;  // normal in float64, also where absmax is denormal
  uint64_t bits;
  memcpy(&bits, &wide, sizeof bits);
  const int exponent = (int)(bits >> 52) - 1023;  // absmax = 1.f * 2^exponent
  if (exponent > 127) return 0;
  const int e = 22 - exponent;
  return wide * PowerOfTwo(e) <= (double)kFixedPointMax ? e : e - 1;
}

// 2^e as a product of float32: 2^e itself may exceed float32 (denormal rows). Two exact steps: a
// product below 2^-126 rounds to 0 with or without the second rounding.
struct TwoFactors {
  float first, second;
};

inline TwoFactors FactorsOfPower(int e) {
  const int e_first = e > 126 ? 126 : e;
  return {(float)PowerOfTwo(e_first), (float)PowerOfTwo(e - e_first)};
}

}  // namespace
}  // namespace onnx_ternary
