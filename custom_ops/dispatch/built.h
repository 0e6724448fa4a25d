// What this library is built with: CMakeLists.txt defines OTN_BUILT_<isa> as 1 or 0 for every row
// of instruction_sets.inc.
#pragma once

#include "kernels/kernel_list.h"

// `yes` where the library is built with isa, `no` elsewhere.
#define OTN_IF_BUILT(isa, yes, no) OTN_IF(OTN_BUILT_##isa, yes, no)
#define OTN_IF(condition, yes, no) OTN_IF_(condition, yes, no)
#define OTN_IF_(condition, yes, no) OTN_IF_##condition(yes, no)
#define OTN_IF_1(yes, no) yes
#define OTN_IF_0(yes, no) no

namespace onnx_ternary {
namespace built {

// Each kernel by its name; null where the library is built without its instruction set.
#define OTN_KERNEL(isa, family, name) \
  inline constexpr const Kernel* name = OTN_IF_BUILT(isa, &onnx_ternary::name, nullptr);
#include "kernels/kernel_list.inc"

}  // namespace built
}  // namespace onnx_ternary
