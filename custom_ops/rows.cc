#include "rows.h"

#include <algorithm>
#include <cstring>

#include "dispatch/kernel_registry.h"
#include "half.h"

namespace onnx_ternary {
namespace {

// Partial sums of larger rows could overflow float32: 2^24 * 1e31 is 1.7e38, the largest float32
// 3.4e38.
constexpr float kLargestMagnitude = 1e31f;

// Rows whose crest factor c = absmax * K / sum |x| exceeds this do not go to fixed-point kernels.
// Their error is at most scale * nonzeros * absmax * 2^-22.99. As nonzeros * absmax <= K * absmax =
// c * sum |x|, that is c * 2.02 * u * (scale * sum |x|) with u = 2^-24: at c = 128 the bound of a
// float32 dot product whose chains of additions are 259 long, what a loop over 16 lanes has at
// K = 4144. Rows behind a squared ReLU have 50 to 90; the other kernels take several times as long
// for one row.
constexpr double kCrestLimit = 128.0;

void RowMagnitudes(const float* x, int64_t K, int32_t* largest_bits, double* total) {
  constexpr int64_t kLanes = 16;
  constexpr int64_t kChunk = 1024;
  // Magnitudes order like their bits, NaN above infinity: an integer maximum vectorizes.
  int32_t largest[kLanes] = {};
  double sum = 0.0;
  for (int64_t begin = 0; begin < K; begin += kChunk) {
    const int64_t count = std::min(kChunk, K - begin);
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t bits = BitsOf(x[begin + i + lane]) & 0x7fffffffu;
        largest[lane] = std::max(largest[lane], static_cast<int32_t>(bits));
        lanes[lane] += FloatOf(bits);
      }
    }
    for (; i < count; ++i) {
      const uint32_t bits = BitsOf(x[begin + i]) & 0x7fffffffu;
      largest[0] = std::max(largest[0], static_cast<int32_t>(bits));
      lanes[0] += FloatOf(bits);
    }
    for (const float lane : lanes) sum += static_cast<double>(lane);
  }
  *largest_bits = *std::max_element(largest, largest + kLanes);
  *total = sum;
}

}  // namespace

void LoadRow(ElementType type, const void* x, int64_t K, float* out) {
  const uint16_t* halves = static_cast<const uint16_t*>(x);
  switch (type) {
    case ElementType::float32:
      std::memcpy(out, x, static_cast<size_t>(K) * sizeof(float));
      return;
    case ElementType::float16:
      for (int64_t k = 0; k < K; ++k) out[k] = Float16ToFloat(halves[k]);
      return;
    case ElementType::bfloat16:
      for (int64_t k = 0; k < K; ++k) out[k] = BFloat16ToFloat(halves[k]);
      return;
  }
}

void StoreRow(ElementType type, const float* values, int64_t count, void* out) {
  uint16_t* halves = static_cast<uint16_t*>(out);
  switch (type) {
    case ElementType::float32:
      std::memcpy(out, values, static_cast<size_t>(count) * sizeof(float));
      return;
    case ElementType::float16:
      for (int64_t n = 0; n < count; ++n) halves[n] = FloatToFloat16(values[n]);
      return;
    case ElementType::bfloat16:
      for (int64_t n = 0; n < count; ++n) halves[n] = FloatToBFloat16(values[n]);
      return;
  }
}

RowKind ClassifyRow(const float* x, int64_t K) {
  static const RowMagnitudesFunction found = FindRowMagnitudes();
  int32_t absmax_bits = 0;
  double sum = 0.0;
  (found ? found : RowMagnitudes)(x, K, &absmax_bits, &sum);
  const float absmax = FloatOf(static_cast<uint32_t>(absmax_bits));
  if (!(absmax <= kLargestMagnitude)) return RowKind::ieee;
  return static_cast<double>(absmax) * static_cast<double>(K) > kCrestLimit * sum
             ? RowKind::spread
             : RowKind::ordinary;
}

}  // namespace onnx_ternary
