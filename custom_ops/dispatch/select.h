// Which kernel a call uses: the selection table, or what is forced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "kernel.h"

namespace onnx_ternary {

constexpr int64_t kAnyRows = std::numeric_limits<int64_t>::max();

// bits: storage 1bit in blocks of 128, which some kernels read as it is.
// groups: scales for groups of inputs, which cost kernels that decode more than those that look up.
enum class Layers : uint8_t { all, bits, groups };

// The first row of the table that fits the layer, the number of rows and the processor is used, so
// the best come first, and a kernel that does not accept a layer, or fails its self-test here,
// leaves it to the next. Crossovers: docs/kernels.md.
struct SelectionRow {
  const Kernel* kernel;  // null where the library is built without its instruction set
  int64_t rows_min;
  int64_t rows_max;
  Layers layers = Layers::all;
};

struct SelectionTable {
  const SelectionRow* rows;
  size_t count;
};
SelectionTable Selection();

// Whether the kernel can serve the layer, here or elsewhere.
bool Accepts(const Kernel& kernel, const Layer& layer);

// The kernel for `rows` rows, from the selection table or as forced by ONNX_TERNARY_ISA,
// ONNX_TERNARY_KERNEL or ForceKernel. Null and a message in `error` where a forced kernel cannot
// run here or cannot serve the layer. `ordinary_rows` false asks for a kernel that is not fixed
// point.
const Kernel* SelectKernel(const Layer& layer, int64_t rows, bool ordinary_rows,
                           std::string* error);

// Forces an ISA or a kernel by name for the whole process (tests, benchmarks); "" lifts it. False
// and a message where it does not exist or cannot run here.
bool ForceIsa(const std::string& isa, std::string* error);
bool ForceKernel(const std::string& kernel, std::string* error);

}  // namespace onnx_ternary
