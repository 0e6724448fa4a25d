// Kernels for `packed`, any 64-bit ARM: decode and widening multiplications. The loop, its ranges
// and layouts: common/decode_neon.h.
//
// Ranges. Two products of a field at scale 16 and code 3 are at most 2 * 48 * 128 = 12288, an
// int16.
#include "common/bits_neon.h"
#include "common/decode_neon.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace neon {
namespace {

// For blocks of 16 and 32 inputs, whose sums are lanes of an accumulator: a lane is four inputs
// side by side.
struct NeighborsOps : OneColumnOps {
  static OTN_ALWAYS_INLINE void Dot(int, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      const int16x8_t low = vmull_s8(vget_low_s8(codes[c]), vget_low_s8(q));
      acc[c] = vpadalq_s16(acc[c], vpaddq_s16(low, vmull_high_s8(codes[c], q)));
      OTN_IN_REGISTER(acc[c]);
    }
  }
};

// A lane is inputs i, i + 1, i + 8 and i + 9, with an instruction less.
struct WideningOps : OneColumnOps {
  static constexpr int64_t kInt8Rows = 4;
  static constexpr int64_t kFloatRows = 1;
  static constexpr int64_t kInt8GroupsRows = 4;
  static constexpr int64_t kFloatGroupsRows = 1;

  static bool LooksUp(const Layer*, int) { return true; }

  // Column by column at each step: four cycles from one to the next of the same column.
  static OTN_ALWAYS_INLINE void Dot(int, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    int16x8_t products[kTile];
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      products[c] = vmull_s8(vget_low_s8(codes[c]), vget_low_s8(q));
      OTN_IN_REGISTER(products[c]);
    }
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      products[c] = vmlal_high_s8(products[c], codes[c], q);
      OTN_IN_REGISTER(products[c]);
    }
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      acc[c] = vpadalq_s16(acc[c], products[c]);
      OTN_IN_REGISTER(acc[c]);
    }
  }

  template <int kDigits>
  static const ComputeFunction* Functions(bool per_group) {
    typedef WideningOps Ops;
    if constexpr (kDigits == 1) {
      static constexpr ComputeFunction kFunctions[] = {
          ComputeRows<Ops, 1, 1>, ComputeRows<Ops, 1, 2>, ComputeRows<Ops, 1, 3>,
          ComputeRows<Ops, 1, 4>};
      static constexpr ComputeFunction kGroups[] = {
          ComputeRowsGroups<Ops, 1, 1, NeighborsOps>, ComputeRowsGroups<Ops, 1, 2, NeighborsOps>,
          ComputeRowsGroups<Ops, 1, 3, NeighborsOps>, ComputeRowsGroups<Ops, 1, 4, NeighborsOps>};
      return per_group ? kGroups : kFunctions;
    } else {
      static constexpr ComputeFunction kFunctions[] = {ComputeRows<Ops, 3, 1>};
      static constexpr ComputeFunction kGroups[] = {ComputeRowsGroups<Ops, 3, 1, NeighborsOps>};
      return per_group ? kGroups : kFunctions;
    }
  }
};

}  // namespace
}  // namespace neon

extern const Kernel packed_gemm_int8_4x4_neon = {
    "packed_gemm_int8_4x4_neon",
    IndexFormat::packed,
    Activation::int8,
    Isa::neon,
    /*accepts=*/nullptr,
    /*max_rows=*/16,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    neon::GemvPreparedBytes<neon::WideningOps, 1>,
    neon::PrepareGemv<neon::WideningOps, 1>,
    neon::ScratchBytes<neon::WideningOps>,
    neon::ComputeGemv<neon::WideningOps, 1>,
};

extern const Kernel packed_gemv_float_1x4_neon = {
    "packed_gemv_float_1x4_neon",
    IndexFormat::packed,
    Activation::float32,
    Isa::neon,
    /*accepts=*/nullptr,
    /*max_rows=*/4,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/true,
    neon::GemvPreparedBytes<neon::WideningOps, 3>,
    neon::PrepareGemv<neon::WideningOps, 3>,
    neon::ScratchBytes<neon::WideningOps>,
    neon::ComputeGemv<neon::WideningOps, 3>,
};

}  // namespace onnx_ternary
