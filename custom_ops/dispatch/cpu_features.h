// What the processor the process runs on can do, asked once.
#pragma once

#include <string>

namespace onnx_ternary {

struct CpuFeatureSet {
  bool avx2 = false;  // and the operating system saves the upper halves of the registers
  bool fma = false;
  bool bmi2 = false;
  bool f16c = false;
  bool avx512f = false;  // and the operating system saves zmm and mask registers
  bool avx512dq = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512vbmi = false;
  bool avx512vnni = false;
};

// Thread-safe; the first call asks the processor.
const CpuFeatureSet& CpuFeatureFlags();

}  // namespace onnx_ternary
