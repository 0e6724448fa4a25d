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
// several at a time through loops of a constant count (Zen 5, 2 to 3 times the portable kernel).
//
// Ranges. int8: S is a sum of distinct inputs, |S| <= 128 K < 2^31 for K < 2^24, as is any partial
// sum of a block product. Float: |S| <= 2^30 K < 2^54. Batched int8 adds int16 over at most 255
// rows, |.| <= 255 * 128 = 32640, then widens.
#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/quantize_row.h"
#include "common/rsr_patterns.h"
#include "common/scalar.h"
#include "kernel_list.h"

#if defined(__GNUC__)
#define OTN_IN_GENERAL_REGISTER(value) asm("" : "+r"(value))
#else
#define OTN_IN_GENERAL_REGISTER(value)
#endif

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kMaxBlockWidth = 16;
constexpr int64_t kGemvMaxRows = 4;

const uint16_t* PermutationOf(const Layer* layer, int64_t plane, int64_t block, uint16_t) {
  return layer->permutation_u16 + (plane * layer->num_blocks + block) * layer->K;
}
const uint32_t* PermutationOf(const Layer* layer, int64_t plane, int64_t block, uint32_t) {
  return layer->permutation_u32 + (plane * layer->num_blocks + block) * layer->K;
}

// ---------------------------------------------------------------------------------------------
// Block products of integers, one row: loops that compilers vectorize.

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

void GemvPrepareFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
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

void GemvPrepareInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  const int64_t K = layer->K;
  double* s = (double*)((char*)prepared + (size_t)rows * GemvRowBytes(layer));
  int8_t* narrow = (int8_t*)(s + rows);
  for (int64_t row = 0; row < rows; ++row, x += K) {
    int32_t* q = (int32_t*)((char*)prepared + (size_t)row * GemvRowBytes(layer));
    s[row] = (double)QuantizeActivationRow(layer, call, x, narrow);
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
OTN_NEVER_INLINE void RunningSums(const Index* const* permutation, int64_t begin, int64_t end,
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
    OTN_IN_GENERAL_REGISTER(sum0);
    OTN_IN_GENERAL_REGISTER(sum1);
    OTN_IN_GENERAL_REGISTER(sum2);
    OTN_IN_GENERAL_REGISTER(sum3);
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
      const Sum* sum = running + t * kChunk;
      int64_t p = next[t];
      for (; p <= num_patterns && offsets[t][p] < chunk_end; ++p) {
        boundary[p] = sum[offsets[t][p] - chunk];
      }
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

// docs/op_spec.md: each operation in float32, but for totals of groups, which may lie outside it.
float FinishRow(const Layer* layer, int32_t sum, double total, double s, int64_t n) {
  const float bias = ColumnBias(layer, n);
  if (PerGroup(layer)) return (float)(total / s) + bias;
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

// ---------------------------------------------------------------------------------------------
// Batched.
//
// prepared: x (K, lanes) float32 or int16, zero past the rows | s (rows,) float32 and one quantized
// row, int8 only
// scratch: segmented sums (num_patterns, lanes) | products (16, lanes) | totals (16, lanes) |
// patterns ordered by segment length (num_patterns,) uint32

constexpr int64_t kGemmMaxRows = 32;

struct Float32 {
  typedef float Value;  // of x
  typedef float Sum;
  typedef float Total;
  typedef __m256 Vector;
  static constexpr int kPerVector = 8;
  static constexpr int64_t kLongestRun = INT64_MAX;

  static Vector Zero() { return _mm256_setzero_ps(); }
  static Vector AddRow(Vector sum, const float* row) {
    return _mm256_add_ps(sum, _mm256_load_ps(row));
  }
  static void StoreSums(float* out, Vector sum) { _mm256_store_ps(out, sum); }
  static void AddSums(float* out, Vector sum) {
    _mm256_store_ps(out, _mm256_add_ps(_mm256_load_ps(out), sum));
  }
  static __m256 Load(const float* p) { return _mm256_load_ps(p); }
  static void Store(float* p, __m256 v) { _mm256_store_ps(p, v); }
  static __m256 Plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 Minus(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
  static __m256 ZeroSum() { return _mm256_setzero_ps(); }
  typedef __m256 SumVector;
};

struct Int8 {
  typedef int16_t Value;
  typedef int32_t Sum;
  typedef double Total;
  typedef __m256i Vector;
  static constexpr int kPerVector = 16;
  static constexpr int64_t kLongestRun = 255;

  static Vector Zero() { return _mm256_setzero_si256(); }
  static Vector AddRow(Vector sum, const int16_t* row) {
    return _mm256_add_epi16(sum, _mm256_load_si256((const __m256i*)row));
  }
  static __m256i Low(Vector sum) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)); }
  static __m256i High(Vector sum) {
    return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1));
  }
  static void StoreSums(int32_t* out, Vector sum) {
    Store(out, Low(sum));
    Store(out + 8, High(sum));
  }
  static void AddSums(int32_t* out, Vector sum) {
    Store(out, Plus(Load(out), Low(sum)));
    Store(out + 8, Plus(Load(out + 8), High(sum)));
  }
  static __m256i Load(const int32_t* p) { return _mm256_load_si256((const __m256i*)p); }
  static void Store(int32_t* p, __m256i v) { _mm256_store_si256((__m256i*)p, v); }
  static __m256i Plus(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
  static __m256i Minus(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
  static __m256i ZeroSum() { return _mm256_setzero_si256(); }
  typedef __m256i SumVector;
};

// Rows side by side: as few as hold the tile, since unused lanes cost as much as used ones.
template <typename T>
int GemmLanes(int64_t rows) {
  if (rows <= T::kPerVector) return T::kPerVector;
  return rows <= 16 ? 16 : 32;
}

constexpr int kLongest = 48;  // segments from this length on share a bucket

// Patterns ordered by the length of their segments; those of length l < kLongest are
// order[begin[l]] to order[begin[l + 1]], longer ones follow.
void OrderByLength(const uint32_t* offsets, int64_t num_patterns, uint32_t* order,
                   uint32_t* begin) {
  uint32_t next[kLongest + 1] = {};
  for (int64_t p = 0; p < num_patterns; ++p) {
    const uint32_t length = offsets[p + 1] - offsets[p];
    ++next[length < kLongest ? length : kLongest];
  }
  uint32_t sum = 0;
  for (int l = 0; l <= kLongest; ++l) {
    begin[l] = sum;
    sum += next[l];
    next[l] = begin[l];
  }
  begin[kLongest + 1] = sum;
  for (int64_t p = 0; p < num_patterns; ++p) {
    const uint32_t length = offsets[p + 1] - offsets[p];
    order[next[length < kLongest ? length : kLongest]++] = (uint32_t)p;
  }
}

// Sums of one segment of any length.
template <typename T, int kLanes, typename Index>
void OneSegment(const Index* rows, int64_t length, const typename T::Value* x,
                typename T::Sum* sums) {
  for (int lane = 0; lane < kLanes; lane += T::kPerVector) {
    T::StoreSums(sums + lane, T::Zero());
    for (int64_t begin = 0; begin < length; begin += T::kLongestRun) {
      const int64_t end = length - begin < T::kLongestRun ? length : begin + T::kLongestRun;
      typename T::Vector even = T::Zero(), odd = T::Zero();
      int64_t i = begin;
      for (; i + 2 <= end; i += 2) {
        even = T::AddRow(even, x + (int64_t)rows[i] * kLanes + lane);
        odd = T::AddRow(odd, x + (int64_t)rows[i + 1] * kLanes + lane);
      }
      if (i < end) even = T::AddRow(even, x + (int64_t)rows[i] * kLanes + lane);
      T::AddSums(sums + lane, even);
      T::AddSums(sums + lane, odd);
    }
  }
}

// sums (num_patterns, kLanes) of x (K, kLanes). Four accumulators: a vector of each of four
// segments, two vectors of two, or four of one.
template <typename T, int kLanes, typename Index>
void SegmentedSums(const Index* permutation, const uint32_t* offsets, int64_t num_patterns,
                   const typename T::Value* x, typename T::Sum* sums, uint32_t* order) {
  constexpr int kVectors = kLanes / T::kPerVector;
  constexpr int kSegments = 4 / kVectors;
  constexpr int kLane1 = 1 % kVectors * T::kPerVector;
  constexpr int kLane2 = 2 % kVectors * T::kPerVector;
  constexpr int kLane3 = 3 % kVectors * T::kPerVector;
  uint32_t begin[kLongest + 2];
  OrderByLength(offsets, num_patterns, order, begin);
  for (uint32_t i = begin[0]; i < begin[1]; ++i) {
    memset(sums + (int64_t)order[i] * kLanes, 0, kLanes * sizeof(typename T::Sum));
  }
  for (int64_t length = 1; length < kLongest; ++length) {
    uint32_t i = begin[length];
    for (; i + kSegments <= begin[length + 1]; i += kSegments) {
      const int64_t p0 = order[i];
      const int64_t p1 = order[i + 1 / kVectors];
      const int64_t p2 = order[i + 2 / kVectors];
      const int64_t p3 = order[i + 3 / kVectors];
      const Index* rows0 = permutation + offsets[p0];
      const Index* rows1 = permutation + offsets[p1];
      const Index* rows2 = permutation + offsets[p2];
      const Index* rows3 = permutation + offsets[p3];
      typename T::Vector sum0 = T::Zero(), sum1 = T::Zero(), sum2 = T::Zero(), sum3 = T::Zero();
      for (int64_t j = 0; j < length; ++j) {
        sum0 = T::AddRow(sum0, x + (int64_t)rows0[j] * kLanes);
        sum1 = T::AddRow(sum1, x + (int64_t)rows1[j] * kLanes + kLane1);
        sum2 = T::AddRow(sum2, x + (int64_t)rows2[j] * kLanes + kLane2);
        sum3 = T::AddRow(sum3, x + (int64_t)rows3[j] * kLanes + kLane3);
      }
      T::StoreSums(sums + p0 * kLanes, sum0);
      T::StoreSums(sums + p1 * kLanes + kLane1, sum1);
      T::StoreSums(sums + p2 * kLanes + kLane2, sum2);
      T::StoreSums(sums + p3 * kLanes + kLane3, sum3);
    }
    for (; i < begin[length + 1]; ++i) {
      const int64_t p = order[i];
      OneSegment<T, kLanes>(permutation + offsets[p], length, x, sums + p * kLanes);
    }
  }
  for (uint32_t i = begin[kLongest]; i < begin[kLongest + 1]; ++i) {
    const int64_t p = order[i];
    OneSegment<T, kLanes>(permutation + offsets[p], (int64_t)offsets[p + 1] - offsets[p], x,
                          sums + p * kLanes);
  }
}

// Adds `count` rows of sums to out (kLanes,), or subtracts them.
template <typename T, int kLanes>
void AddRows(const typename T::Sum* rows, int64_t count, bool subtract, typename T::Sum* out) {
  constexpr int kVectors = kLanes / 8;
  constexpr int kLane1 = 1 % kVectors * 8, kLane2 = 2 % kVectors * 8, kLane3 = 3 % kVectors * 8;
  typename T::SumVector sum0 = T::ZeroSum(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  const int64_t numbers = count * kLanes;
  int64_t i = 0;
  for (; i + 32 <= numbers; i += 32) {
    sum0 = T::Plus(sum0, T::Load(rows + i));
    sum1 = T::Plus(sum1, T::Load(rows + i + 8));
    sum2 = T::Plus(sum2, T::Load(rows + i + 16));
    sum3 = T::Plus(sum3, T::Load(rows + i + 24));
  }
  if (i < numbers) sum0 = T::Plus(sum0, T::Load(rows + i));
  if (i + 8 < numbers) sum1 = T::Plus(sum1, T::Load(rows + i + 8));
  if (i + 16 < numbers) sum2 = T::Plus(sum2, T::Load(rows + i + 16));
  const auto add = [&](int lane, typename T::SumVector sum) {
    T::Store(out + lane,
             subtract ? T::Minus(T::Load(out + lane), sum) : T::Plus(T::Load(out + lane), sum));
  };
  add(0, sum0);
  add(kLane1, sum1);
  add(kLane2, sum2);
  add(kLane3, sum3);
}

// product (block_width, kLanes) plus, or minus for the second plane, the block product of sums
// (overwritten by RSR++).
template <typename T, int kLanes>
void BatchedBlockProduct(const Layer* layer, const DigitSigns& signs, typename T::Sum* sums,
                         bool subtract, typename T::Sum* product) {
  int64_t run = layer->num_patterns;
  const bool fold = layer->algorithm != Algorithm::rsr;
  for (int64_t j = 0; j < layer->block_width; ++j, product += kLanes) {
    const int64_t patterns = fold ? run : layer->num_patterns;
    run /= signs.base;
    for (int64_t p = 0; p < patterns; p += run * signs.base) {
      AddRows<T, kLanes>(sums + (p + (signs.base - 1) * run) * kLanes, run, subtract, product);
      if (signs.sign[0]) AddRows<T, kLanes>(sums + p * kLanes, run, !subtract, product);
    }
    if (!fold) continue;
    const int64_t numbers = run * kLanes;
    if (signs.base == 2) {
      for (int64_t i = 0; i < numbers; i += 8) {
        T::Store(sums + i, T::Plus(T::Load(sums + i), T::Load(sums + numbers + i)));
      }
    } else {
      for (int64_t i = 0; i < numbers; i += 8) {
        T::Store(sums + i, T::Plus(T::Plus(T::Load(sums + i), T::Load(sums + numbers + i)),
                                   T::Load(sums + 2 * numbers + i)));
      }
    }
  }
}

template <typename T>
size_t LaneBytes(const Layer* layer, int64_t rows) {
  return RoundUp64((size_t)(layer->K * GemmLanes<T>(rows)) * sizeof(typename T::Value));
}

size_t GemmPreparedFloat(const Layer* layer, int64_t rows) {
  return LaneBytes<Float32>(layer, rows);
}

size_t GemmPreparedInt8(const Layer* layer, int64_t rows) {
  return LaneBytes<Int8>(layer, rows) + RoundUp64((size_t)rows * sizeof(float)) + (size_t)layer->K;
}

void GemmPrepareFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  const int lanes = GemmLanes<Float32>(rows);
  float* out = (float*)prepared;
  for (int64_t k = 0; k < layer->K; ++k, out += lanes) {
    for (int64_t row = 0; row < rows; ++row) out[row] = x[row * layer->K + k];
    for (int64_t row = rows; row < lanes; ++row) out[row] = 0.0f;
  }
}

void GemmPrepareInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  const int lanes = GemmLanes<Int8>(rows);
  const int64_t K = layer->K;
  char* behind = (char*)prepared + LaneBytes<Int8>(layer, rows);
  float* s = (float*)behind;
  int8_t* q = (int8_t*)(behind + RoundUp64((size_t)rows * sizeof(float)));
  if (rows < lanes) memset(prepared, 0, LaneBytes<Int8>(layer, rows));
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantizeActivationRow(layer, call, x + row * K, q);
    int16_t* out = (int16_t*)prepared + row;
    for (int64_t k = 0; k < K; ++k) out[k * lanes] = q[k];
  }
}

