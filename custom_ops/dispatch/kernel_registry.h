// Which kernels exist, which this processor supports, and which one a call uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernel.h"
#include "kernels/kernel_list.h"

namespace onnx_ternary {

const char* IsaName(Isa isa);
bool IsaSupported(Isa isa);
// "avx2, fma, f16c", as this processor reports; for messages.
std::string CpuFeatures();

// All kernels this library was built with, in a fixed order.
const std::vector<const Kernel*>& BuiltKernels();
const Kernel* FindKernel(const std::string& name);

// The kernel that follows IEEE 754 with NaN and inf and serves every layer of a format.
const Kernel* ReferenceKernel(IndexFormat index_format, Activation activation);

// The kernel for `rows` rows, from the selection table (dispatch/kernel_registry.cc) or as forced
// by ONNX_TERNARY_ISA, ONNX_TERNARY_KERNEL or ForceKernel. Null and a message in `error` where a
// forced kernel cannot run here or cannot serve the layer. `ordinary_rows` false asks for a kernel
// that is not fixed point.
const Kernel* SelectKernel(const Layer& layer, int64_t rows, bool ordinary_rows,
                           std::string* error);

// The one for this processor, or null where the compiler's own loop has to do.
RowMagnitudesFunction FindRowMagnitudes();

// Forces an ISA or a kernel by name for the whole process (tests, benchmarks); "" lifts it. False
// and a message where it does not exist or cannot run here.
bool ForceIsa(const std::string& isa, std::string* error);
bool ForceKernel(const std::string& kernel, std::string* error);

// JSON for `onnx-ternary info`: {"cpu": [...], "kernels": [{"name", "index_format", "activation",
// "isa", "supported", "max_rows", "fixed_point"}], "selection": [{"index_format", "activation",
// "rows_min", "rows_max", "storage", "kernel"}]}; storage is null where it does not matter.
std::string KernelsJson();

}  // namespace onnx_ternary
