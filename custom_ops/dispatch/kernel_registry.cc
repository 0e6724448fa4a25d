// The table of kernels, what this processor supports, and the selection by rows, all as data.
#include "dispatch/kernel_registry.h"

#include <atomic>
#include <cstdlib>
#include <limits>

#include "dispatch/cpu_features.h"
#include "kernels/kernel_list.h"

namespace onnx_ternary {
namespace {

struct IsaEntry {
  Isa isa;
  const char* name;
  const char* needs;  // for messages
  bool built;
};

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

constexpr int64_t kAnyRows = std::numeric_limits<int64_t>::max();

// bits: storage 1bit in blocks of 128, which some kernels read as it is.
enum class Layers : uint8_t { all, bits };

// The first row of the table that fits the layer, the number of rows and the processor is used, so
// the best come first, and a kernel that does not accept a layer leaves it to the next. Crossovers:
// docs/kernels.md.
struct SelectionRow {
  IndexFormat index_format;
  Activation activation;
  Isa isa;
  int64_t rows_min;
  int64_t rows_max;
  const Kernel* kernel;
  Layers layers = Layers::all;
};

constexpr SelectionRow kSelection[] = {
#if defined(OTN_HAVE_AVX512VBMI)
    {IndexFormat::packed, Activation::float32, Isa::avx512vbmi, 1, kAnyRows,
     &packed_gemm_float_4x64_avx512vbmi, Layers::bits},
    {IndexFormat::packed, Activation::float32, Isa::avx512vbmi, 3, kAnyRows,
     &packed_gemm_float_4x64_avx512vbmi},
#endif
#if defined(OTN_HAVE_AVX512VNNI)
    {IndexFormat::packed, Activation::float32, Isa::avx512vnni, 1, 8,
     &packed_gemv_float_4x4_avx512vnni},
    {IndexFormat::packed, Activation::int8, Isa::avx512vnni, 1, kAnyRows,
     &packed_gemm_int8_8x4_avx512vnni},
#endif
#if defined(OTN_HAVE_AVX512BW)
    {IndexFormat::packed, Activation::float32, Isa::avx512bw, 9, kAnyRows,
     &packed_gemm_float_16x8_avx512bw},
#endif
#if defined(OTN_HAVE_AVX2)
    {IndexFormat::packed, Activation::float32, Isa::avx2, 1, 2, &packed_gemv_float_1x4_avx2},
    {IndexFormat::packed, Activation::float32, Isa::avx2, 1, kAnyRows, &packed_gemm_float_8x8_avx2},
    {IndexFormat::packed, Activation::int8, Isa::avx2, 1, 1, &packed_gemv_int8_1x4_avx2},
    {IndexFormat::packed, Activation::int8, Isa::avx2, 2, 9, &packed_gemm_int8_8x4_avx2},
    {IndexFormat::packed, Activation::int8, Isa::avx2, 10, kAnyRows, &packed_gemm_int8_16x8_avx2},
#endif
    {IndexFormat::packed, Activation::float32, Isa::portable, 1, 4, &packed_gemv_float_portable},
    {IndexFormat::packed, Activation::float32, Isa::portable, 5, kAnyRows,
     &packed_gemm_float_portable},
    {IndexFormat::packed, Activation::int8, Isa::portable, 1, 4, &packed_gemv_int8_portable},
    {IndexFormat::packed, Activation::int8, Isa::portable, 5, kAnyRows, &packed_gemm_int8_portable},
    {IndexFormat::packed, Activation::float32, Isa::scalar, 1, kAnyRows,
     &packed_reference_float_scalar},
    {IndexFormat::packed, Activation::int8, Isa::scalar, 1, kAnyRows,
     &packed_reference_int8_scalar},
#if defined(OTN_HAVE_AVX2)
    {IndexFormat::rsr, Activation::float32, Isa::avx2, 1, 2, &rsr_gemv_float_avx2},
    {IndexFormat::rsr, Activation::float32, Isa::avx2, 3, kAnyRows, &rsr_gemm_float_avx2},
    {IndexFormat::rsr, Activation::int8, Isa::avx2, 1, 3, &rsr_gemv_int8_avx2},
    {IndexFormat::rsr, Activation::int8, Isa::avx2, 4, kAnyRows, &rsr_gemm_int8_avx2},
#endif
    {IndexFormat::rsr, Activation::float32, Isa::portable, 1, 2, &rsr_gemv_float_portable},
    {IndexFormat::rsr, Activation::float32, Isa::portable, 3, kAnyRows, &rsr_gemm_float_portable},
    {IndexFormat::rsr, Activation::int8, Isa::portable, 1, 2, &rsr_gemv_int8_portable},
    {IndexFormat::rsr, Activation::int8, Isa::portable, 3, kAnyRows, &rsr_gemm_int8_portable},
    {IndexFormat::rsr, Activation::float32, Isa::scalar, 1, kAnyRows, &rsr_gemv_float_scalar},
    {IndexFormat::rsr, Activation::int8, Isa::scalar, 1, kAnyRows, &rsr_gemv_int8_scalar},
};

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

void Append(std::string* list, const std::string& item) {
  if (!list->empty()) *list += ", ";
  *list += item;
}

std::string Quoted(const std::string& text) { return "\"" + text + "\""; }

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

std::string MissingFeatures(const std::string& what, Isa isa) {
  return what + " needs " + EntryOf(isa).needs + "; this CPU has: " + CpuFeatures() +
         ". Available: " + AvailableIsas() + ".";
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

bool IsBits(const Layer& layer) {
  return layer.storage == Storage::one_bit && layer.block_size == 128;
}

// A forced instruction set may lean on the ones any processor has for what it has no kernel for;
// scalar stands alone.
bool IsaAllowed(Isa isa, const IsaEntry* forced) {
  if (!IsaSupported(isa)) return false;
  if (forced == nullptr || isa == forced->isa) return true;
  if (forced->isa == Isa::scalar) return false;
  return isa == Isa::scalar || isa == Isa::portable;
}

const char* FormatName(IndexFormat index_format) {
  return index_format == IndexFormat::packed ? "packed" : "rsr";
}

const char* ActivationName(Activation activation) {
  return activation == Activation::float32 ? "float" : "int8";
}

bool Accepts(const Kernel& kernel, const Layer& layer) {
  return kernel.index_format == layer.index_format && kernel.activation == layer.activation &&
         kernel.accepts(&layer);
}

}  // namespace

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
    if (rows < row.rows_min || rows > row.rows_max) continue;
    if (row.kernel->fixed_point && !ordinary_rows) continue;
    if (row.layers == Layers::bits && !IsBits(layer)) continue;
    if (IsaAllowed(row.isa, forced_isa) && Accepts(*row.kernel, layer)) return row.kernel;
  }
  *error = std::string("no kernel serves index_format ") + FormatName(layer.index_format) +
           ", activation " + ActivationName(layer.activation) + ", block_size " +
           std::to_string(layer.block_size) + ". Available: " + RunnableKernels() + ".";
  return nullptr;
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

std::string KernelsJson() {
  std::string features;
  const std::string cpu = CpuFeatures();
  for (size_t begin = 0; cpu != "none" && begin < cpu.size();) {
    const size_t comma = cpu.find(", ", begin);
    const size_t end = comma == std::string::npos ? cpu.size() : comma;
    Append(&features, Quoted(cpu.substr(begin, end - begin)));
    begin = end + 2;
  }
  std::string kernels;
  for (const Kernel* kernel : BuiltKernels()) {
    Append(&kernels, "{\"name\": " + Quoted(kernel->name) +
                         ", \"index_format\": " + Quoted(FormatName(kernel->index_format)) +
                         ", \"activation\": " + Quoted(ActivationName(kernel->activation)) +
                         ", \"isa\": " + Quoted(IsaName(kernel->isa)) +
                         ", \"supported\": " + (IsaSupported(kernel->isa) ? "true" : "false") +
                         ", \"max_rows\": " + std::to_string(kernel->max_rows) +
                         ", \"fixed_point\": " + (kernel->fixed_point ? "true" : "false") + "}");
  }
  std::string selection;
  for (const SelectionRow& row : kSelection) {
    if (!IsaSupported(row.isa)) continue;
    Append(&selection,
           std::string("{\"index_format\": ") + Quoted(FormatName(row.index_format)) +
               ", \"activation\": " + Quoted(ActivationName(row.activation)) +
               ", \"rows_min\": " + std::to_string(row.rows_min) + ", \"rows_max\": " +
               (row.rows_max == kAnyRows ? "null" : std::to_string(row.rows_max)) +
               ", \"storage\": " + (row.layers == Layers::bits ? Quoted("1bit") : "null") +
               ", \"kernel\": " + Quoted(row.kernel->name) + "}");
  }
  return "{\"cpu\": [" + features + "], \"kernels\": [" + kernels + "], \"selection\": [" +
         selection + "]}";
}

}  // namespace onnx_ternary