struct GemmLayout {
  size_t products, totals, order, bytes;  // offsets; the segmented sums begin at 0
};

template <typename T>
GemmLayout GemmLayoutOf(const Layer* layer, int64_t lanes) {
  const size_t patterns = (size_t)layer->num_patterns;
  const size_t numbers = kMaxBlockWidth * (size_t)lanes;
  GemmLayout layout;
  layout.products = RoundUp64(patterns * (size_t)lanes * sizeof(typename T::Sum));
  layout.totals = layout.products + numbers * sizeof(typename T::Sum);
  layout.order = layout.totals + numbers * sizeof(typename T::Total);
  layout.bytes = layout.order + RoundUp64(patterns * sizeof(uint32_t));
  return layout;
}

template <typename T>
size_t GemmScratchBytes(const Layer* layer, int64_t rows, int64_t) {
  return GemmLayoutOf<T>(layer, GemmLanes<T>(rows)).bytes;
}

float FinishLane(const Layer* layer, float sum, float total, const float*, int64_t, int64_t n) {
  return (PerGroup(layer) ? total : sum * ColumnScale(layer, n)) + ColumnBias(layer, n);
}

float FinishLane(const Layer* layer, int32_t sum, double total, const float* s, int64_t row,
                 int64_t n) {
  return FinishRow(layer, sum, total, (double)s[row], n);
}

