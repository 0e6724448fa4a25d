// Kernels for `rsr`, AVX2: RSR and RSR++ of arXiv 2411.06360 (sections 4 and 5), one row of X and
// batched.
//
// Layout: docs/index_format.md section 3. Per plane, column block and scale group: segmented sums
// u[p] = sum of x over the rows whose pattern is p, then the block product, by the pattern matrix
// (RSR) or by folding (RSR++).
//
// What costs time is not the additions but where segments end: a segment has some ten rows, give or
// take a few, so a loop over it ends in a branch that is mispredicted, at the price of the segment.
// Neither kernel has that branch.
//
// One row: u[p] = S[offsets[p + 1]] - S[offsets[p]] with S the running sum of x in the order of the
// permutation. The loop that fills S knows nothing of segments; four column blocks or planes go
// side by side, since each sum waits for the one before. Differences of running sums are exact in
// integers only, so float activations become fixed point: q = x * 2^e rounded, |q| <= 2^30, and S
// is int64.
//
// Batched: x lies transposed, 8, 16 or 32 rows side by side, and a permutation entry is one
// contiguous load shared by them. Segments are bucketed by length first; those of equal length run
// several at a time through loops of a constant count.
//
// Ranges. int8: S is a sum of distinct inputs, |S| <= 128 K < 2^31 for K < 2^24, as is any partial
// sum of a block product. Float: |S| <= 2^30 K < 2^54. Batched int8 adds int16 over at most 255
// rows, |.| <= 255 * 128 = 32640, then widens.
//
// C headers and intrinsics only, everything in the anonymous namespace: no weak symbol compiled for
// AVX2 may leave this file.
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "quantise_row.h"

#if defined(__GNUC__)
#define OTN_NOINLINE __attribute__((noinline))
#define OTN_IN_REGISTER(value) asm("" : "+r"(value))
#else
#define OTN_NOINLINE
#define OTN_IN_REGISTER(value)
#endif

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kMaxBlockWidth = 16;
constexpr int64_t kGemvMaxRows = 2;

int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
size_t RoundUp64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

bool AcceptsFloat(const Layer* layer) {
  return layer->index_format == IndexFormat::rsr && layer->activation == Activation::float32;
}

bool AcceptsInt8(const Layer* layer) {
  return layer->index_format == IndexFormat::rsr && layer->activation == Activation::int8;
}

bool PerGroup(const Layer* layer) { return layer->scale_kind == ScaleKind::per_group; }

float ColumnScale(const Layer* layer, int64_t n) {
  return layer->scale[layer->scale_kind == ScaleKind::per_column ? n : 0];
}

float ColumnBias(const Layer* layer, int64_t n) { return layer->bias ? layer->bias[n] : 0.0f; }

const uint16_t* PermutationOf(const Layer* layer, int64_t plane, int64_t block, uint16_t) {
  return layer->permutation_u16 + (plane * layer->num_blocks + block) * layer->K;
}
const uint32_t* PermutationOf(const Layer* layer, int64_t plane, int64_t block, uint32_t) {
  return layer->permutation_u32 + (plane * layer->num_blocks + block) * layer->K;
}

const uint32_t* SegmentOffsets(const Layer* layer, int64_t plane, int64_t block, int64_t group) {
  const int64_t index = (plane * layer->num_blocks + block) * layer->num_groups + group;
  return layer->segment_offsets + index * (layer->num_patterns + 1);
}

// What digit d of a pattern contributes: -1, 0 or 1 times its segmented sum.
struct DigitSigns {
  int base;
  int sign[3];
};

DigitSigns DigitSignsOf(const Layer* layer) {
  if (layer->storage == Storage::base3) return {3, {-1, 0, 1}};
  if (layer->alphabet == Alphabet::binary_pm) return {2, {-1, 1, 0}};
  return {2, {0, 1, 0}};
}

