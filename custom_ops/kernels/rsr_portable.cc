// Kernels for `rsr` on any processor: RSR and RSR++ of arXiv 2411.06360 (sections 4 and 5), batched
// over the rows of X and for a single row.
//
// Layout: docs/index_format.md section 3. Per plane, column block and scale group: segmented sums
// S[p] = sum of x over the rows whose pattern is p, then the block product. RSR multiplies S by the
// pattern matrix, block_width * num_patterns additions; RSR++ peels off one column at a time and
// folds S to the patterns of the others, O(num_patterns) in all. The first column is the pattern's
// most significant digit, so each fold adds contiguous parts of S.
//
// Batched: x lies transposed, lanes (16 rows) side by side, so that the paper's gather becomes one
// contiguous load per permutation entry, shared by the rows.
//
// Float32 chain: every sum adds each of the K inputs at most once, whatever the order: K.
// Ranges, int8: a partial sum adds or subtracts distinct inputs, so it is at most 128 K < 2^31.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/lanes.h"
#include "common/quantize_row.h"
#include "common/rsr_patterns.h"
#include "common/scalar.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace portable {
namespace {

constexpr int kRowLanes = 16;
constexpr int64_t kGemmMaxRows = 64;
constexpr int64_t kGemvMaxRows = 2;

// Row numbers of a permutation of either width.
struct Permutation {
  const uint16_t* rows_u16;
  const uint32_t* rows_u32;
};

Permutation PermutationOf(const Layer* layer, int64_t plane, int64_t block) {
  const int64_t offset = (plane * layer->num_blocks + block) * layer->K;
  Permutation permutation = {nullptr, nullptr};
  if (layer->permutation_u16) {
    permutation.rows_u16 = layer->permutation_u16 + offset;
  } else {
    permutation.rows_u32 = layer->permutation_u32 + offset;
  }
  return permutation;
}

// ---------------------------------------------------------------------------------------------
// Segmented sums and block products, for one number or for a batch of lanes.

template <typename Value>
struct Single {
  Value value;
  static Single Zero() { return {0}; }
  static Single Load(const Value* p) { return {*p}; }
  void Store(Value* p) const { *p = value; }
  void Add(const Single& other) { value += other.value; }
  void Subtract(const Single& other) { value -= other.value; }
};

template <typename Value, int kLanes>
struct RowOf {
  using Type = Lanes<Value, kLanes>;
};
template <typename Value>
struct RowOf<Value, 1> {
  using Type = Single<Value>;
};

// sums (num_patterns, kLanes) of x (K, kLanes).
template <typename Value, int kLanes, typename Index>
void SegmentedSums(const Index* permutation, const uint32_t* offsets, int64_t num_patterns,
                   const Value* x, Value* sums) {
  using Row = typename RowOf<Value, kLanes>::Type;
  for (int64_t p = 0; p < num_patterns; ++p) {
    const uint32_t end = offsets[p + 1];
    uint32_t i = offsets[p];
    Row sum = Row::Zero();
    if (kLanes == 1 && end - i >= 8) {
      // One chain of additions would wait for each sum; four run side by side.
      Row sum1 = sum, sum2 = sum, sum3 = sum;
      for (; i + 4 <= end; i += 4) {
        sum.Add(Row::Load(x + permutation[i]));
        sum1.Add(Row::Load(x + permutation[i + 1]));
        sum2.Add(Row::Load(x + permutation[i + 2]));
        sum3.Add(Row::Load(x + permutation[i + 3]));
      }
      sum.Add(sum1);
      sum2.Add(sum3);
      sum.Add(sum2);
    }
    for (; i < end; ++i) sum.Add(Row::Load(x + static_cast<int64_t>(permutation[i]) * kLanes));
    sum.Store(sums + p * kLanes);
  }
}

// Adds sign * rows [0, count) to acc.
template <typename Value, int kLanes>
typename RowOf<Value, kLanes>::Type AddRows(typename RowOf<Value, kLanes>::Type acc,
                                            const Value* rows, int64_t count, int sign) {
  using Row = typename RowOf<Value, kLanes>::Type;
  if (kLanes == 1 && count >= 16) {
    // Eight sums side by side, which compilers vectorize.
    Value part[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int l = 0; l < 8; ++l) part[l] += rows[i + l];
    }
    for (; i < count; ++i) part[i & 7] += rows[i];
    for (int half = 4; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) part[l] += part[l + half];
    }
    if (sign > 0) {
      acc.Add(Row::Load(part));
    } else {
      acc.Subtract(Row::Load(part));
    }
    return acc;
  }
  if (sign > 0) {
    for (int64_t i = 0; i < count; ++i) acc.Add(Row::Load(rows + i * kLanes));
  } else {
    for (int64_t i = 0; i < count; ++i) acc.Subtract(Row::Load(rows + i * kLanes));
  }
  return acc;
}