template <typename T, int kLanes, typename Index>
void GemmBlocks(const Layer* layer, int64_t rows, const typename T::Value* x, const float* s,
                int64_t begin, int64_t end, float* y, void* scratch) {
  typedef typename T::Sum Sum;
  typedef typename T::Total Total;
  const GemmLayout layout = GemmLayoutOf<T>(layer, kLanes);
  Sum* sums = (Sum*)scratch;
  Sum* products = (Sum*)((char*)scratch + layout.products);
  Total* totals = (Total*)((char*)scratch + layout.totals);
  uint32_t* order = (uint32_t*)((char*)scratch + layout.order);
  const DigitSigns signs = DigitSignsOf(layer);
  const int64_t width = layer->block_width;
  for (int64_t block = begin / width; block * width < end; ++block) {
    const int64_t n = block * width;
    const int64_t num_columns = Min(width, layer->N - n);
    if (PerGroup(layer)) memset(totals, 0, kMaxBlockWidth * kLanes * sizeof(Total));
    for (int64_t group = 0; group < layer->num_groups; ++group) {
      memset(products, 0, (size_t)width * kLanes * sizeof(Sum));
      for (int64_t plane = 0; plane < layer->num_planes; ++plane) {
        SegmentedSums<T, kLanes>(PermutationOf(layer, plane, block, Index{0}),
                                 SegmentOffsets(layer, plane, block, group), layer->num_patterns, x,
                                 sums, order);
        BatchedBlockProduct<T, kLanes>(layer, signs, sums, plane == 1, products);
      }
      if (!PerGroup(layer)) break;
      for (int64_t j = 0; j < num_columns; ++j) {
        const Total scale = (Total)layer->scale[group * layer->N + n + j];
        for (int64_t i = j * kLanes; i < (j + 1) * kLanes; ++i) {
          totals[i] += (Total)products[i] * scale;
        }
      }
    }
    const int64_t first = n < begin ? begin - n : 0;
    const int64_t last = Min(num_columns, end - n);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t j = first; j < last; ++j) {
        const int64_t i = j * kLanes + row;
        y[row * layer->N + n + j] = FinishLane(layer, products[i], totals[i], s, row, n + j);
      }
    }
  }
}

