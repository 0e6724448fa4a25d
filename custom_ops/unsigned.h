// activation = uint8 (DynamicQuantizeLinear, docs/op_spec.md) in one place. Kernels multiply q -
// 128 as int8, with s and scale 1 and no bias; what is made of their sums is here.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace onnx_ternary {

// What all rows of X span. largest_bits: the largest magnitude as bits, NaN above infinity.
struct ActivationRange {
  float lowest = 0.0f;
  float highest = 0.0f;
  int32_t largest_bits = 0;
};

// Widens range by x (count,), or by another range.
void Widen(const float* x, int64_t count, ActivationRange* range);
void Widen(const ActivationRange& other, ActivationRange* range);

// The call whose X has that range.
Call CallOf(const ActivationRange& range);

// Makes a validated layer one that kernels serve: scale and bias go to output_scale and
// output_bias. column_sums (N,), which the layer points to from now on, receives the sums of
// levels.
void MakeUnsigned(Layer* layer, std::vector<int32_t>* column_sums);

// Y of the exact integers that a kernel wrote to columns [begin, end) of y (rows, N).
void FinishUnsigned(const Layer& layer, const Call& call, int64_t rows, int64_t begin, int64_t end,
                    float* y);

}  // namespace onnx_ternary
