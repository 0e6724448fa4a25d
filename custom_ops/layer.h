// One weight matrix, and one call, as kernels see them. Plain data, as in kernel.h and for the same
// reason.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace onnx_ternary {

enum class IndexFormat : uint8_t { packed, rsr };
enum class Storage : uint8_t { two_bit, dense, one_bit, planes, base3 };
enum class Alphabet : uint8_t { ternary, binary_pm, binary_01 };
enum class Algorithm : uint8_t { automatic, rsr, rsr_plus_plus };
enum class Activation : uint8_t { float32, int8 };
// What becomes int8 in a kernel: a row by its absmax, or all rows by one range (activation =
// uint8).
enum class ActivationRule : uint8_t {
  none,
  absmax_division,
  absmax_reciprocal,
  dynamic_quantize_linear
};
enum class ScaleKind : uint8_t { per_tensor, per_column, per_group };

// Kernels that read block_scales add integers of up to 2^47 times scales in float32.
constexpr float kLargestBlockScale = 1.2e24f;  // 2^80

// One weight matrix as kernels see it: validated, immutable, shared by concurrent calls.
// Layouts: docs/index_format.md. Pointers have no alignment beyond that of bytes for `codes`
// (memory-mapped files), natural alignment otherwise.
struct Layer {
  int64_t K;
  int64_t N;
  IndexFormat index_format;
  Storage storage;  // never `dense`: expanded to two_bit when the layer is made
  Alphabet alphabet;
  Algorithm algorithm;
  Activation activation;
  ActivationRule activation_rule;

  // packed: (num_column_tiles, num_k_blocks, 4, block_bytes) uint8
  const uint8_t* codes;
  int64_t block_size;
  int64_t block_bytes;
  int64_t num_k_blocks;
  int64_t num_column_tiles;

  // rsr: permutation (num_planes, num_blocks, K) uint16 or uint32, the one that is not null;
  // segment_offsets (num_planes, num_blocks, num_groups, num_patterns + 1) uint32
  const uint16_t* permutation_u16;
  const uint32_t* permutation_u32;
  const uint32_t* segment_offsets;
  int64_t block_width;
  int64_t num_blocks;
  int64_t num_planes;
  int64_t num_patterns;

  // scale: (), (N,) or (num_groups, N) float32
  const float* scale;
  ScaleKind scale_kind;
  int64_t group_size;  // rows per scale group; K where scales are not per group
  int64_t num_groups;
  // packed with scales per group, for kernels that read scales beside the codes
  // (Kernel::reads_block_scales): the scale of every block, (num_column_tiles, blocks of whole
  // spans of 128 inputs, 4) float32, zero past K and N, followed by 16 zeros. Null where a scale is
  // above kLargestBlockScale, and where no such kernel runs.
  const float* block_scales;

  const float* bias;  // (N,) float32, or null for no bias

  float activation_epsilon;
  int32_t activation_qmin;
  int32_t activation_qmax;

  // activation = uint8 reaches kernels as Activation::int8 with the rule dynamic_quantize_linear.
  // Kernels multiply q - 128, with s and scale 1 and no bias; unsigned.cc makes Y of the sums.
  const int32_t* column_sums;  // (N,) sums of levels; null for other activations
  const float* output_scale;   // as scale, per tensor or per column
  ScaleKind output_scale_kind;
  const float* output_bias;  // as bias
};

// What belongs to one call of Run() (run.h) and not to the layer: what the rule
// dynamic_quantize_linear quantizes all rows of X with. Zero for the other rules.
struct Call {
  float x_scale;
  int32_t x_zero_point;
};

}  // namespace onnx_ternary
