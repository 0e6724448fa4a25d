// Whether the operating system lets this process use the tiles of AMX.
#pragma once

#include "kernel.h"

namespace onnx_ternary {

// Whether kernels of an instruction set may run, asked of the system once, by the first call for
// one that needs it: a process that uses no AMX kernel never asks. Linux grants tiles to processes
// that request them; one that cannot have them (a container's filter, an older kernel, a signal
// stack too small to save them on) is served by the next kernel. Thread-safe.
bool IsaPermitted(Isa isa);

// Makes the whole process see `error` (0, EPERM, ...) as the system's answer; -1 lifts it (tests).
void ForceTilePermission(int error);

}  // namespace onnx_ternary
