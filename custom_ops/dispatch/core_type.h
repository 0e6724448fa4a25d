// Which design the processor's cores are of, where measurements say that an instruction set they
// have is not worth using.
#pragma once

#include <cstdint>

#include "kernel.h"

namespace onnx_ternary {

// 0 where the system does not tell.
struct CoreIds {
  uint32_t midr = 0;          // MIDR_EL1, Arm's main identification register (Linux, Windows)
  uint32_t apple_family = 0;  // hw.cpufamily (macOS)
};

// The name of a core whose matrix products (i8mm) were measured to be slower than its dot products,
// null for any other.
const char* CoreWithSlowI8mm(const CoreIds& ids);

// Of the processor, asked once, or as forced.
CoreIds ProcessorCore();

// Whether the selection leaves out an instruction set the processor has. One that is forced, or
// whose kernel is, runs nevertheless.
bool PassedOver(Isa isa);

// Makes the whole process choose as on another core (tests); zeros lift it.
void ForceCore(const CoreIds& ids);

}  // namespace onnx_ternary
