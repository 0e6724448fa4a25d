// The activation rules compiled for any processor.
#include "quantise_row.h"

#include "quantise_absmax.h"

namespace onnx_ternary {

float QuantiseActivationRow(const Layer* layer, const float* x, int8_t* q) {
  return QuantiseAbsmaxRow(layer, x, q);
}

size_t QuantisedBytes(const Layer* layer, int64_t rows) {
  return static_cast<size_t>(rows) * (sizeof(float) + static_cast<size_t>(layer->K));
}

void QuantiseRows(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  float* s = static_cast<float*>(prepared);
  int8_t* q = reinterpret_cast<int8_t*>(s + rows);
  for (int64_t m = 0; m < rows; ++m) {
    s[m] = QuantiseActivationRow(layer, x + m * layer->K, q + m * layer->K);
  }
}

}  // namespace onnx_ternary