// ---------------------------------------------------------------------------------------------
// Block products of integers, one row: loops that compilers vectorise.

template <typename Sum>
Sum Total(const Sum* u, int64_t count) {
  Sum sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += u[i];
  return sum;
}

template <typename Sum>
Sum DigitTotal(const DigitSigns& signs, const Sum* u, int64_t run) {
  const Sum highest = Total(u + (signs.base - 1) * run, run);
  return signs.sign[0] ? highest - Total(u, run) : highest;
}

// product[j] = u times column j of the pattern matrix; the first column is the most significant
// digit.
template <typename Sum>
void PatternMatrixProduct(const DigitSigns& signs, int64_t block_width, int64_t num_patterns,
                          const Sum* u, Sum* product) {
  int64_t run = num_patterns;  // patterns in a row with the same digits up to column j
  for (int64_t j = 0; j < block_width; ++j) {
    run /= signs.base;
    Sum sum = 0;
    for (int64_t p = 0; p < num_patterns; p += run * signs.base) {
      sum += DigitTotal(signs, u + p, run);
    }
    product[j] = sum;
  }
}

// The same, folding u (overwritten) after each column.
template <typename Sum>
void FoldProduct(const DigitSigns& signs, int64_t block_width, int64_t num_patterns, Sum* u,
                 Sum* product) {
  int64_t run = num_patterns;
  for (int64_t j = 0; j < block_width; ++j) {
    run /= signs.base;
    product[j] = DigitTotal(signs, u, run);
    const Sum* second = u + run;
    if (signs.base == 3) {
      const Sum* third = u + 2 * run;
      for (int64_t i = 0; i < run; ++i) u[i] += second[i] + third[i];
    } else {
      for (int64_t i = 0; i < run; ++i) u[i] += second[i];
    }
  }
}

// ---------------------------------------------------------------------------------------------
// One row.
//
// prepared: per row, x (K,) int32: q of fixed point or of int8 | per row, float64: 2^-e, or s
// scratch: running sums (kStreams, kChunk) | boundaries (kStreams, num_patterns + 1) | segmented
// sums (num_patterns,) | products (kStreams, 16) | totals (kStreams, 16) float64

constexpr int64_t kChunk = 496;  // rows whose running sums are kept, so that they stay in L1
constexpr int kStreams = 4;      // column blocks or planes side by side

size_t GemvRowBytes(const Layer* layer) { return RoundUp64((size_t)layer->K * sizeof(int32_t)); }

size_t GemvPreparedFloat(const Layer* layer, int64_t rows) {
  return (size_t)rows * (GemvRowBytes(layer) + sizeof(double));
}

size_t GemvPreparedInt8(const Layer* layer, int64_t rows) {
  return GemvPreparedFloat(layer, rows) + (size_t)layer->K;
}

void GemvPrepareFloat(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const int64_t K = layer->K;
  double* unit = (double*)((char*)prepared + (size_t)rows * GemvRowBytes(layer));
  for (int64_t row = 0; row < rows; ++row, x += K) {
    int32_t* q = (int32_t*)((char*)prepared + (size_t)row * GemvRowBytes(layer));
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 absmax_f32x8 = _mm256_setzero_ps();
    int64_t k = 0;
    for (; k + 8 <= K; k += 8) {
      absmax_f32x8 = _mm256_max_ps(absmax_f32x8, _mm256_and_ps(magnitude, _mm256_loadu_ps(x + k)));
    }
    float lanes[8];
    _mm256_storeu_ps(lanes, absmax_f32x8);
    float absmax = 0.0f;
    for (int i = 0; i < 8; ++i) absmax = lanes[i] > absmax ? lanes[i] : absmax;
    for (; k < K; ++k) absmax = fabsf(x[k]) > absmax ? fabsf(x[k]) : absmax;
    int exponent = 0;
    frexpf(absmax, &exponent);  // absmax < 2^exponent
    const double up = ldexp(1.0, 30 - exponent);
    unit[row] = ldexp(1.0, exponent - 30);
    const __m256d up_f64x4 = _mm256_set1_pd(up);
    for (k = 0; k + 4 <= K; k += 4) {
      const __m256d scaled = _mm256_mul_pd(_mm256_cvtps_pd(_mm_loadu_ps(x + k)), up_f64x4);
      _mm_storeu_si128((__m128i*)(q + k), _mm256_cvtpd_epi32(scaled));
    }
    for (; k < K; ++k) q[k] = _mm_cvtsd_si32(_mm_set_sd((double)x[k] * up));
  }
}

