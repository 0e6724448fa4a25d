// What the processor the process runs on can do, asked once.
#pragma once

namespace onnx_ternary {

// A feature of vector registers includes that the operating system saves those registers.
struct CpuFeatureSet {
#define OTN_CPU_FEATURE(name, architecture, test) bool name = false;
#include "dispatch/instruction_sets.inc"
};

// Thread-safe; the first call asks the processor.
const CpuFeatureSet& CpuFeatureFlags();

}  // namespace onnx_ternary
