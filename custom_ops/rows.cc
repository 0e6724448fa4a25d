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

// Fixed-point kernels round every input that is not zero by at most d = absmax * 2^-22.99. Rows in
// which that is much more than float32 products lose go to other kernels, by two measures; u =
// 2^-24.
//
// 1. The crest factor c = absmax * K / sum |x|. All inputs together are off by at most
// K * d = c * 2.02 * u * sum |x|: at c = 128 as much as a float32 dot product whose chains of
// additions are 259 long, what a loop over 16 lanes has at K = 4144. Rows behind a squared ReLU
// have 50 to 90; the other kernels take several times as long for one row.
constexpr double kCrestLimit = 128.0;

// 2. The same among the small inputs, those below absmax / 16, for the columns that take no large
// one: with S small inputs that are not zero, absmax * S / sum of the small |x| is at most
// max(128, K / 2). The inputs from absmax / 16 on are off by at most 33 u of themselves, the small
// ones together by max(260, 1.01 K) u of their sum. A few huge inputs raise this measure and not
// the crest factor, which cannot exceed K.
constexpr float kSmallPart = 1.0f / 16;

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

struct SmallInputs {
  int64_t count = 0;  // not zero
  double sum = 0.0;   // of magnitudes
};

SmallInputs FindSmallInputs(const float* x, int64_t K, float limit) {
  constexpr int64_t kLanes = 8;
  constexpr int64_t kChunk = 1024;
  SmallInputs found;
  for (int64_t begin = 0; begin < K; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, K);
    float sums[kLanes] = {};
    int32_t counts[kLanes] = {};
    const auto add = [&](int64_t lane, float value) {
      const float magnitude = FloatOf(BitsOf(value) & 0x7fffffffu);
      sums[lane] += magnitude < limit ? magnitude : 0.0f;
      counts[lane] += (magnitude < limit ? 1 : 0) & (magnitude > 0.0f ? 1 : 0);
    };
    int64_t k = begin;
    for (; k + kLanes <= end; k += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) add(lane, x[k + lane]);
    }
    for (; k < end; ++k) add(0, x[k]);
    for (const float sum : sums) found.sum += static_cast<double>(sum);
    for (const int32_t count : counts) found.count += count;
  }
  return found;
}

bool FitsFixedPoint(const float* x, int64_t K, float absmax, double sum) {
  const double largest = static_cast<double>(absmax);
  const double num_inputs = static_cast<double>(K);
  if (largest * num_inputs > kCrestLimit * sum) return false;
  const SmallInputs small = FindSmallInputs(x, K, absmax * kSmallPart);
  const double limit = std::max(kCrestLimit, num_inputs / 2);
  return largest * static_cast<double>(small.count) <= limit * small.sum;
}

}  // namespace

void LoadRow(ElementType type, const void* x, int64_t K, float* out) {
  const uint16_t* halves = static_cast<const uint16_t*>(x);
  switch (type) {
    case ElementType::float32:
      std::memcpy(out, x, static_cast<size_t>(K) * sizeof(float));
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
  return FitsFixedPoint(x, K, absmax, sum) ? RowKind::ordinary : RowKind::spread;
}

}  // namespace onnx_ternary