void GemvPrepareInt8(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const int64_t K = layer->K;
  double* s = (double*)((char*)prepared + (size_t)rows * GemvRowBytes(layer));
  int8_t* narrow = (int8_t*)(s + rows);
  for (int64_t row = 0; row < rows; ++row, x += K) {
    int32_t* q = (int32_t*)((char*)prepared + (size_t)row * GemvRowBytes(layer));
    s[row] = (double)QuantiseActivationRow(layer, x, narrow);
    for (int64_t k = 0; k < K; ++k) q[k] = narrow[k];
  }
}

struct GemvLayout {
  size_t boundaries, u, products, totals, bytes;  // offsets; the running sums begin at 0
};

GemvLayout GemvLayoutOf(const Layer* layer, size_t sum_bytes) {
  const size_t patterns = (size_t)layer->num_patterns;
  GemvLayout layout;
  layout.boundaries = kStreams * kChunk * sum_bytes;
  layout.u = layout.boundaries + RoundUp64(kStreams * (patterns + 1) * sum_bytes);
  layout.products = layout.u + RoundUp64(patterns * sum_bytes);
  layout.totals = layout.products + kStreams * kMaxBlockWidth * sum_bytes;
  layout.bytes = layout.totals + kStreams * kMaxBlockWidth * sizeof(double);
  return layout;
}

template <typename Sum>
struct GemvScratch {
  Sum* running;
  Sum* boundaries;
  Sum* u;
  Sum* products;
  double* totals;
};

template <typename Sum>
GemvScratch<Sum> GemvScratchAt(const Layer* layer, void* memory) {
  const GemvLayout layout = GemvLayoutOf(layer, sizeof(Sum));
  char* base = (char*)memory;
  return {(Sum*)base, (Sum*)(base + layout.boundaries), (Sum*)(base + layout.u),
          (Sum*)(base + layout.products), (double*)(base + layout.totals)};
}

template <typename Sum>
size_t GemvScratchBytes(const Layer* layer, int64_t, int64_t) {
  return GemvLayoutOf(layer, sizeof(Sum)).bytes;
}

// running[t][i] = sum of x over the entries of permutation t before begin + i; sums carries on.
// Not an array of sums: compilers keep that in memory or gather it in a vector, at half the speed.
template <typename Sum, typename Index>
OTN_NOINLINE void RunningSums(const Index* const* permutation, int64_t begin, int64_t end,
                              const int32_t* x, Sum* sums, Sum* running) {
  const Index* rows0 = permutation[0] + begin;
  const Index* rows1 = permutation[1] + begin;
  const Index* rows2 = permutation[2] + begin;
  const Index* rows3 = permutation[3] + begin;
  Sum sum0 = sums[0], sum1 = sums[1], sum2 = sums[2], sum3 = sums[3];
  const int64_t count = end - begin;
  for (int64_t i = 0; i < count; ++i) {
    running[i] = sum0;
    running[kChunk + i] = sum1;
    running[2 * kChunk + i] = sum2;
    running[3 * kChunk + i] = sum3;
    sum0 += x[rows0[i]];
    sum1 += x[rows1[i]];
    sum2 += x[rows2[i]];
    sum3 += x[rows3[i]];
    OTN_IN_REGISTER(sum0);
    OTN_IN_REGISTER(sum1);
    OTN_IN_REGISTER(sum2);
    OTN_IN_REGISTER(sum3);
  }
  sums[0] = sum0, sums[1] = sum1, sums[2] = sum2, sums[3] = sum3;
}

