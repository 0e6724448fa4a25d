// Scalar kernels of `rsr`: the paper's algorithms (arXiv 2411.06360, RSR and RSR++) as it writes
// them, and the reference that decodes every weight.
//
// One column block, one group: u[p] = sum of x over the rows of pattern p (segmented sum), then the
// block product u @ B with B the (num_patterns, block_width) matrix of the patterns' digits. RSR
// multiplies by B; RSR++ folds: the last column's digit is a pattern's lowest, so that column is
// the sum of the entries of odd patterns; adding neighbors drops the digit, and so on.
//
// Layout: docs/index_format.md section 3.

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "common/quantize_row.h"
#include "common/rsr_patterns.h"
#include "common/scalar.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kMaxBlockWidth = 16;

int64_t Row(const Layer& layer, int64_t position) {
  return layer.permutation_u16 ? layer.permutation_u16[position]
                               : static_cast<int64_t>(layer.permutation_u32[position]);
}

// ---- Reference: the pattern of each row, then a dense product ----

// patterns: (num_planes, K), of one block; uint16 is enough for 2^16 or 3^10 patterns.
void DecodePatterns(const Layer& layer, int64_t block, uint16_t* patterns) {
  for (int64_t plane = 0; plane < layer.num_planes; ++plane) {
    const int64_t base = (plane * layer.num_blocks + block) * layer.K;
    for (int64_t group = 0; group < layer.num_groups; ++group) {
      const uint32_t* offsets = SegmentOffsets(&layer, plane, block, group);
      for (int64_t p = 0; p < layer.num_patterns; ++p) {
        for (int64_t i = offsets[p]; i < static_cast<int64_t>(offsets[p + 1]); ++i) {
          patterns[plane * layer.K + Row(layer, base + i)] = static_cast<uint16_t>(p);
        }
      }
    }
  }
}

// The level of one row: divisor is digit_base^(columns to the right in the block).
int Level(const Layer& layer, const uint16_t* patterns, int64_t k, int64_t divisor) {
  if (layer.storage == Storage::base3) return static_cast<int>(patterns[k] / divisor % 3) - 1;
  const int digit = static_cast<int>(patterns[k] / divisor % 2);
  if (layer.num_planes == 2) return digit - static_cast<int>(patterns[layer.K + k] / divisor % 2);
  return layer.alphabet == Alphabet::binary_pm ? 2 * digit - 1 : digit;
}

// value(m, k) is the activation, term(m, group_scale, sum) a scale group's share of the result,
// both of a type wide enough to be exact in (float64 in `float`: T = 0).
template <typename Sum, typename Value, typename Term>
void DecodeAndMultiply(const Layer& layer, int64_t rows, int64_t begin, int64_t end,
                       uint16_t* patterns, float* y, const Value& value, const Term& term) {
  const int64_t digit_base = layer.storage == Storage::base3 ? 3 : 2;
  int64_t decoded = -1;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t block = n / layer.block_width;
    if (block != decoded) {
      DecodePatterns(layer, block, patterns);
      decoded = block;
    }
    int64_t divisor = 1;
    for (int64_t c = n % layer.block_width + 1; c < layer.block_width; ++c) divisor *= digit_base;
    for (int64_t m = 0; m < rows; ++m) {
      decltype(term(m, 0.0f, Sum{0})) total = 0;
      for (int64_t group = 0; group < layer.num_groups; ++group) {
        const int64_t k_begin = group * layer.group_size;
        const int64_t rest = layer.K - k_begin;
        const int64_t k_end = k_begin + (rest < layer.group_size ? rest : layer.group_size);
        Sum sum = 0;
        for (int64_t k = k_begin; k < k_end; ++k) {
          sum +=
              static_cast<Sum>(value(m, k)) * static_cast<Sum>(Level(layer, patterns, k, divisor));
        }
        total += term(m, GroupScale(&layer, group, n), sum);
      }
      if (layer.bias) total += layer.bias[n];
      y[m * layer.N + n] = static_cast<float>(total);
    }
  }
}

void ReferenceFloat(const Layer* layer, const float* x, int64_t rows, const void*, int64_t begin,
                    int64_t end, float* y, void* scratch) {
  DecodeAndMultiply<double>(
      *layer, rows, begin, end, static_cast<uint16_t*>(scratch), y,
      [&](int64_t m, int64_t k) { return x[m * layer->K + k]; },
      [](int64_t, float scale, double sum) { return sum * static_cast<double>(scale); });
}