template <typename T, int kLanes>
void GemmLanesOf(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
                 float* y, void* scratch) {
  const typename T::Value* x = (const typename T::Value*)prepared;
  const float* s = (const float*)((const char*)prepared + LaneBytes<T>(layer, rows));
  if (layer->permutation_u16) {
    GemmBlocks<T, kLanes, uint16_t>(layer, rows, x, s, begin, end, y, scratch);
  } else {
    GemmBlocks<T, kLanes, uint32_t>(layer, rows, x, s, begin, end, y, scratch);
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  switch (GemmLanes<Float32>(rows)) {
    case 8:
      return GemmLanesOf<Float32, 8>(layer, rows, prepared, begin, end, y, scratch);
    case 16:
      return GemmLanesOf<Float32, 16>(layer, rows, prepared, begin, end, y, scratch);
    default:
      return GemmLanesOf<Float32, 32>(layer, rows, prepared, begin, end, y, scratch);
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  if (GemmLanes<Int8>(rows) == 16) {
    GemmLanesOf<Int8, 16>(layer, rows, prepared, begin, end, y, scratch);
  } else {
    GemmLanesOf<Int8, 32>(layer, rows, prepared, begin, end, y, scratch);
  }
}

// Every sum adds each of a group's inputs at most once, whatever the order.
int64_t GemmDepth(const Layer* layer) { return Min(layer->group_size, layer->K); }

}  // namespace
}  // namespace avx2

extern const Kernel rsr_gemv_float_avx2 = {
    "rsr_gemv_float_avx2",
    IndexFormat::rsr,
    Activation::float32,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemvMaxRows,
    /*column_step=*/1,
    ExactDepth,
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
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemvMaxRows,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    avx2::GemvPreparedInt8,
    avx2::GemvPrepareInt8,
    avx2::GemvScratchBytes<int32_t>,
    avx2::Gemv<int32_t>,
};

extern const Kernel rsr_gemm_float_avx2 = {
    "rsr_gemm_float_avx2",
    IndexFormat::rsr,
    Activation::float32,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/1,
    avx2::GemmDepth,
    /*fixed_point=*/false,
    avx2::GemmPreparedFloat,
    avx2::GemmPrepareFloat,
    avx2::GemmScratchBytes<avx2::Float32>,
    avx2::GemmFloat,
};

extern const Kernel rsr_gemm_int8_avx2 = {
    "rsr_gemm_int8_avx2",
    IndexFormat::rsr,
    Activation::int8,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/1,
    ExactDepth,
    /*fixed_point=*/false,
    avx2::GemmPreparedInt8,
    avx2::GemmPrepareInt8,
    avx2::GemmScratchBytes<avx2::Int8>,
    avx2::GemmInt8,
};

}  // namespace onnx_ternary
