// Kernels for `packed`, ARM with int8 matrix products (FEAT_I8MM): decode and smmla, 2 rows by 2
// columns of 8 products each. The loop, its ranges and layouts: common/decode_neon.h.
//
// A register is 8 inputs of two columns, or of two rows. Codes are brought to that form a strip of
// columns at a time, still packed: (span, 2 pairs of columns, 4 chunks, 2 columns, 8 bytes), one
// instruction for 16 bytes, shared by all rows of the call. A chunk is 32 inputs, so scales per
// group need blocks of 32 at least.
#include "common/decode_neon.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace neon {
namespace {

struct MatrixOps {
  static constexpr int kVectorRows = 2;
  static constexpr int kRegisters = 2;
  static constexpr int64_t kRegisterBytes = 64;
  static constexpr int kAccumulators = 2;
  static constexpr int kChunks = 4;
  static constexpr int64_t kChunkBytes = 16;
  static constexpr int kSteps = 1;
  static constexpr int64_t kInt8Rows = 16;
  static constexpr int64_t kFloatRows = 8;
  static constexpr int64_t kInt8GroupsRows = 8;
  static constexpr int64_t kFloatGroupsRows = 4;

  static bool ReadsAsIs(const Layer*) { return false; }

  static void Expand(const Layer* layer, const uint8_t* tile_codes, uint8_t* expanded) {
    for (int64_t span = 0; span < NumSpans(layer); ++span, expanded += kTileSpanBytes) {
      uint8x16_t columns[kTile][2];
      ExpandSpan(layer, tile_codes, span, columns);
      for (int pair = 0; pair < 2; ++pair) {
        for (int half = 0; half < 2; ++half) {
          const uint64x2_t a = vreinterpretq_u64_u8(columns[2 * pair][half]);
          const uint64x2_t b = vreinterpretq_u64_u8(columns[2 * pair + 1][half]);
          uint8_t* out = expanded + pair * kRegisterBytes + half * 32;
          vst1q_u8(out, vreinterpretq_u8_u64(vzip1q_u64(a, b)));
          vst1q_u8(out + 16, vreinterpretq_u8_u64(vzip2q_u64(a, b)));
        }
      }
    }
  }

  static int64_t BlockChunks(int64_t block_size) { return block_size / 32; }
  static int64_t ChunkBlocks(int64_t) { return 1; }

  // acc: row 0 by columns 0 and 1, row 1 by columns 0 and 1; the same for columns 2 and 3.
  // In the assembler, because gcc 12 copies accumulators between intrinsics, see DotLane of
  // packed_decode_neon_dotprod.cc.
  static OTN_ALWAYS_INLINE void Dot(int, int32x4_t* acc, int8x16_t q, const int8x16_t* codes) {
    OTN_UNROLL
    for (int i = 0; i < kAccumulators; ++i) {
#if defined(__GNUC__)
      __asm__ volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc[i]) : "w"(q), "w"(codes[i]));
#else
      acc[i] = vmmlaq_s32(acc[i], q, codes[i]);
#endif
    }
  }

  static OTN_ALWAYS_INLINE int32x4_t Row(const int32x4_t* acc, int row) {
    const int64x2_t a = vreinterpretq_s64_s32(acc[0]), b = vreinterpretq_s64_s32(acc[1]);
    return vreinterpretq_s32_s64(row == 0 ? vzip1q_s64(a, b) : vzip2q_s64(a, b));
  }

  static OTN_ALWAYS_INLINE void AddSums(const int32x4_t* acc, int32_t* sums) {
    for (int row = 0; row < kVectorRows; ++row, sums += kTile) {
      vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), Row(acc, row)));
    }
  }

  static OTN_ALWAYS_INLINE void AddBlocks(int64_t, const int32x4_t* acc, const int32_t* unit_sums,
                                          int64_t num_sums, const float* scales, Wide* totals) {
    const Wide scale = WidenF32(vld1q_f32(scales));
    AddUnit(totals, Row(acc, 0), unit_sums[0], scale);
    AddUnit(totals + 1, Row(acc, 1), unit_sums[num_sums], scale);
  }

  template <int kDigits>
  static const ComputeFunction* Functions(bool per_group) {
    typedef MatrixOps Ops;
    if constexpr (kDigits == 1) {
      static constexpr ComputeFunction kFunctions[] = {
          ComputeRows<Ops, 1, 2>,  ComputeRows<Ops, 1, 4>,  ComputeRows<Ops, 1, 6>,
          ComputeRows<Ops, 1, 8>,  ComputeRows<Ops, 1, 10>, ComputeRows<Ops, 1, 12>,
          ComputeRows<Ops, 1, 14>, ComputeRows<Ops, 1, 16>};
      static constexpr ComputeFunction kGroups[] = {
          ComputeRowsGroups<Ops, 1, 2>, ComputeRowsGroups<Ops, 1, 4>, ComputeRowsGroups<Ops, 1, 6>,
          ComputeRowsGroups<Ops, 1, 8>};
      return per_group ? kGroups : kFunctions;
    } else {
      static constexpr ComputeFunction kFunctions[] = {
          ComputeRows<Ops, 3, 2>, ComputeRows<Ops, 3, 4>, ComputeRows<Ops, 3, 6>,
          ComputeRows<Ops, 3, 8>};
      static constexpr ComputeFunction kGroups[] = {ComputeRowsGroups<Ops, 3, 2>,
                                                    ComputeRowsGroups<Ops, 3, 4>};
      return per_group ? kGroups : kFunctions;
    }
  }
};

bool Accepts(const Layer* layer) { return !PerGroup(layer) || layer->block_size >= 32; }

}  // namespace
}  // namespace neon

extern const Kernel packed_gemm_int8_16x4_neon_i8mm = {
    "packed_gemm_int8_16x4_neon_i8mm",
    IndexFormat::packed,
    Activation::int8,
    Isa::neon_i8mm,
    neon::Accepts,
    /*max_rows=*/64,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    neon::PreparedBytes<neon::MatrixOps, 1>,
    neon::Prepare<neon::MatrixOps, 1>,
    neon::ScratchBytes<neon::MatrixOps>,
    neon::Compute<neon::MatrixOps, 1>,
};

extern const Kernel packed_gemm_float_8x4_neon_i8mm = {
    "packed_gemm_float_8x4_neon_i8mm",
    IndexFormat::packed,
    Activation::float32,
    Isa::neon_i8mm,
    neon::Accepts,
    /*max_rows=*/64,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/true,
    neon::PreparedBytes<neon::MatrixOps, 3>,
    neon::Prepare<neon::MatrixOps, 3>,
    neon::ScratchBytes<neon::MatrixOps>,
    neon::Compute<neon::MatrixOps, 3>,
};

}  // namespace onnx_ternary