void ReferenceInt8(const Layer* layer, const float*, int64_t rows, const void* prepared,
                   int64_t begin, int64_t end, float* y, void* scratch) {
  const float* s = static_cast<const float*>(prepared);
  const int8_t* q = reinterpret_cast<const int8_t*>(s + rows);
  DecodeAndMultiply<int32_t>(
      *layer, rows, begin, end, static_cast<uint16_t*>(scratch), y,
      [&](int64_t m, int64_t k) { return q[m * layer->K + k]; },
      [&](int64_t m, float scale, int32_t sum) { return static_cast<float>(sum) / s[m] * scale; });
}

size_t PatternBytes(const Layer* layer, int64_t, int64_t) {
  return static_cast<size_t>(layer->num_planes * layer->K) * sizeof(uint16_t);
}

// ---- The paper's algorithms ----

// u: (num_patterns,).
template <typename Value, typename Sum>
void SegmentedSum(const Layer& layer, int64_t plane, int64_t block, int64_t group, const Value* x,
                  Sum* u) {
  const int64_t base = (plane * layer.num_blocks + block) * layer.K;
  const uint32_t* offsets = SegmentOffsets(&layer, plane, block, group);
  for (int64_t p = 0; p < layer.num_patterns; ++p) {
    Sum sum = 0;
    for (int64_t i = offsets[p]; i < static_cast<int64_t>(offsets[p + 1]); ++i) {
      sum += x[Row(layer, base + i)];
    }
    u[p] = sum;
  }
}

// product[c] = sum over patterns of u[p] * digit(p, c), digits counted from low: binary digits are
// 0, 1 (low = 0) or -1, 1 (low = -1), base-3 digits -1, 0, 1.
template <typename Sum>
void BlockProductRsr(const Layer& layer, bool minus_one, const Sum* u, Sum* product) {
  const int64_t digit_base = layer.storage == Storage::base3 ? 3 : 2;
  int64_t divisor = 1;
  for (int64_t c = layer.block_width - 1; c >= 0; --c) {
    Sum sum = 0;
    for (int64_t p = 0; p < layer.num_patterns; ++p) {
      const int64_t digit = p / divisor % digit_base;
      if (digit == digit_base - 1) {
        sum += u[p];
      } else if (digit == 0 && (digit_base == 3 || minus_one)) {
        sum -= u[p];
      }
    }
    product[c] = sum;
    divisor *= digit_base;
  }
}

// The same by folding; overwrites u.
template <typename Sum>
void BlockProductRsrPlusPlus(const Layer& layer, bool minus_one, Sum* u, Sum* product) {
  int64_t count = layer.num_patterns;
  if (layer.storage == Storage::base3) {
    for (int64_t c = layer.block_width - 1; c >= 0; --c) {
      count /= 3;
      Sum sum = 0;
      for (int64_t p = 0; p < count; ++p) {
        sum += u[3 * p + 2];
        sum -= u[3 * p];
        u[p] = u[3 * p] + u[3 * p + 1] + u[3 * p + 2];
      }
      product[c] = sum;
    }
    return;
  }
  for (int64_t c = layer.block_width - 1; c >= 0; --c) {
    count /= 2;
    Sum sum = 0;
    for (int64_t p = 0; p < count; ++p) {
      sum += u[2 * p + 1];
      if (minus_one) sum -= u[2 * p];
      u[p] = u[2 * p] + u[2 * p + 1];
    }
    product[c] = sum;
  }
}

