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

extern const Kernel packed_gemv_float_portable;
extern const Kernel packed_gemv_int8_portable;
extern const Kernel packed_gemm_float_portable;
extern const Kernel packed_gemm_int8_portable;

extern const Kernel rsr_gemv_float_portable;
extern const Kernel rsr_gemv_int8_portable;
extern const Kernel rsr_gemm_float_portable;
extern const Kernel rsr_gemm_int8_portable;

#if defined(OTN_HAVE_AVX2)
extern const Kernel packed_gemv_float_1x4_avx2;
extern const Kernel packed_gemv_int8_1x4_avx2;
extern const Kernel packed_gemm_float_8x8_avx2;
extern const Kernel packed_gemm_int8_8x4_avx2;

extern const Kernel rsr_gemv_float_avx2;
extern const Kernel rsr_gemv_int8_avx2;
extern const Kernel rsr_gemm_float_avx2;
extern const Kernel rsr_gemm_int8_avx2;
#endif

}  // namespace onnx_ternary
