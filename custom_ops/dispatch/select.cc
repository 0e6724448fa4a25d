// The selection by rows, as data.
#include "dispatch/select.h"

#include <atomic>
#include <cstdlib>

#include "dispatch/built.h"
#include "dispatch/core_type.h"
#include "dispatch/kernel_registry.h"
#include "dispatch/self_test.h"
#include "dispatch/tile_permission.h"

namespace onnx_ternary {
namespace {

constexpr SelectionRow kSelection[] = {
    {built::packed_gemm_float_10x32_amx, 3, kAnyRows},
    {built::packed_gemm_int8_32x32_amx, 8, kAnyRows},
    {built::packed_gemm_float_4x64_avx512vbmi, 1, kAnyRows, Layers::bits},
    {built::packed_gemm_float_4x64_avx512vbmi, 3, kAnyRows},
    {built::packed_gemv_float_4x4_avx512vnni, 1, 8},
    {built::packed_gemm_int8_8x4_avx512vnni, 1, kAnyRows},
    {built::packed_gemm_float_16x8_avx512bw, 9, kAnyRows},
    {built::packed_gemv_float_1x4_avx2, 1, 1, Layers::bits},
    {built::packed_gemv_float_2x2_avxvnni, 1, 3},
    {built::packed_gemv_int8_1x4_avx2, 1, 1, Layers::bits},
    {built::packed_gemm_int8_6x2_avxvnni, 1, 9},
    {built::packed_gemv_float_1x4_avx2, 1, 2},
    {built::packed_gemm_float_8x8_avx2, 1, kAnyRows},
    {built::packed_gemv_int8_1x4_avx2, 1, 1},
    {built::packed_gemm_int8_16x8_avx2, 9, kAnyRows, Layers::groups},
    {built::packed_gemm_int8_8x4_avx2, 2, 9},
    {built::packed_gemm_int8_16x8_avx2, 10, kAnyRows},
    {built::packed_gemm_float_8x4_neon_i8mm, 2, kAnyRows},
    {built::packed_gemm_int8_16x4_neon_i8mm, 2, kAnyRows},
    {built::packed_gemm_float_8x4_neon, 4, kAnyRows},
    {built::packed_gemv_float_1x4_neon_dotprod, 1, 1},
    {built::packed_gemm_float_4x4_neon_dotprod, 2, kAnyRows},
    {built::packed_gemv_int8_1x4_neon_dotprod, 1, 1},
    {built::packed_gemm_int8_16x4_neon_dotprod, 2, kAnyRows},
    {built::packed_gemv_float_1x4_neon, 1, 1},
    {built::packed_gemm_float_8x4_neon, 1, kAnyRows},
    {built::packed_gemm_int8_4x4_neon, 1, 4},
    {built::packed_gemm_int8_16x4_neon, 1, kAnyRows},
    {built::packed_gemv_float_portable, 1, 4},
    {built::packed_gemm_float_portable, 5, kAnyRows},
    {built::packed_gemv_int8_portable, 1, 4},
    {built::packed_gemm_int8_portable, 5, kAnyRows},
    {built::packed_reference_float_scalar, 1, kAnyRows},
    {built::packed_reference_int8_scalar, 1, kAnyRows},
    {built::rsr_gemv_float_avx2, 1, 2},
    {built::rsr_gemm_float_avx2, 3, kAnyRows},
    {built::rsr_gemv_int8_avx2, 1, 3},
    {built::rsr_gemm_int8_avx2, 4, kAnyRows},
    {built::rsr_gemv_float_portable, 1, 2},
    {built::rsr_gemm_float_portable, 3, kAnyRows},
    {built::rsr_gemv_int8_portable, 1, 2},
    {built::rsr_gemm_int8_portable, 3, kAnyRows},
    {built::rsr_gemv_float_scalar, 1, kAnyRows},
    {built::rsr_gemv_int8_scalar, 1, kAnyRows},
};

std::string MissingFeatures(const std::string& what, Isa isa) {
  return what + " needs " + EntryOf(isa).needs + "; this CPU has: " + CpuFeatures() +
         ". Available: " + AvailableIsas() + ".";
}

std::string NotPermitted(const std::string& what) {
  return what +
         " needs the tiles of AMX, which the operating system does not let this process use. "
         "Available: " +
         AvailableIsas() + ".";
}

bool CheckIsa(const std::string& name, const IsaEntry** entry, std::string* error) {
  *entry = FindIsa(name);
  if (*entry == nullptr) {
    *error = "unknown instruction set '" + name + "'. Available: " + AvailableIsas() + ".";
    return false;
  }
  if (!(*entry)->built) {
    *error = "instruction set '" + name +
             "' is not in this library, which was built with: " + BuiltIsas() + ".";
    return false;
  }
  if (!IsaSupported((*entry)->isa)) {
    *error = MissingFeatures("instruction set '" + name + "'", (*entry)->isa);
    return false;
  }
  if (!IsaPermitted((*entry)->isa)) {
    *error = NotPermitted("instruction set '" + name + "'");
    return false;
  }
  return true;
}

bool CheckKernel(const std::string& name, const Kernel** kernel, std::string* error) {
  *kernel = FindKernel(name);
  if (*kernel == nullptr) {
    *error = "unknown kernel '" + name + "'. Available: " + RunnableKernels() + ".";
    return false;
  }
  if (!IsaSupported((*kernel)->isa)) {
    *error = MissingFeatures("kernel '" + name + "'", (*kernel)->isa);
    return false;
  }
  if (!IsaPermitted((*kernel)->isa)) {
    *error = NotPermitted("kernel '" + name + "'");
    return false;
  }
  return true;
}

// What the environment asks for, read once; its errors are reported by every selection.
struct Environment {
  const IsaEntry* isa = nullptr;
  const Kernel* kernel = nullptr;
  std::string error;

