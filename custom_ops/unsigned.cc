#include "unsigned.h"

#include <algorithm>
#include <cmath>

#include "half.h"
#include "kernels/common/quantize_row.h"
#include "pack.h"

namespace onnx_ternary {
namespace {

// Rows of padding past K do not count.
std::vector<int32_t> PackedColumnSums(const Layer& layer) {
  std::vector<int32_t> sums(static_cast<size_t>(layer.N));
  std::vector<int8_t> levels(static_cast<size_t>(layer.block_size));
  for (int64_t n = 0; n < layer.N; ++n) {
    const uint8_t* tile = layer.codes + n / 4 * layer.num_k_blocks * 4 * layer.block_bytes;
    int32_t sum = 0;
    for (int64_t block = 0; block < layer.num_k_blocks; ++block) {
      DecodeBlock(tile + (block * 4 + n % 4) * layer.block_bytes, layer.storage, layer.alphabet,
                  layer.block_size, layer.block_bytes, levels.data());
      const int64_t count = std::min(layer.block_size, layer.K - block * layer.block_size);
      for (int64_t i = 0; i < count; ++i) sum += levels[static_cast<size_t>(i)];
    }
    sums[static_cast<size_t>(n)] = sum;
  }
  return sums;
}

// A pattern's digit, times the rows that have the pattern: the permutation does not matter.
std::vector<int32_t> RsrColumnSums(const Layer& layer) {
  std::vector<int32_t> sums(static_cast<size_t>(layer.N));
  const bool base3 = layer.storage == Storage::base3;
  const int64_t base = base3 ? 3 : 2;
  const bool minus_one = base3 || layer.alphabet == Alphabet::binary_pm;
  const uint32_t* offsets = layer.segment_offsets;
  for (int64_t plane = 0; plane < layer.num_planes; ++plane) {
    for (int64_t block = 0; block < layer.num_blocks; ++block) {
      const int64_t first = block * layer.block_width;
      const int64_t width = std::min(layer.block_width, layer.N - first);
      for (int64_t p = 0; p < layer.num_patterns; ++p) {
        const int32_t rows = static_cast<int32_t>(offsets[p + 1] - offsets[p]);
        // The first column is the most significant digit.
        int64_t divisor = layer.num_patterns;
        for (int64_t c = 0; c < width && rows != 0; ++c) {
          divisor /= base;
          const int32_t digit = static_cast<int32_t>(p / divisor % base);
          const int32_t level = base3 ? digit - 1 : minus_one ? 2 * digit - 1 : digit;
          sums[static_cast<size_t>(first + c)] += (plane == 0 ? level : -level) * rows;
        }
      }
      offsets += layer.num_patterns + 1;
    }
  }
  return sums;
}

}  // namespace

void Widen(const float* x, int64_t count, ActivationRange* range) {
  WidenActivationRange(x, count, &range->lowest, &range->highest, &range->largest_bits);
}

void Widen(const ActivationRange& other, ActivationRange* range) {
  range->lowest = std::min(range->lowest, other.lowest);
  range->highest = std::max(range->highest, other.highest);
  range->largest_bits = std::max(range->largest_bits, other.largest_bits);
}

Call CallOf(const ActivationRange& range) {
  const float width = range.highest - range.lowest;
  Call call{};
  call.x_scale = range.lowest == range.highest ? 1.0f : width / 255.0f;
  const float absmax = FloatOf(static_cast<uint32_t>(range.largest_bits));
  if (!std::isfinite(absmax) || !std::isfinite(call.x_scale)) call.x_scale = NAN;
  if (!(call.x_scale > 0.0f)) return call;
  const float zero_point = std::clamp(0.0f - range.lowest / call.x_scale, 0.0f, 255.0f);
  call.x_zero_point = static_cast<int32_t>(std::nearbyint(zero_point));
  return call;
}

void MakeUnsigned(Layer* layer, std::vector<int32_t>* column_sums) {
  static constexpr float kOne = 1.0f;
  layer->output_scale = layer->scale;
  layer->output_scale_kind = layer->scale_kind;
  layer->output_bias = layer->bias;
  layer->scale = &kOne;
  layer->scale_kind = ScaleKind::per_tensor;
  layer->bias = nullptr;
  *column_sums =
      layer->index_format == IndexFormat::packed ? PackedColumnSums(*layer) : RsrColumnSums(*layer);
  layer->column_sums = column_sums->data();
}

// Y of the exact integers a kernel wrote: with zero point z, sum (q - z) w is
// sum (q - 128) w + (128 - z) sum w. As K <= 2^17, either term is at most 2^24 in magnitude,
// which float32 and int32 hold, and so does int32 their sum (twice that for the unused 2-bit code
// 3).
void FinishUnsigned(const Layer& layer, const Call& call, int64_t rows, int64_t begin, int64_t end,
                    float* y) {
  const int32_t zero_point = 128 - call.x_zero_point;
  const bool per_column = layer.output_scale_kind == ScaleKind::per_column;
  for (int64_t m = 0; m < rows; ++m, y += layer.N) {
    for (int64_t n = begin; n < end; ++n) {
      const int32_t sum = static_cast<int32_t>(y[n]) + zero_point * layer.column_sums[n];
      const float scale = call.x_scale * layer.output_scale[per_column ? n : 0];
      const float bias = layer.output_bias ? layer.output_bias[n] : 0.0f;
      y[n] = static_cast<float>(sum) * scale + bias;
    }
  }
}

}  // namespace onnx_ternary
