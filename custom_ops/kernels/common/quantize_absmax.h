// Per-token absmax quantization (BitNet b1.58), written so that compilers vectorize it.
//
// The largest magnitude is taken on the bits (magnitude.h). Clipping comes before rounding, which
// is the same thing because the bounds are integers, and keeps |v| <= 128, where adding and
// subtracting 1.5 * 2^23 rounds to the nearest even integer.
//
// Internal linkage: every file that includes this compiles it for its own instruction set, with the
// same result.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "../../layer.h"
#include "magnitude.h"
#include "quantize_row.h"

namespace onnx_ternary {
namespace {

// q: (K,) int8. Returns s, or NaN (and writes zeros) where the row has NaN or inf.
inline float QuantizeAbsmaxRow(const Layer* layer, const float* x, int8_t* q) {
  const int64_t K = layer->K;
  const int32_t largest_bits = LargestBits(x, K, 0);
  const int32_t infinity_bits = 0x7f800000;
  if (largest_bits >= infinity_bits) {
    memset(q, 0, (size_t)K);
    return NAN;
  }
  float absmax = FloatOfBits(largest_bits);
  if (absmax < layer->activation_epsilon) absmax = layer->activation_epsilon;
  const float qmax = (float)layer->activation_qmax;
  const float qmin = (float)layer->activation_qmin;
  const float s = layer->activation_rule == ActivationRule::absmax_reciprocal
                      ? (1.0f / absmax) * qmax
                      : qmax / absmax;
  const float to_integer = 12582912.0f;  // 1.5 * 2^23
  for (int64_t k = 0; k < K; ++k) {
    float v = x[k] * s;
    v = v > qmin ? v : qmin;
    v = v < qmax ? v : qmax;
    v = (v + to_integer) - to_integer;
    q[k] = (int8_t)v;
  }
  return s;
}

// As QuantizeActivationRow, compiled for this instruction set where it is a matter of absmax.
inline float QuantizeRow(const Layer* layer, const Call* call, const float* x, int8_t* q) {
  const bool absmax = layer->activation_rule == ActivationRule::absmax_division ||
                      layer->activation_rule == ActivationRule::absmax_reciprocal;
  return absmax ? QuantizeAbsmaxRow(layer, x, q) : QuantizeActivationRow(layer, call, x, q);
}

}  // namespace
}  // namespace onnx_ternary
