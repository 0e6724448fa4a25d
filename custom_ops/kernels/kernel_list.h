// Declares every kernel of kernel_list.inc, also those this library is built without.
#pragma once

#include "../kernel.h"

namespace onnx_ternary {

// Largest magnitude of x (count,), as bits without the sign (NaN above infinity), and about the sum
// of the magnitudes.
using RowMagnitudesFunction = void (*)(const float* x, int64_t count, int32_t* largest_bits,
                                       double* sum);

#define OTN_KERNEL(isa, family, name) extern const Kernel name;
#define OTN_ROW_MAGNITUDES(isa) extern const RowMagnitudesFunction row_magnitudes_##isa;
#include "kernel_list.inc"

}  // namespace onnx_ternary
