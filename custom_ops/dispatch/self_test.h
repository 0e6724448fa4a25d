// Whether a kernel computes here what it should: a processor, or its emulator, may report
// instructions that it does not run right.
#pragma once

#include "kernel.h"

namespace onnx_ternary {

// Compares the kernel with the scalar reference on a small matrix, once per process. A kernel that
// differs is reported on stderr. Thread-safe; throws std::bad_alloc.
bool PassesSelfTest(const Kernel& kernel);

}  // namespace onnx_ternary