// RSR: column j of the block is the product of sums and column j of the pattern matrix.
// product (block_width, kLanes): added to, or subtracted from for the second plane.
template <typename Value, int kLanes>
void PatternMatrixProduct(const DigitSigns& signs, int64_t block_width, int64_t num_patterns,
                          const Value* sums, bool subtract, Value* product) {
  using Row = typename RowOf<Value, kLanes>::Type;
  int64_t run = num_patterns;  // patterns in a row with the same digits up to column j
  for (int64_t j = 0; j < block_width; ++j) {
    run /= signs.base;
    Row column = Row::Zero();
    for (int64_t p = 0; p < num_patterns; p += run * signs.base) {
      for (int d = 0; d < signs.base; ++d) {
        if (signs.sign[d] == 0) continue;
        column = AddRows<Value, kLanes>(column, sums + (p + d * run) * kLanes, run, signs.sign[d]);
      }
    }
    Row total = Row::Load(product + j * kLanes);
    if (subtract) {
      total.Subtract(column);
    } else {
      total.Add(column);
    }
    total.Store(product + j * kLanes);
  }
}

// RSR++: as above, folding sums (overwritten) after each column.
template <typename Value, int kLanes>
void FoldProduct(const DigitSigns& signs, int64_t block_width, int64_t num_patterns, Value* sums,
                 bool subtract, Value* product) {
  using Row = typename RowOf<Value, kLanes>::Type;
  int64_t part = num_patterns;
  for (int64_t j = 0; j < block_width; ++j) {
    part /= signs.base;
    Row column = Row::Zero();
    for (int d = 0; d < signs.base; ++d) {
      if (signs.sign[d] == 0) continue;
      column = AddRows<Value, kLanes>(column, sums + d * part * kLanes, part, signs.sign[d]);
    }
    Row total = Row::Load(product + j * kLanes);
    if (subtract) {
      total.Subtract(column);
    } else {
      total.Add(column);
    }
    total.Store(product + j * kLanes);
    if (j + 1 == block_width) break;
    const int64_t numbers = part * kLanes;
    for (int d = 1; d < signs.base; ++d) {
      const Value* other = sums + d * numbers;
      for (int64_t i = 0; i < numbers; ++i) sums[i] += other[i];
    }
  }
}

