// The instruction sets and kernels of this library, and what this processor supports of them.
#include "dispatch/kernel_registry.h"

#include "dispatch/cpu_features.h"
#include "kernels/kernel_list.h"

namespace onnx_ternary {
namespace {

constexpr IsaEntry kIsas[] = {
    {Isa::scalar, "scalar", "nothing", true},
    {Isa::portable, "portable", "nothing", true},
#if defined(OTN_HAVE_AVX2)
    {Isa::avx2, "avx2", "AVX2, FMA, BMI2 and F16C", true},
#else
    {Isa::avx2, "avx2", "AVX2, FMA, BMI2 and F16C", false},
#endif
#if defined(OTN_HAVE_AVX512BW)
    {Isa::avx512bw, "avx512bw", "AVX512F, AVX512BW, AVX512VL, AVX512DQ, FMA and BMI2", true},
#else
    {Isa::avx512bw, "avx512bw", "AVX512F, AVX512BW, AVX512VL, AVX512DQ, FMA and BMI2", false},
#endif
#if defined(OTN_HAVE_AVX512VBMI)
    {Isa::avx512vbmi, "avx512vbmi",
     "AVX512F, AVX512BW, AVX512VL, AVX512DQ, AVX512_VBMI, FMA and BMI2", true},
#else
    {Isa::avx512vbmi, "avx512vbmi",
     "AVX512F, AVX512BW, AVX512VL, AVX512DQ, AVX512_VBMI, FMA and BMI2", false},
#endif
#if defined(OTN_HAVE_AVX512VNNI)
    {Isa::avx512vnni, "avx512vnni",
     "AVX512F, AVX512BW, AVX512VL, AVX512DQ, AVX512_VNNI, FMA and BMI2", true},
#else
    {Isa::avx512vnni, "avx512vnni",
     "AVX512F, AVX512BW, AVX512VL, AVX512DQ, AVX512_VNNI, FMA and BMI2", false},
#endif
};

void Append(std::string* list, const std::string& item) {
  if (!list->empty()) *list += ", ";
  *list += item;
}

}  // namespace

const IsaEntry* FindIsa(const std::string& name) {
  for (const IsaEntry& entry : kIsas) {
    if (name == entry.name) return &entry;
  }
  return nullptr;
}

const IsaEntry& EntryOf(Isa isa) {
  for (const IsaEntry& entry : kIsas) {
    if (entry.isa == isa) return entry;
  }
  return kIsas[0];
}

std::string AvailableIsas() {
  std::string list;
  for (const IsaEntry& entry : kIsas) {
    if (IsaSupported(entry.isa)) Append(&list, entry.name);
  }
  return list;
}

std::string BuiltIsas() {
  std::string list;
  for (const IsaEntry& entry : kIsas) {
    if (entry.built) Append(&list, entry.name);
  }
  return list;
}

std::string RunnableKernels() {
  std::string list;
  for (const Kernel* kernel : BuiltKernels()) {
    if (IsaSupported(kernel->isa)) Append(&list, kernel->name);
  }
  return list;
}

const char* FormatName(IndexFormat index_format) {
  return index_format == IndexFormat::packed ? "packed" : "rsr";
}

const char* ActivationName(Activation activation) {
  return activation == Activation::float32 ? "float" : "int8";
}

const char* IsaName(Isa isa) { return EntryOf(isa).name; }

bool IsaSupported(Isa isa) {
  if (!EntryOf(isa).built) return false;
  const CpuFeatureSet& cpu = CpuFeatureFlags();
  switch (isa) {
    case Isa::scalar:
    case Isa::portable:
      return true;
    case Isa::avx2:
      return cpu.avx2 && cpu.fma && cpu.bmi2 && cpu.f16c;
    case Isa::avx512bw:
      return cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512dq && cpu.fma && cpu.bmi2;
    case Isa::avx512vbmi:
      return IsaSupported(Isa::avx512bw) && cpu.avx512vbmi;
    case Isa::avx512vnni:
      return IsaSupported(Isa::avx512bw) && cpu.avx512vnni;
  }
  return false;
}

std::string CpuFeatures() {
  const CpuFeatureSet& cpu = CpuFeatureFlags();
  std::string list;
  if (cpu.avx2) Append(&list, "avx2");
  if (cpu.fma) Append(&list, "fma");
  if (cpu.bmi2) Append(&list, "bmi2");
  if (cpu.f16c) Append(&list, "f16c");
  if (cpu.avx512f) Append(&list, "avx512f");
  if (cpu.avx512dq) Append(&list, "avx512dq");
  if (cpu.avx512bw) Append(&list, "avx512bw");
  if (cpu.avx512vl) Append(&list, "avx512vl");
  if (cpu.avx512vbmi) Append(&list, "avx512vbmi");
  if (cpu.avx512vnni) Append(&list, "avx512vnni");
  return list.empty() ? "none" : list;
}

const std::vector<const Kernel*>& BuiltKernels() {
  static const std::vector<const Kernel*> kernels = {
      &packed_reference_float_scalar,
      &packed_reference_int8_scalar,
      &packed_gemv_float_portable,
      &packed_gemv_int8_portable,
      &packed_gemm_float_portable,
      &packed_gemm_int8_portable,
#if defined(OTN_HAVE_AVX2)
      &packed_gemv_float_1x4_avx2,
      &packed_gemv_int8_1x4_avx2,
      &packed_gemm_float_8x8_avx2,
      &packed_gemm_int8_8x4_avx2,
      &packed_gemm_int8_16x8_avx2,
#endif
#if defined(OTN_HAVE_AVX512BW)
      &packed_gemm_float_16x8_avx512bw,
#endif
#if defined(OTN_HAVE_AVX512VBMI)
      &packed_gemm_float_4x64_avx512vbmi,
#endif
#if defined(OTN_HAVE_AVX512VNNI)
      &packed_gemv_float_4x4_avx512vnni,
      &packed_gemm_int8_8x4_avx512vnni,
#endif
      &rsr_reference_float_scalar,
      &rsr_reference_int8_scalar,
      &rsr_gemv_float_scalar,
      &rsr_gemv_int8_scalar,
      &rsr_gemv_float_portable,
      &rsr_gemv_int8_portable,
      &rsr_gemm_float_portable,
      &rsr_gemm_int8_portable,
#if defined(OTN_HAVE_AVX2)
      &rsr_gemv_float_avx2,
      &rsr_gemv_int8_avx2,
      &rsr_gemm_float_avx2,
      &rsr_gemm_int8_avx2,
#endif
  };
  return kernels;
}

const Kernel* FindKernel(const std::string& name) {
  for (const Kernel* kernel : BuiltKernels()) {
    if (name == kernel->name) return kernel;
  }
  return nullptr;
}

const Kernel* ReferenceKernel(IndexFormat index_format, Activation activation) {
  const bool is_float = activation == Activation::float32;
  if (index_format == IndexFormat::packed) {
    return is_float ? &packed_reference_float_scalar : &packed_reference_int8_scalar;
  }
  return is_float ? &rsr_reference_float_scalar : &rsr_reference_int8_scalar;
}

RowMagnitudesFunction FindRowMagnitudes() {
#if defined(OTN_HAVE_AVX512BW)
  if (IsaSupported(Isa::avx512bw)) return row_magnitudes_avx512bw;
#endif
#if defined(OTN_HAVE_AVX2)
  if (IsaSupported(Isa::avx2)) return row_magnitudes_avx2;
#endif
  return nullptr;
}

}  // namespace onnx_ternary
