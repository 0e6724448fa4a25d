// The int8 activation rule of docs/op_spec.md, for the scalar kernels.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "../kernel.h"

namespace onnx_ternary {

// Half to even for |value| < 2^22 under the default rounding mode: adding 1.5 * 2^23 leaves no
// fraction bits. nearbyintf is a library call on baseline x86-64.
static inline float RoundHalfEven(float value) {
  const float magic = 12582912.0f;
  return (value + magic) - magic;
}

// Quantises one row. x, q: (K,). Returns s, or NaN with q all zero where the row has NaN or inf.
static inline float QuantiseRow(const Layer& layer, const float* x, int8_t* q) {
  float absmax = layer.activation_epsilon;
  bool finite = true;
  for (int64_t k = 0; k < layer.K; ++k) {
    const float magnitude = fabsf(x[k]);
    finite &= magnitude <= 3.402823466e38f;  // false for NaN
    absmax = magnitude > absmax ? magnitude : absmax;
  }
  if (!finite) {
    for (int64_t k = 0; k < layer.K; ++k) q[k] = 0;
    return NAN;
  }
  const float qmin = static_cast<float>(layer.activation_qmin);
  const float qmax = static_cast<float>(layer.activation_qmax);
  const float s = layer.activation_rule == ActivationRule::absmax_division ? qmax / absmax
                                                                           : (1.0f / absmax) * qmax;
  for (int64_t k = 0; k < layer.K; ++k) {
    // The bounds are integers, so clipping before rounding is the same, and keeps NaN (0 * inf,
    // from a subnormal epsilon) away from the conversion.
    float value = x[k] * s;
    value = value > qmin ? value : qmin;
    value = value < qmax ? value : qmax;
    value = RoundHalfEven(value);
    q[k] = static_cast<int8_t>(value);
  }
  return s;
}

// Quantised rows as the scalar kernels keep them in `prepared`: s (rows,) float32, then q (rows, K)
// int8.
static inline size_t QuantisedBytes(const Layer* layer, int64_t rows) {
  return static_cast<size_t>(rows) * (sizeof(float) + static_cast<size_t>(layer->K));
}

static inline void QuantiseRows(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  float* s = static_cast<float*>(prepared);
  int8_t* q = reinterpret_cast<int8_t*>(s + rows);
  for (int64_t m = 0; m < rows; ++m) {
    s[m] = QuantiseRow(*layer, x + m * layer->K, q + m * layer->K);
  }
}

}  // namespace onnx_ternary