// product (block_width, kLanes) of one column block and scale group, without scale.
template <typename Value, int kLanes>
void BlockProduct(const Layer* layer, int64_t block, int64_t group, const Value* x, Value* sums,
                  Value* product) {
  const DigitSigns signs = DigitSignsOf(layer);
  for (int64_t i = 0; i < layer->block_width * kLanes; ++i) product[i] = 0;
  for (int64_t plane = 0; plane < layer->num_planes; ++plane) {
    const Permutation permutation = PermutationOf(layer, plane, block);
    const uint32_t* offsets = SegmentOffsets(layer, plane, block, group);
    if (permutation.rows_u16) {
      SegmentedSums<Value, kLanes>(permutation.rows_u16, offsets, layer->num_patterns, x, sums);
    } else {
      SegmentedSums<Value, kLanes>(permutation.rows_u32, offsets, layer->num_patterns, x, sums);
    }
    if (layer->algorithm == Algorithm::rsr) {
      PatternMatrixProduct<Value, kLanes>(signs, layer->block_width, layer->num_patterns, sums,
                                          plane == 1, product);
    } else {
      FoldProduct<Value, kLanes>(signs, layer->block_width, layer->num_patterns, sums, plane == 1,
                                 product);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Kernels. prepared: x (row blocks, K, lanes) float32 or int32, zero past the rows | s (rows,)
// float32 and one quantized row, int8 only. scratch: segmented sums (num_patterns, lanes) | product
// (block_width, lanes) | totals (block_width, lanes).

template <typename Value, int kLanes>
size_t TransposedBytes(const Layer* layer, int64_t rows) {
  return RoundUp64(static_cast<size_t>(RoundUp(rows, kLanes) * layer->K) * sizeof(Value));
}

template <int kLanes>
size_t PreparedBytesFloat(const Layer* layer, int64_t rows) {
  return TransposedBytes<float, kLanes>(layer, rows);
}

template <int kLanes>
size_t PreparedBytesInt8(const Layer* layer, int64_t rows) {
  return TransposedBytes<int32_t, kLanes>(layer, rows) +
         RoundUp64(static_cast<size_t>(rows) * sizeof(float)) + static_cast<size_t>(layer->K);
}

template <int kLanes>
void PrepareFloat(const Layer* layer, const Call*, const float* x, int64_t rows, void* prepared) {
  const int64_t K = layer->K;
  if (rows % kLanes != 0) memset(prepared, 0, TransposedBytes<float, kLanes>(layer, rows));
  for (int64_t row = 0; row < rows; ++row) {
    float* out = static_cast<float*>(prepared) + row / kLanes * K * kLanes + row % kLanes;
    for (int64_t k = 0; k < K; ++k) out[k * kLanes] = x[row * K + k];
  }
}

template <int kLanes>
void PrepareInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                 void* prepared) {
  const int64_t K = layer->K;
  const size_t transposed_bytes = TransposedBytes<int32_t, kLanes>(layer, rows);
  if (rows % kLanes != 0) memset(prepared, 0, transposed_bytes);
  char* behind = static_cast<char*>(prepared) + transposed_bytes;
  float* s = reinterpret_cast<float*>(behind);
  int8_t* q =
      reinterpret_cast<int8_t*>(behind + RoundUp64(static_cast<size_t>(rows) * sizeof(float)));
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantizeActivationRow(layer, call, x + row * K, q);
    int32_t* out = static_cast<int32_t*>(prepared) + row / kLanes * K * kLanes + row % kLanes;
    for (int64_t k = 0; k < K; ++k) out[k * kLanes] = q[k];
  }
}

struct ScratchLayout {
  size_t product_offset, totals_offset, bytes;
};

template <typename Value, typename Total, int kLanes>
ScratchLayout Scratch(const Layer* layer) {
  const size_t numbers = static_cast<size_t>(layer->block_width * kLanes);
  ScratchLayout layout;
  layout.product_offset =
      RoundUp64(static_cast<size_t>(layer->num_patterns * kLanes) * sizeof(Value));
  layout.totals_offset = layout.product_offset + RoundUp64(numbers * sizeof(Value));
  layout.bytes = layout.totals_offset + RoundUp64(numbers * sizeof(Total));
  return layout;
}

template <typename Value, typename Total, int kLanes>
size_t ScratchBytes(const Layer* layer, int64_t, int64_t) {
  return Scratch<Value, Total, kLanes>(layer).bytes;
}

float Finish(const Layer* layer, float sum, float total, const float*, int64_t, int64_t n) {
  const float result = PerGroup(layer) ? total : sum * ColumnScale(layer, n);
  return result + ColumnBias(layer, n);
}

float Finish(const Layer* layer, int32_t sum, double total, const float* s, int64_t row,
             int64_t n) {
  const float bias = ColumnBias(layer, n);
  return PerGroup(layer) ? FinishInt8Groups(total, s[row], bias)
                         : FinishInt8(sum, s[row], ColumnScale(layer, n), bias);
}

template <typename Value, typename Total, int kLanes>
void Multiply(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  const ScratchLayout layout = Scratch<Value, Total, kLanes>(layer);
  char* base = static_cast<char*>(scratch);
  Value* sums = reinterpret_cast<Value*>(base);
  Value* product = reinterpret_cast<Value*>(base + layout.product_offset);
  Total* totals = reinterpret_cast<Total*>(base + layout.totals_offset);
  const float* s = reinterpret_cast<const float*>(static_cast<const char*>(prepared) +
                                                  TransposedBytes<Value, kLanes>(layer, rows));
  const int64_t block_width = layer->block_width;
  // A block cut by begin or end is computed whole and written in part.
  for (int64_t block = begin / block_width; block * block_width < end; ++block) {
    const int64_t n = block * block_width;
    const int64_t num_columns = Min(block_width, layer->N - n);
    const int64_t first = n < begin ? begin - n : 0;
    const int64_t last = Min(num_columns, end - n);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const Value* x = static_cast<const Value*>(prepared) + row * layer->K;
      for (int64_t i = 0; i < block_width * kLanes; ++i) totals[i] = 0;
      for (int64_t g = 0; g < layer->num_groups; ++g) {
        BlockProduct<Value, kLanes>(layer, block, g, x, sums, product);
        if (!PerGroup(layer)) continue;
        for (int64_t j = 0; j < num_columns; ++j) {
          const Total scale = static_cast<Total>(layer->scale[g * layer->N + n + j]);
          for (int64_t i = j * kLanes; i < (j + 1) * kLanes; ++i) {
            totals[i] += static_cast<Total>(product[i]) * scale;
          }
        }
      }
      for (int64_t r = 0; r < Min(rows - row, kLanes); ++r) {
        for (int64_t j = first; j < last; ++j) {
          const int64_t i = j * kLanes + r;
          y[(row + r) * layer->N + n + j] = Finish(layer, product[i], totals[i], s, row + r, n + j);
        }
      }
    }
  }
}

