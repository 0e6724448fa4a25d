// Reference kernels of `packed`: decode a block of one column, multiply, add. Plain on purpose;
// every other packed kernel is tested against them, and rows with NaN or inf run here in a session.
// Layout: docs/index_format.md section 2.

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "common/quantize_row.h"
#include "common/scalar.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kMaxRows = 8;
constexpr int64_t kMaxBlockSize = 128;

// Levels of one block of one column. bytes: (block_bytes,); levels: (block_size,).
void DecodeBlock(const Layer& layer, const uint8_t* bytes, int8_t* levels) {
  const int64_t block_bytes = layer.block_bytes;
  if (layer.storage == Storage::one_bit) {
    const int zero_bit = layer.alphabet == Alphabet::binary_pm ? -1 : 0;
    for (int64_t j = 0; j < 8; ++j) {
      for (int64_t i = 0; i < block_bytes; ++i) {
        levels[block_bytes * j + i] = static_cast<int8_t>((bytes[i] >> j) & 1 ? 1 : zero_bit);
      }
    }
    return;
  }
  for (int64_t j = 0; j < 4; ++j) {
    for (int64_t i = 0; i < block_bytes; ++i) {
      levels[block_bytes * j + i] = static_cast<int8_t>(((bytes[i] >> (2 * j)) & 3) - 1);
    }
  }
}

// Walks the columns [begin, end). add(m, k_begin, count, levels) takes a block's products,
// close(m, group_scale) ends a scale group, finish(m, n) a column.
template <typename Add, typename Close, typename Finish>
void ForEachColumn(const Layer& layer, int64_t rows, int64_t begin, int64_t end, const Add& add,
                   const Close& close, const Finish& finish) {
  int8_t levels[kMaxBlockSize];
  const int64_t group_size = layer.scale_kind == ScaleKind::per_group ? layer.group_size : layer.K;
  for (int64_t n = begin; n < end; ++n) {
    const uint8_t* tile = layer.codes + (n / 4) * layer.num_k_blocks * 4 * layer.block_bytes;
    for (int64_t b = 0; b < layer.num_k_blocks; ++b) {
      DecodeBlock(layer, tile + (b * 4 + n % 4) * layer.block_bytes, levels);
      const int64_t k_begin = b * layer.block_size;
      const int64_t rest = layer.K - k_begin;
      const int64_t count = rest < layer.block_size ? rest : layer.block_size;
      for (int64_t m = 0; m < rows; ++m) add(m, k_begin, count, levels);
      const int64_t k_end = k_begin + count;
      if (k_end == layer.K || k_end % group_size == 0) {
        const float scale = GroupScale(&layer, k_begin / group_size, n);
        for (int64_t m = 0; m < rows; ++m) close(m, scale);
      }
    }
    for (int64_t m = 0; m < rows; ++m) finish(m, n);
  }
}

// Sums in float64, which holds any finite float32 sum of 2^24 terms, and rounds once: T = 0.
void ComputeFloat(const Layer* layer, const float* x, int64_t rows, const void*, int64_t begin,
                  int64_t end, float* y, void*) {
  double group_sum[kMaxRows] = {};
  double total[kMaxRows] = {};
  ForEachColumn(
      *layer, rows, begin, end,
      [&](int64_t m, int64_t k_begin, int64_t count, const int8_t* levels) {
        const float* row = x + m * layer->K + k_begin;
        double sum = 0.0;
        // Zero levels are multiplied too: 0 * inf is NaN, as in MatMul.
        for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(row[i]) * levels[i];
        group_sum[m] += sum;
      },
      [&](int64_t m, float scale) {
        total[m] += group_sum[m] * static_cast<double>(scale);
        group_sum[m] = 0.0;
      },
      [&](int64_t m, int64_t n) {
        const double bias = layer->bias ? static_cast<double>(layer->bias[n]) : 0.0;
        y[m * layer->N + n] = static_cast<float>(total[m] + bias);
        total[m] = 0.0;
      });
}

void ComputeInt8(const Layer* layer, const float*, int64_t rows, const void* prepared,
                 int64_t begin, int64_t end, float* y, void*) {
  const float* s = static_cast<const float*>(prepared);
  const int8_t* q = reinterpret_cast<const int8_t*>(s + rows);
  // |sum| <= (2^24 - 1) * 128 < 2^31 for the four codes' levels -1, 0, 1; code 3 (level 2, never
  // written) may exceed it, so the sum is 64 bits wide.
  int64_t group_sum[kMaxRows] = {};
  float total[kMaxRows] = {};
  ForEachColumn(
      *layer, rows, begin, end,
      [&](int64_t m, int64_t k_begin, int64_t count, const int8_t* levels) {
        const int8_t* row = q + m * layer->K + k_begin;
        int32_t sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += row[i] * levels[i];
        group_sum[m] += sum;
      },
      [&](int64_t m, float scale) {
        total[m] += static_cast<float>(group_sum[m]) / s[m] * scale;
        group_sum[m] = 0;
      },
      [&](int64_t m, int64_t n) {
        y[m * layer->N + n] = layer->bias ? total[m] + layer->bias[n] : total[m];
        total[m] = 0.0f;
      });
}

}  // namespace

extern const Kernel packed_reference_float_scalar = {
    "packed_reference_float_scalar",
    IndexFormat::packed,
    Activation::float32,
    Isa::scalar,
    /*accepts=*/nullptr,
    kMaxRows,
    /*column_step=*/4,
    ExactDepth,
    /*fixed_point=*/false,
    NothingPrepared,
    PrepareNothing,
    NoScratch,
    ComputeFloat,
};

extern const Kernel packed_reference_int8_scalar = {
    "packed_reference_int8_scalar",
    IndexFormat::packed,
    Activation::int8,
    Isa::scalar,
    /*accepts=*/nullptr,
    kMaxRows,
    /*column_step=*/4,
    ExactDepth,
    /*fixed_point=*/false,
    QuantizedBytes,
    QuantizeRows,
    NoScratch,
    ComputeInt8,
};

}  // namespace onnx_ternary