// boundaries[t][p] = sum of x over the rows before segment p, for kStreams permutations of one
// group, of which `count` are wanted.
template <typename Sum, typename Index>
void BoundarySums(const Index* const* permutation, const uint32_t* const* offsets, int count,
                  int64_t num_patterns, const int32_t* x, Sum* running, Sum* boundaries) {
  const int64_t begin = offsets[0][0];
  const int64_t end = offsets[0][num_patterns];
  Sum sums[kStreams] = {};
  int64_t next[kStreams] = {};
  for (int64_t chunk = begin; chunk < end; chunk += kChunk) {
    const int64_t chunk_end = Min(chunk + kChunk, end);
    RunningSums(permutation, chunk, chunk_end, x, sums, running);
    for (int t = 0; t < count; ++t) {
      Sum* boundary = boundaries + t * (num_patterns + 1);
      const Sum* sum = running + t * kChunk - chunk;
      int64_t p = next[t];
      for (; p <= num_patterns && offsets[t][p] < chunk_end; ++p) boundary[p] = sum[offsets[t][p]];
      next[t] = p;
    }
  }
  for (int t = 0; t < count; ++t) {
    for (int64_t p = next[t]; p <= num_patterns; ++p) {
      boundaries[t * (num_patterns + 1) + p] = sums[t];
    }
  }
}

double TermOf(const Layer*, int64_t sum, double unit, int64_t) { return (double)sum * unit; }
double TermOf(const Layer*, int32_t sum, double, int64_t) { return (double)sum; }

float FinishRow(const Layer* layer, int64_t sum, double total, double unit, int64_t n) {
  if (!PerGroup(layer)) total = (double)sum * unit * (double)ColumnScale(layer, n);
  return (float)total + ColumnBias(layer, n);
}

// docs/op_spec.md: each operation in float32.
float FinishRow(const Layer* layer, int32_t sum, double total, double s, int64_t n) {
  const float bias = ColumnBias(layer, n);
  if (PerGroup(layer)) return (float)total / (float)s + bias;
  return (float)sum / (float)s * ColumnScale(layer, n) + bias;
}

// Column blocks from `block` on; their planes are at most kStreams.
template <typename Sum, typename Index>
void GemvBlocks(const Layer* layer, int64_t block, int num_blocks, const int32_t* x, double factor,
                int64_t begin, int64_t end, float* y, const GemvScratch<Sum>& scratch) {
  const DigitSigns signs = DigitSignsOf(layer);
  const int64_t width = layer->block_width;
  const int64_t num_patterns = layer->num_patterns;
  const int num_planes = (int)layer->num_planes;
  const int count = num_blocks * num_planes;
  const Index* permutation[kStreams];
  const uint32_t* offsets[kStreams];
  memset(scratch.totals, 0, sizeof(double) * kStreams * kMaxBlockWidth);
  for (int64_t group = 0; group < layer->num_groups; ++group) {
    for (int t = 0; t < kStreams; ++t) {
      const int stream = t < count ? t : 0;
      const int64_t stream_block = block + stream / num_planes;
      permutation[t] = PermutationOf(layer, stream % num_planes, stream_block, Index{0});
      offsets[t] = SegmentOffsets(layer, stream % num_planes, stream_block, group);
    }
    BoundarySums(permutation, offsets, count, num_patterns, x, scratch.running, scratch.boundaries);
    for (int t = 0; t < count; ++t) {
      const Sum* boundary = scratch.boundaries + t * (num_patterns + 1);
      for (int64_t p = 0; p < num_patterns; ++p) scratch.u[p] = boundary[p + 1] - boundary[p];
      Sum* product = scratch.products + t * kMaxBlockWidth;
      if (layer->algorithm == Algorithm::rsr) {
        PatternMatrixProduct(signs, width, num_patterns, scratch.u, product);
      } else {
        FoldProduct(signs, width, num_patterns, scratch.u, product);
      }
    }
    for (int b = 0; b < num_blocks; ++b) {
      Sum* product = scratch.products + b * num_planes * kMaxBlockWidth;
      const int64_t n = (block + b) * width;
      for (int64_t j = 0; j < width; ++j) {
        if (num_planes == 2) product[j] -= product[kMaxBlockWidth + j];
        if (PerGroup(layer) && n + j < layer->N) {
          scratch.totals[b * kMaxBlockWidth + j] +=
              TermOf(layer, product[j], factor, n) * (double)layer->scale[group * layer->N + n + j];
        }
      }
    }
  }
  for (int b = 0; b < num_blocks; ++b) {
    const Sum* product = scratch.products + b * num_planes * kMaxBlockWidth;
    const int64_t first = (block + b) * width;
    for (int64_t n = first < begin ? begin : first; n < Min(first + width, end); ++n) {
      y[n] = FinishRow(layer, product[n - first], scratch.totals[b * kMaxBlockWidth + n - first],
                       factor, n);
    }
  }
}