int64_t FloatDepth(const Layer* layer) {
  return PerGroup(layer) ? Min(layer->group_size, layer->K) : layer->K;
}

}  // namespace
}  // namespace portable

extern const Kernel rsr_gemm_float_portable = {
    "rsr_gemm_float_portable",
    IndexFormat::rsr,
    Activation::float32,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemmMaxRows,
    /*column_step=*/1,
    portable::FloatDepth,
    /*fixed_point=*/false,
    portable::PreparedBytesFloat<portable::kRowLanes>,
    portable::PrepareFloat<portable::kRowLanes>,
    portable::ScratchBytes<float, float, portable::kRowLanes>,
    portable::Multiply<float, float, portable::kRowLanes>,
};

extern const Kernel rsr_gemm_int8_portable = {
    "rsr_gemm_int8_portable",
    IndexFormat::rsr,
    Activation::int8,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemmMaxRows,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    portable::PreparedBytesInt8<portable::kRowLanes>,
    portable::PrepareInt8<portable::kRowLanes>,
    portable::ScratchBytes<int32_t, double, portable::kRowLanes>,
    portable::Multiply<int32_t, double, portable::kRowLanes>,
};

extern const Kernel rsr_gemv_float_portable = {
    "rsr_gemv_float_portable",
    IndexFormat::rsr,
    Activation::float32,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemvMaxRows,
    /*column_step=*/1,
    portable::FloatDepth,
    /*fixed_point=*/false,
    portable::PreparedBytesFloat<1>,
    portable::PrepareFloat<1>,
    portable::ScratchBytes<float, float, 1>,
    portable::Multiply<float, float, 1>,
};

extern const Kernel rsr_gemv_int8_portable = {
    "rsr_gemv_int8_portable",
    IndexFormat::rsr,
    Activation::int8,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemvMaxRows,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    portable::PreparedBytesInt8<1>,
    portable::PrepareInt8<1>,
    portable::ScratchBytes<int32_t, double, 1>,
    portable::Multiply<int32_t, double, 1>,
};

}  // namespace onnx_ternary