// One row of activations, columns [begin, end). A block that a range cuts is computed whole and
// stored in part, so no result depends on the cut. close(n, group, product) takes a group's
// product.
template <typename Value, typename Sum, typename Close>
void RsrRow(const Layer& layer, const Value* x, int64_t begin, int64_t end, Sum* u,
            const Close& close) {
  const bool minus_one = layer.alphabet == Alphabet::binary_pm;
  for (int64_t block = begin / layer.block_width; block * layer.block_width < end; ++block) {
    for (int64_t group = 0; group < layer.num_groups; ++group) {
      Sum product[kMaxBlockWidth] = {};
      for (int64_t plane = 0; plane < layer.num_planes; ++plane) {
        Sum plane_product[kMaxBlockWidth] = {};
        SegmentedSum(layer, plane, block, group, x, u);
        if (layer.algorithm == Algorithm::rsr) {
          BlockProductRsr(layer, minus_one, u, plane_product);
        } else {
          BlockProductRsrPlusPlus(layer, minus_one, u, plane_product);
        }
        for (int64_t c = 0; c < layer.block_width; ++c) {
          product[c] = plane == 0 ? plane_product[c] : product[c] - plane_product[c];
        }
      }
      const int64_t first = block * layer.block_width;
      for (int64_t c = 0; c < layer.block_width; ++c) {
        if (first + c >= begin && first + c < end) close(first + c, group, product[c]);
      }
    }
  }
}

// Adds one scale group's share of column n to a row of Y; the bias after the last group.
void AddGroup(const Layer& layer, int64_t n, int64_t group, float term, float* row) {
  row[n] = group == 0 ? term : row[n] + term;
  if (layer.bias && group == layer.num_groups - 1) row[n] += layer.bias[n];
}

void GemvFloat(const Layer* layer, const float* x, int64_t rows, const void*, int64_t begin,
               int64_t end, float* y, void* scratch) {
  for (int64_t m = 0; m < rows; ++m) {
    RsrRow(*layer, x + m * layer->K, begin, end, static_cast<float*>(scratch),
           [&](int64_t n, int64_t group, float product) {
             AddGroup(*layer, n, group, product * GroupScale(layer, group, n), y + m * layer->N);
           });
  }
}

// |u| and |product| <= (2^24 - 1) * 128 < 2^31: every activation is counted once, with sign -1, 0
// or 1, in any of them.
void GemvInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  const float* s = static_cast<const float*>(prepared);
  const int8_t* q = reinterpret_cast<const int8_t*>(s + rows);
  for (int64_t m = 0; m < rows; ++m) {
    RsrRow(*layer, q + m * layer->K, begin, end, static_cast<int32_t*>(scratch),
           [&](int64_t n, int64_t group, int32_t product) {
             const float term = static_cast<float>(product) / s[m] * GroupScale(layer, group, n);
             AddGroup(*layer, n, group, term, y + m * layer->N);
           });
  }
}

static_assert(sizeof(float) == sizeof(int32_t), "u is either");
size_t SegmentSumBytes(const Layer* layer, int64_t, int64_t) {
  return static_cast<size_t>(layer->num_patterns) * sizeof(float);
}

// Adding the sum of an empty segment is exact, so what rounds is a tree over the column's at most K
// inputs, each a leaf once: its depth is below K whatever the patterns and the algorithm.
int64_t AdditionDepth(const Layer* layer) { return layer->K; }

}  // namespace

extern const Kernel rsr_reference_float_scalar = {
    "rsr_reference_float_scalar",
    IndexFormat::rsr,
    Activation::float32,
    Isa::scalar,
    /*accepts=*/nullptr,
    /*max_rows=*/8,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    NothingPrepared,
    PrepareNothing,
    PatternBytes,
    ReferenceFloat,
};

extern const Kernel rsr_reference_int8_scalar = {
    "rsr_reference_int8_scalar",
    IndexFormat::rsr,
    Activation::int8,
    Isa::scalar,
    /*accepts=*/nullptr,
    /*max_rows=*/8,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    QuantizedBytes,
    QuantizeRows,
    PatternBytes,
    ReferenceInt8,
};

extern const Kernel rsr_gemv_float_scalar = {
    "rsr_gemv_float_scalar", IndexFormat::rsr, Activation::float32, Isa::scalar,
    /*accepts=*/nullptr,
    /*max_rows=*/1,
    /*column_step=*/1,       AdditionDepth,
    /*fixed_point=*/false,   NothingPrepared,  PrepareNothing,      SegmentSumBytes, GemvFloat,
};

extern const Kernel rsr_gemv_int8_scalar = {
    "rsr_gemv_int8_scalar", IndexFormat::rsr, Activation::int8, Isa::scalar,
    /*accepts=*/nullptr,
    /*max_rows=*/1,
    /*column_step=*/1,      ExactDepth,
    /*fixed_point=*/false,  QuantizedBytes,   QuantizeRows,     SegmentSumBytes, GemvInt8,
};

}  // namespace onnx_ternary
