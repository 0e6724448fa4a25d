// Kernels for `packed`, ARM with dot products (Armv8.2 FEAT_DotProd): decode and sdot, four
// products of codes and activations added to an int32. The loop, its ranges and layouts:
// common/decode_neon.h.
#include "common/bits_neon.h"
#include "common/decode_neon.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace neon {
namespace {

// One row: codes as they lie, one register per column.
struct ColumnOps : OneColumnOps {
  static constexpr int64_t kInt8Rows = 1;
  static constexpr int64_t kFloatRows = 1;
  static constexpr int64_t kInt8GroupsRows = 1;
  static constexpr int64_t kFloatGroupsRows = 1;

  // Float rows without scales per group: decoding has 1.2 times the rate on Neoverse V1 and 0.8
  // times on N1 and V2 (llvm-mca; docs/kernels.md).
  static bool LooksUp(const Layer* layer, int digits) { return digits == 1 || PerGroup(layer); }

  static OTN_ALWAYS_INLINE void Dot(int, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    OTN_UNROLL
    for (int c = 0; c < kTile; ++c) {
      acc[c] = vdotq_s32(acc[c], codes[c], q);
      OTN_IN_REGISTER(acc[c]);
    }
  }

  template <int kDigits>
  static const ComputeFunction* Functions(bool per_group) {
    static constexpr ComputeFunction kFunctions[] = {ComputeRows<ColumnOps, kDigits, 1>};
    static constexpr ComputeFunction kGroups[] = {ComputeRowsGroups<ColumnOps, kDigits, 1>};
    return per_group ? kGroups : kFunctions;
  }
};

// Batches: a register of codes is four inputs of four columns, and multiplied by four activations
// that are one lane of a register. So a register of activations serves four products, and a lane of
// an accumulator is a column: half the loads of ColumnOps, and no additions across lanes. Codes are
// brought to that form a strip of columns at a time, still packed: (span, 2 chunks, 4 registers, 4
// columns, 4 bytes), one instruction for 16 bytes, shared by all rows of the call. A register is
// 16 inputs.
struct LaneOps {
  static constexpr int kVectorRows = 1;
  static constexpr int kRegisters = 4;
  static constexpr int64_t kRegisterBytes = 16;
  static constexpr int kAccumulators = 1;
  static constexpr int kChunks = 2;
  static constexpr int64_t kChunkBytes = 64;
  static constexpr int64_t kInt8Rows = 16;
  static constexpr int64_t kFloatRows = 4;
  static constexpr int64_t kInt8GroupsRows = 4;
  static constexpr int64_t kFloatGroupsRows = 1;

  static bool ReadsAsIs(const Layer*) { return false; }

  static void Expand(const Layer* layer, const uint8_t* tile_codes, uint8_t* expanded) {
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      uint8x16_t columns[kTile][2];
      ExpandSpan(layer, tile_codes, span, columns);
      for (int half = 0; half < 2; ++half, expanded += kChunkBytes) {
        uint32x4_t v[kTile];
        for (int c = 0; c < kTile; ++c) v[c] = vreinterpretq_u32_u8(columns[c][half]);
        const uint64x2_t even01 = vreinterpretq_u64_u32(vtrn1q_u32(v[0], v[1]));
        const uint64x2_t odd01 = vreinterpretq_u64_u32(vtrn2q_u32(v[0], v[1]));
        const uint64x2_t even23 = vreinterpretq_u64_u32(vtrn1q_u32(v[2], v[3]));
        const uint64x2_t odd23 = vreinterpretq_u64_u32(vtrn2q_u32(v[2], v[3]));
        vst1q_u8(expanded, vreinterpretq_u8_u64(vzip1q_u64(even01, even23)));
        vst1q_u8(expanded + 16, vreinterpretq_u8_u64(vzip1q_u64(odd01, odd23)));
        vst1q_u8(expanded + 32, vreinterpretq_u8_u64(vzip2q_u64(even01, even23)));
        vst1q_u8(expanded + 48, vreinterpretq_u8_u64(vzip2q_u64(odd01, odd23)));
      }
    }
  }

  // Lane by lane.
  static constexpr int kSteps = 4;
  // gcc 12 copies accumulators from register to register between intrinsics (21 of 108 instructions
  // for eight rows); an instruction of the assembler stays where it is.
  static OTN_ALWAYS_INLINE void DotLane(int lane, int32x4_t* acc, int8x16_t q,
                                        const int8x16_t* codes) {
#if defined(__GNUC__)
#define OTN_SDOT_LANE(i) \
  __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[" #i "]" : "+w"(*acc) : "w"(codes[i]), "w"(q))
#else
#define OTN_SDOT_LANE(i) *acc = vdotq_laneq_s32(*acc, codes[i], q, i)
#endif
    switch (lane) {
      case 0:
        OTN_SDOT_LANE(0);
        break;
      case 1:
        OTN_SDOT_LANE(1);
        break;
      case 2:
        OTN_SDOT_LANE(2);
        break;
      default:
        OTN_SDOT_LANE(3);
        break;
    }
#undef OTN_SDOT_LANE
  }
  static OTN_ALWAYS_INLINE void Dot(int step, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    DotLane(step, acc, q, codes);
  }

  static OTN_ALWAYS_INLINE void AddSums(const int32x4_t* acc, int32_t* sums) {
    vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), *acc));
  }

  template <int kDigits>
  static const ComputeFunction* Functions(bool per_group);
};

