// Which instruction sets and kernels exist, and which of them this processor supports.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"
#include "kernels/kernel_list.h"

namespace onnx_ternary {

struct IsaEntry {
  Isa isa;
  const char* name;
  const char* needs;  // for messages
  bool built;
};

const IsaEntry* FindIsa(const std::string& name);
const IsaEntry& EntryOf(Isa isa);
const char* IsaName(Isa isa);
bool IsaSupported(Isa isa);
// "avx2, fma, f16c", as this processor reports; for messages.
std::string CpuFeatures();

// Lists of names for messages, with commas between.
std::string AvailableIsas();
std::string BuiltIsas();
std::string RunnableKernels();

// "packed" or "rsr", "float" or "int8".
const char* FormatName(IndexFormat index_format);
const char* ActivationName(Activation activation);

// All kernels this library was built with, in a fixed order.
const std::vector<const Kernel*>& BuiltKernels();
const Kernel* FindKernel(const std::string& name);

// The kernel that follows IEEE 754 with NaN and inf and serves every layer of a format.
const Kernel* ReferenceKernel(IndexFormat index_format, Activation activation);

// Whether a kernel that this processor supports reads Layer::block_scales.
bool BlockScalesAreRead();

// The function for this processor, or null where rows.cc has to do with its own loop.
RowMagnitudesFunction FindRowMagnitudes();

}  // namespace onnx_ternary
