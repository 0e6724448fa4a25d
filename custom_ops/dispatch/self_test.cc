// X holds small integers and one scale serves all columns, so every kernel owes the same numbers:
// sums of 256 products of at most 100 are exact in float32, in fixed point and as int8 sums.
#include "dispatch/self_test.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <vector>

#include "dispatch/kernel_registry.h"
#include "pack.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kK = 256;
constexpr int64_t kN = 12;
constexpr int64_t kRows = 9;  // more than the kernels for few rows take at a time
constexpr int64_t kBlockSize = 128;
constexpr int64_t kBlockWidth = 4;

// Numbers in 0..count-1, the same ones in every run (Knuth's MMIX generator).
class Numbers {
 public:
  int Next(int count) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>((state_ >> 33) % static_cast<uint64_t>(count));
  }

 private:
  uint64_t state_ = 1;
};

// A small ternary matrix as a layer of any format and activation.
class SmallLayer {
 public:
  SmallLayer(IndexFormat index_format, Activation activation) {
    Numbers numbers;
    std::vector<int8_t> levels(static_cast<size_t>(kK * kN));
    for (int8_t& level : levels) level = static_cast<int8_t>(numbers.Next(3) - 1);
    layer_.K = kK;
    layer_.N = kN;
    layer_.index_format = index_format;
    layer_.alphabet = Alphabet::ternary;
    layer_.activation = activation;
    layer_.scale = &scale_;
    layer_.scale_kind = ScaleKind::per_tensor;
    layer_.group_size = kK;
    layer_.num_groups = 1;
    if (activation == Activation::int8) {
      layer_.activation_rule = ActivationRule::absmax_division;
      layer_.activation_epsilon = 1e-5f;
      layer_.activation_qmin = -128;
      layer_.activation_qmax = 127;
    }
    if (index_format == IndexFormat::packed) {
      SetPacked(levels);
    } else {
      SetRsr(levels);
    }
  }
  SmallLayer(const SmallLayer&) = delete;
  SmallLayer& operator=(const SmallLayer&) = delete;

  const Layer& layer() const { return layer_; }

 private:
  void SetPacked(const std::vector<int8_t>& levels) {
    layer_.storage = Storage::two_bit;
    layer_.algorithm = Algorithm::automatic;
    layer_.block_size = kBlockSize;
    layer_.block_bytes = PackedBlockBytes(layer_.storage, kBlockSize);
    layer_.num_k_blocks = CeilDiv(kK, kBlockSize);
    layer_.num_column_tiles = CeilDiv(kN, 4);
    codes_.resize(static_cast<size_t>(layer_.num_column_tiles * layer_.num_k_blocks * 4 *
                                      layer_.block_bytes));
    Pack(levels.data(), kK, kN, layer_.storage, layer_.alphabet, kBlockSize, codes_.data(),
         codes_.size());
    layer_.codes = codes_.data();
  }

  void SetRsr(const std::vector<int8_t>& levels) {
    layer_.storage = Storage::planes;
    layer_.algorithm = Algorithm::rsr_plus_plus;
    layer_.block_width = kBlockWidth;
    layer_.num_blocks = CeilDiv(kN, kBlockWidth);
    layer_.num_planes = 2;
    layer_.num_patterns = int64_t{1} << kBlockWidth;
    const int64_t lists = layer_.num_planes * layer_.num_blocks;
    permutation_.resize(static_cast<size_t>(lists * kK));
    offsets_.resize(static_cast<size_t>(lists * (layer_.num_patterns + 1)));
    PackRsr(levels.data(), kK, kN, layer_.storage, layer_.alphabet, kBlockWidth, /*group_size=*/0,
            permutation_.data(), permutation_.size() * sizeof(uint16_t), offsets_.data(),
            offsets_.size() * sizeof(uint32_t));
    layer_.permutation_u16 = permutation_.data();
    layer_.segment_offsets = offsets_.data();
  }

  Layer layer_ = {};
  float scale_ = 0.5f;
  std::vector<uint8_t> codes_;
  std::vector<uint16_t> permutation_;
  std::vector<uint32_t> offsets_;
};

// Memory that kernels may use, aligned as they are promised.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes + kAlignment) {}
  void* data() {
    const size_t past = reinterpret_cast<uintptr_t>(bytes_.data()) % kAlignment;
    return bytes_.data() + (kAlignment - past) % kAlignment;
  }

 private:
  static constexpr size_t kAlignment = 64;
  std::vector<uint8_t> bytes_;
};

std::vector<float> Multiply(const Kernel& kernel, const Layer& layer, const std::vector<float>& x) {
  const Call call = {};  // no layer here has the rule dynamic_quantize_linear
  std::vector<float> y(static_cast<size_t>(kRows * kN));
  for (int64_t first = 0; first < kRows; first += kernel.max_rows) {
    const int64_t rows = std::min(kRows - first, kernel.max_rows);
    Memory prepared(kernel.prepared_bytes(&layer, rows));
    Memory scratch(kernel.scratch_bytes(&layer, rows, kN));
    const float* x_tile = x.data() + first * kK;
    kernel.prepare(&layer, &call, x_tile, rows, prepared.data());
    kernel.compute(&layer, x_tile, rows, prepared.data(), 0, kN, y.data() + first * kN,
                   scratch.data());
  }
  return y;
}

bool AgreesWithReference(const Kernel& kernel) {
  const SmallLayer small(kernel.index_format, kernel.activation);
  if (kernel.accepts != nullptr && !kernel.accepts(&small.layer())) return true;
  Numbers numbers;
  std::vector<float> x(static_cast<size_t>(kRows * kK));
  for (float& each : x) each = static_cast<float>(numbers.Next(201) - 100);
  const Kernel& reference = *ReferenceKernel(kernel.index_format, kernel.activation);
  return Multiply(kernel, small.layer(), x) == Multiply(reference, small.layer(), x);
}

enum Verdict : int { kUnknown, kRight, kWrong };

}  // namespace

bool PassesSelfTest(const Kernel& kernel) {
  if (kernel.isa == Isa::scalar) return true;  // the reference itself, and plain C++ beside it
  const std::vector<const Kernel*>& kernels = BuiltKernels();
  static std::vector<std::atomic<int>> verdicts(kernels.size());
  const auto place = std::find(kernels.begin(), kernels.end(), &kernel) - kernels.begin();
  std::atomic<int>& verdict = verdicts[static_cast<size_t>(place)];
  int known = verdict.load(std::memory_order_acquire);
  if (known == kUnknown) {
    const int found = AgreesWithReference(kernel) ? kRight : kWrong;
    // Of threads that tested the kernel at the same time, one reports.
    if (verdict.compare_exchange_strong(known, found) && found == kWrong) {
      std::fprintf(stderr,
                   "onnx_ternary: kernel '%s' computes wrong numbers on this processor (which has: "
                   "%s) and is left out; the next one takes its place. Please report it with what "
                   "'onnx-ternary info' prints.\n",
                   kernel.name, CpuFeatures().c_str());
    }
    known = found;
  }
  return known == kRight;
}

}  // namespace onnx_ternary