  Environment() {
    if (const char* name = std::getenv("ONNX_TERNARY_ISA"); name && *name) {
      if (!CheckIsa(name, &isa, &error)) {
        error = "ONNX_TERNARY_ISA: " + error;
        return;
      }
    }
    if (const char* name = std::getenv("ONNX_TERNARY_KERNEL"); name && *name) {
      if (!CheckKernel(name, &kernel, &error)) error = "ONNX_TERNARY_KERNEL: " + error;
    }
  }
};

const Environment& FromEnvironment() {
  static const Environment environment;
  return environment;
}

// Forced by a call, which comes before the environment; null where nothing is.
std::atomic<const IsaEntry*> g_forced_isa{nullptr};
std::atomic<const Kernel*> g_forced_kernel{nullptr};

bool IsFor(Layers layers, const Layer& layer) {
  if (layers == Layers::bits) {
    return layer.storage == Storage::one_bit && layer.block_size == 128;
  }
  return layers == Layers::all || layer.scale_kind == ScaleKind::per_group;
}

// Where a forced instruction set has no kernel for a layer, portable and scalar kernels serve it;
// scalar itself stands alone.
bool IsaAllowed(Isa isa, const IsaEntry* forced) {
  if (!IsaSupported(isa)) return false;
  if (forced == nullptr) return !PassedOver(isa);
  if (isa == forced->isa) return true;
  if (forced->isa == Isa::scalar) return false;
  return isa == Isa::scalar || isa == Isa::portable;
}

}  // namespace

SelectionTable Selection() { return {kSelection, sizeof kSelection / sizeof kSelection[0]}; }

bool Accepts(const Kernel& kernel, const Layer& layer) {
  if (kernel.reads_block_scales && layer.scale_kind == ScaleKind::per_group &&
      layer.block_scales == nullptr) {
    return false;
  }
  return kernel.index_format == layer.index_format && kernel.activation == layer.activation &&
         (kernel.accepts == nullptr || kernel.accepts(&layer));
}

const Kernel* SelectKernel(const Layer& layer, int64_t rows, bool ordinary_rows,
                           std::string* error) {
  const Environment& environment = FromEnvironment();
  const Kernel* forced_kernel = g_forced_kernel.load(std::memory_order_acquire);
  const IsaEntry* forced_isa = g_forced_isa.load(std::memory_order_acquire);
  if (forced_kernel == nullptr && forced_isa == nullptr) {
    if (!environment.error.empty()) {
      *error = environment.error;
      return nullptr;
    }
    forced_kernel = environment.kernel;
    forced_isa = environment.isa;
  }
  if (forced_kernel != nullptr) {
    if (Accepts(*forced_kernel, layer)) return forced_kernel;
    *error = std::string("the forced kernel '") + forced_kernel->name +
             "' cannot serve this node (index_format " + FormatName(layer.index_format) +
             ", activation " + ActivationName(layer.activation) + ", block_size " +
             std::to_string(layer.block_size) + "). Lift ONNX_TERNARY_KERNEL or name another one.";
    return nullptr;
  }
  for (const SelectionRow& row : kSelection) {
    if (row.kernel == nullptr) continue;
    if (rows < row.rows_min || rows > row.rows_max) continue;
    if (row.kernel->fixed_point && !ordinary_rows) continue;
    if (!IsFor(row.layers, layer)) continue;
    if (!IsaAllowed(row.kernel->isa, forced_isa) || !Accepts(*row.kernel, layer)) continue;
    if (!IsaPermitted(row.kernel->isa)) continue;
    if (PassesSelfTest(*row.kernel)) return row.kernel;
  }
  *error = std::string("no kernel serves index_format ") + FormatName(layer.index_format) +
           ", activation " + ActivationName(layer.activation) + ", block_size " +
           std::to_string(layer.block_size) + ". Available: " + RunnableKernels() + ".";
  return nullptr;
}

bool ForceIsa(const std::string& isa, std::string* error) {
  const IsaEntry* entry = nullptr;
  if (!isa.empty() && !CheckIsa(isa, &entry, error)) return false;
  g_forced_isa.store(entry, std::memory_order_release);
  return true;
}

bool ForceKernel(const std::string& kernel, std::string* error) {
  const Kernel* found = nullptr;
  if (!kernel.empty() && !CheckKernel(kernel, &found, error)) return false;
  g_forced_kernel.store(found, std::memory_order_release);
  return true;
}

}  // namespace onnx_ternary