template <typename Sum, typename Index>
void GemvRows(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
              float* y, void* memory) {
  const GemvScratch<Sum> scratch = GemvScratchAt<Sum>(layer, memory);
  const double* factors =
      (const double*)((const char*)prepared + rows * (int64_t)GemvRowBytes(layer));
  const int64_t last = (end + layer->block_width - 1) / layer->block_width;
  for (int64_t block = begin / layer->block_width; block < last;) {
    const int64_t step = Min(last - block, kStreams / layer->num_planes);
    for (int64_t row = 0; row < rows; ++row) {
      const char* x = (const char*)prepared + (size_t)row * GemvRowBytes(layer);
      GemvBlocks<Sum, Index>(layer, block, (int)step, (const int32_t*)x, factors[row], begin, end,
                             y + row * layer->N, scratch);
    }
    block += step;
  }
}

template <typename Sum>
void Gemv(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
          int64_t end, float* y, void* scratch) {
  if (layer->permutation_u16) {
    GemvRows<Sum, uint16_t>(layer, rows, prepared, begin, end, y, scratch);
  } else {
    GemvRows<Sum, uint32_t>(layer, rows, prepared, begin, end, y, scratch);
  }
}

int64_t ExactDepth(const Layer*) { return 0; }  // integer sums, float64 where scales are per group

}  // namespace
}  // namespace avx2

extern const Kernel rsr_gemv_float_avx2 = {
    "rsr_gemv_float_avx2",
    IndexFormat::rsr,
    Activation::float32,
    Isa::avx2,
    avx2::AcceptsFloat,
    /*max_rows=*/avx2::kGemvMaxRows,
    /*column_step=*/1,
    avx2::ExactDepth,
    /*fixed_point=*/true,
    avx2::GemvPreparedFloat,
    avx2::GemvPrepareFloat,
    avx2::GemvScratchBytes<int64_t>,
    avx2::Gemv<int64_t>,
};

extern const Kernel rsr_gemv_int8_avx2 = {
    "rsr_gemv_int8_avx2",
    IndexFormat::rsr,
    Activation::int8,
    Isa::avx2,
    avx2::AcceptsInt8,
    /*max_rows=*/avx2::kGemvMaxRows,
    /*column_step=*/1,
    avx2::ExactDepth,
    /*fixed_point=*/false,
    avx2::GemvPreparedInt8,
    avx2::GemvPrepareInt8,
    avx2::GemvScratchBytes<int32_t>,
    avx2::Gemv<int32_t>,
};

}  // namespace onnx_ternary
