// Every kernel of the library by name, for kernel_registry.cc.
#pragma once

#include "../kernel.h"

namespace onnx_ternary {

extern const Kernel packed_reference_float_scalar;
extern const Kernel packed_reference_int8_scalar;

extern const Kernel rsr_reference_float_scalar;
extern const Kernel rsr_reference_int8_scalar;
extern const Kernel rsr_gemv_float_scalar;
extern const Kernel rsr_gemv_int8_scalar;

}  // namespace onnx_ternary
