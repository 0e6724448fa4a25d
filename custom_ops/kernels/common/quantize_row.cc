// The activation rules compiled for any processor. DynamicQuantizeLinear clips before it rounds, as
// quantize_absmax.h does and for the same reason: |v| <= 255 there.
#include "quantize_row.h"

#include "magnitude.h"
#include "quantize_absmax.h"

namespace onnx_ternary {
namespace {

const float kToInteger = 12582912.0f;  // 1.5 * 2^23

// saturate(round(x / scale) + zero point) - 128. An x_scale of 0 gives some integer, which the 0 in
// Y's factor makes irrelevant.
void QuantizeToRange(const Call* call, const float* x, int64_t K, int8_t* q) {
  if (!isfinite(call->x_scale)) {
    memset(q, 0, (size_t)K);
    return;
  }
  const float x_scale = call->x_scale;
  const float lowest = (float)(0 - call->x_zero_point);
  const float highest = (float)(255 - call->x_zero_point);
  const float offset = (float)(call->x_zero_point - 128);
  for (int64_t k = 0; k < K; ++k) {
    float v = x[k] / x_scale;
    v = v > lowest ? v : lowest;
    v = v < highest ? v : highest;
    v = (v + kToInteger) - kToInteger;
    q[k] = (int8_t)(v + offset);
  }
}

}  // namespace

float QuantizeActivationRow(const Layer* layer, const Call* call, const float* x, int8_t* q) {
  if (layer->activation_rule == ActivationRule::dynamic_quantize_linear) {
    QuantizeToRange(call, x, layer->K, q);
    return 1.0f;
  }
  return QuantizeAbsmaxRow(layer, x, q);
}

void WidenActivationRange(const float* x, int64_t count, float* lowest, float* highest,
                          int32_t* largest_bits) {
  float low = *lowest;
  float high = *highest;
  int32_t largest = *largest_bits;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t bits = MagnitudeBits(x + i);
    largest = bits > largest ? bits : largest;
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  *lowest = low;
  *highest = high;
  *largest_bits = largest;
}

size_t QuantizedBytes(const Layer* layer, int64_t rows) {
  return static_cast<size_t>(rows) * (sizeof(float) + static_cast<size_t>(layer->K));
}

void QuantizeRows(const Layer* layer, const Call* call, const float* x, int64_t rows,
                  void* prepared) {
  float* s = static_cast<float*>(prepared);
  int8_t* q = reinterpret_cast<int8_t*>(s + rows);
  for (int64_t m = 0; m < rows; ++m) {
    s[m] = QuantizeActivationRow(layer, call, x + m * layer->K, q + m * layer->K);
  }
}

}  // namespace onnx_ternary
