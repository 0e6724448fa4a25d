// The instruction sets and kernels of this library, and what this processor supports of them.
#include "dispatch/kernel_registry.h"

#include <algorithm>

#include "dispatch/built.h"
#include "dispatch/cpu_features.h"

namespace onnx_ternary {
namespace {

constexpr IsaEntry kIsas[] = {
#define OTN_ISA(name, architecture, needs, detected, flags, msvc_flags) \
  {Isa::name, #name, needs, OTN_IF_BUILT(name, true, false)},
#include "dispatch/instruction_sets.inc"
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
#if defined(OTN_EMULATE)
  // CMakeLists.txt compiles their kernels for AVX2 (ONNX_TERNARY_EMULATE).
  if (isa == Isa::avxvnni || isa == Isa::amx_int8) return IsaSupported(Isa::avx2);
#endif
  const CpuFeatureSet& cpu = CpuFeatureFlags();
  switch (isa) {
#define OTN_ISA(name, architecture, needs, detected, flags, msvc_flags) \
  case Isa::name:                                                       \
    return detected;
#include "dispatch/instruction_sets.inc"
  }
  return false;
}

std::string CpuFeatures() {
  const CpuFeatureSet& cpu = CpuFeatureFlags();
  std::string list;
#define OTN_CPU_FEATURE(name, architecture, test) \
  if (cpu.name) Append(&list, #name);
#include "dispatch/instruction_sets.inc"
  return list.empty() ? "none" : list;
}

const std::vector<const Kernel*>& BuiltKernels() {
  static const std::vector<const Kernel*> kernels = [] {
    std::vector<const Kernel*> list;
    for (const Kernel* kernel : {
#define OTN_KERNEL(isa, family, name) built::name,
#include "kernels/kernel_list.inc"
         }) {
      if (kernel != nullptr) list.push_back(kernel);
    }
    return list;
  }();
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

bool BlockScalesAreRead() {
  const std::vector<const Kernel*>& kernels = BuiltKernels();
  return std::any_of(kernels.begin(), kernels.end(), [](const Kernel* kernel) {
    return kernel->reads_block_scales && IsaSupported(kernel->isa);
  });
}

RowMagnitudesFunction FindRowMagnitudes() {
#define OTN_ROW_MAGNITUDES(isa)                         \
  if (OTN_IF_BUILT(isa, IsaSupported(Isa::isa), false)) \
    return OTN_IF_BUILT(isa, row_magnitudes_##isa, nullptr);
#include "kernels/kernel_list.inc"
  return nullptr;
}

}  // namespace onnx_ternary
