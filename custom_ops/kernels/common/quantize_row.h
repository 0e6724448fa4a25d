// The activation rules of docs/op_spec.md for one row, shared by the kernels (C headers only: the
// files of an instruction set include it).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../../layer.h"

namespace onnx_ternary {

// q: (K,) int8. Returns s, or NaN (and writes zeros) where the row has NaN or inf, so that
// sum / s is NaN in every column. dynamic_quantize_linear: q - 128, s = 1 (zeros for a
// call->x_scale that is not finite); no other rule reads call.
float QuantizeActivationRow(const Layer* layer, const Call* call, const float* x, int8_t* q);

// Widens [*lowest, *highest] and *largest_bits (the largest magnitude as bits, NaN above infinity)
// by x (count,). The range is meaningless once there is NaN.
void WidenActivationRange(const float* x, int64_t count, float* lowest, float* highest,
                          int32_t* largest_bits);

// Quantized rows as the scalar kernels keep them in `prepared`: s (rows,) float32, then q (rows, K)
// int8.
size_t QuantizedBytes(const Layer* layer, int64_t rows);
void QuantizeRows(const Layer* layer, const Call* call, const float* x, int64_t rows,
                  void* prepared);

}  // namespace onnx_ternary