// One accumulator per register, because blocks may be as small as that.
struct LaneGroupOps : LaneOps {
  static constexpr int kAccumulators = 4;

  static int64_t BlockChunks(int64_t block_size) { return block_size == kSpan ? 2 : 1; }
  static int64_t ChunkBlocks(int64_t block_size) {
    return block_size == kSpan ? 1 : 64 / block_size;
  }

  static OTN_ALWAYS_INLINE void Dot(int step, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    DotLane(step, acc + step, q, codes);
  }

  static OTN_ALWAYS_INLINE void AddBlocks(int64_t num_blocks, const int32x4_t* acc,
                                          const int32_t* unit_sums, int64_t, const float* scales,
                                          Wide* total) {
    const auto add = [&](int block, int32x4_t sum) {
      AddUnit(total, sum, unit_sums[block], WidenF32(vld1q_f32(scales + block * kTile)));
    };
    if (num_blocks == 4) {
      for (int block = 0; block < 4; ++block) add(block, acc[block]);
      return;
    }
    const int32x4_t low = vaddq_s32(acc[0], acc[1]), high = vaddq_s32(acc[2], acc[3]);
    if (num_blocks == 2) {
      add(0, low);
      add(1, high);
      return;
    }
    add(0, vaddq_s32(low, high));
  }
};

template <int kDigits>
const ComputeFunction* LaneOps::Functions(bool per_group) {
  if constexpr (kDigits == 1) {
    static constexpr ComputeFunction kFunctions[] = {
        ComputeRows<LaneOps, 1, 1>,  ComputeRows<LaneOps, 1, 2>,  ComputeRows<LaneOps, 1, 3>,
        ComputeRows<LaneOps, 1, 4>,  ComputeRows<LaneOps, 1, 5>,  ComputeRows<LaneOps, 1, 6>,
        ComputeRows<LaneOps, 1, 7>,  ComputeRows<LaneOps, 1, 8>,  ComputeRows<LaneOps, 1, 9>,
        ComputeRows<LaneOps, 1, 10>, ComputeRows<LaneOps, 1, 11>, ComputeRows<LaneOps, 1, 12>,
        ComputeRows<LaneOps, 1, 13>, ComputeRows<LaneOps, 1, 14>, ComputeRows<LaneOps, 1, 15>,
        ComputeRows<LaneOps, 1, 16>};
    static constexpr ComputeFunction kGroups[] = {
        ComputeRowsGroups<LaneGroupOps, 1, 1>, ComputeRowsGroups<LaneGroupOps, 1, 2>,
        ComputeRowsGroups<LaneGroupOps, 1, 3>, ComputeRowsGroups<LaneGroupOps, 1, 4>};
    return per_group ? kGroups : kFunctions;
  } else {
    static constexpr ComputeFunction kFunctions[] = {
        ComputeRows<LaneOps, 3, 1>, ComputeRows<LaneOps, 3, 2>, ComputeRows<LaneOps, 3, 3>,
        ComputeRows<LaneOps, 3, 4>};
    static constexpr ComputeFunction kGroups[] = {ComputeRowsGroups<LaneGroupOps, 3, 1>};
    return per_group ? kGroups : kFunctions;
  }
}

}  // namespace
}  // namespace neon

extern const Kernel packed_gemv_float_1x4_neon_dotprod = {
    "packed_gemv_float_1x4_neon_dotprod",
    IndexFormat::packed,
    Activation::float32,
    Isa::neon_dotprod,
    /*accepts=*/nullptr,
    /*max_rows=*/2,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/true,
    neon::GemvPreparedBytes<neon::ColumnOps, 3>,
    neon::PrepareGemv<neon::ColumnOps, 3>,
    neon::ScratchBytes<neon::ColumnOps>,
    neon::ComputeGemv<neon::ColumnOps, 3>,
};

extern const Kernel packed_gemv_int8_1x4_neon_dotprod = {
    "packed_gemv_int8_1x4_neon_dotprod",
    IndexFormat::packed,
    Activation::int8,
    Isa::neon_dotprod,
    /*accepts=*/nullptr,
    /*max_rows=*/2,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    neon::GemvPreparedBytes<neon::ColumnOps, 1>,
    neon::PrepareGemv<neon::ColumnOps, 1>,
    neon::ScratchBytes<neon::ColumnOps>,
    neon::ComputeGemv<neon::ColumnOps, 1>,
};

extern const Kernel packed_gemm_float_4x4_neon_dotprod = {
    "packed_gemm_float_4x4_neon_dotprod",
    IndexFormat::packed,
    Activation::float32,
    Isa::neon_dotprod,
    /*accepts=*/nullptr,
    /*max_rows=*/64,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/true,
    neon::PreparedBytes<neon::LaneOps, 3>,
    neon::Prepare<neon::LaneOps, 3>,
    neon::ScratchBytes<neon::LaneOps>,
    neon::Compute<neon::LaneOps, 3>,
};

extern const Kernel packed_gemm_int8_16x4_neon_dotprod = {
    "packed_gemm_int8_16x4_neon_dotprod",
    IndexFormat::packed,
    Activation::int8,
    Isa::neon_dotprod,
    /*accepts=*/nullptr,
    /*max_rows=*/64,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    neon::PreparedBytes<neon::LaneOps, 1>,
    neon::Prepare<neon::LaneOps, 1>,
    neon::ScratchBytes<neon::LaneOps>,
    neon::Compute<neon::LaneOps, 1>,
};

}  // namespace onnx_ternary
