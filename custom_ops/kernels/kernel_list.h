// Every kernel of the library by name, for kernel_registry.cc.
#pragma once

#include "../kernel.h"

namespace onnx_ternary {

// Largest magnitude of x (count,), as bits without the sign (NaN above infinity), and about the sum
// of the magnitudes.
using RowMagnitudesFunction = void (*)(const float* x, int64_t count, int32_t* largest_bits,
                                       double* sum);

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
extern const RowMagnitudesFunction row_magnitudes_avx2;
extern const Kernel packed_gemv_float_1x4_avx2;
extern const Kernel packed_gemv_int8_1x4_avx2;
extern const Kernel packed_gemm_float_8x8_avx2;
extern const Kernel packed_gemm_int8_8x4_avx2;
extern const Kernel packed_gemm_int8_16x8_avx2;

extern const Kernel rsr_gemv_float_avx2;
extern const Kernel rsr_gemv_int8_avx2;
extern const Kernel rsr_gemm_float_avx2;
extern const Kernel rsr_gemm_int8_avx2;
#endif

#if defined(OTN_HAVE_AVX512BW)
extern const RowMagnitudesFunction row_magnitudes_avx512bw;
extern const Kernel packed_gemm_float_16x8_avx512bw;
#endif

#if defined(OTN_HAVE_AVX512VBMI)
extern const Kernel packed_gemm_float_4x64_avx512vbmi;
#endif

#if defined(OTN_HAVE_AVX512VNNI)
extern const Kernel packed_gemv_float_4x4_avx512vnni;
extern const Kernel packed_gemm_int8_8x4_avx512vnni;
#endif

}  // namespace onnx_ternary
