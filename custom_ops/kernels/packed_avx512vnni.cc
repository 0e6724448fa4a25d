// Kernels for `packed`, AVX-512 VNNI: decode and vpdpbusd (four products of unsigned codes and
// signed activations added to an int32), for int8 activations and for float activations as fixed
// point of three int8 digits. Rows share the unpacking of codes.
//
// Layout: docs/index_format.md section 2.1 with blocks of 128 inputs. One block of one column is 32
// bytes; bits 2j..2j+1 of byte i are the code (level + 1) of input 32 j + i. Codes come in tiles of
// four columns: (column tile, block, 4 columns, 32 bytes), one stream; a register holds two
// columns. Loads of codes are unaligned (memory-mapped files); everything in prepared and scratch
// is 64-byte aligned.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files), d is an int8 in [-128, 127], and vpdpbusd
// does not saturate. A lane takes 16 products a block, at most 16 * 3 * 128 in magnitude; K < 2^24
// has at most 2^17 blocks: below 2^30. The sum over a column's eight lanes may wrap, but
// sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in magnitude, and so exact
// modulo 2^32.
//
// C headers and intrinsics only, everything in the anonymous namespace: no weak symbol compiled for
// AVX-512 may leave this file.
#if defined(__GNUC__) && !defined(__clang__)
// gcc 12's own AVX-512 headers warn (gcc bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "quantise_row.h"

namespace onnx_ternary {
namespace avx512vnni {
namespace {

constexpr int64_t kBlock = 128;      // inputs
constexpr int64_t kBlockBytes = 32;  // codes of one column
constexpr int64_t kTile = 4;         // columns
constexpr int64_t kTileBlockBytes = kTile * kBlockBytes;
constexpr int64_t kPrefetchBytes = 3072;
// Codes of a column chunk, read once for every group of rows: they stay in L2.
constexpr int64_t kChunkBytes = 128 << 10;

#if defined(__GNUC__)
#define OTN_UNROLL16 _Pragma("GCC unroll 16")
#else
#define OTN_UNROLL16
#endif

size_t RoundUp64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }
int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

bool AcceptsTwoBit128(const Layer* layer) {
  return layer->index_format == IndexFormat::packed && layer->storage == Storage::two_bit &&
         layer->block_size == kBlock;
}

bool AcceptsFloat(const Layer* layer) {
  return layer->activation == Activation::float32 && AcceptsTwoBit128(layer);
}

bool AcceptsInt8(const Layer* layer) {
  return layer->activation == Activation::int8 && AcceptsTwoBit128(layer);
}

bool PerGroup(const Layer* layer) { return layer->scale_kind == ScaleKind::per_group; }

int64_t NumGroups(const Layer* layer) { return PerGroup(layer) ? layer->num_groups : 1; }

int64_t BlocksPerGroup(const Layer* layer) {
  return PerGroup(layer) ? layer->group_size / kBlock : layer->num_k_blocks;
}

__mmask8 FirstFour(int64_t count) { return (__mmask8)(count >= 4 ? 15u : (1u << count) - 1u); }

// Four floats of which the first `count` lie in the array; the others are zero.
__m128 LoadFloats(const float* p, int64_t count) { return _mm_maskz_loadu_ps(FirstFour(count), p); }

void StoreFloats(float* p, __m128 v, int64_t count) { _mm_mask_storeu_ps(p, FirstFour(count), v); }

// Scales of columns n..n+3; not for scales per group.
__m128 LoadScale(const Layer* layer, int64_t n) {
  if (layer->scale_kind == ScaleKind::per_tensor) return _mm_set1_ps(layer->scale[0]);
  return LoadFloats(layer->scale + n, layer->N - n);
}

__m128 LoadBias(const Layer* layer, int64_t n) {
  return layer->bias ? LoadFloats(layer->bias + n, layer->N - n) : _mm_setzero_ps();
}

// Scales per group are copied four tiles (a cache line) at a time to scratch, (tiles, groups, 4
// columns): read in place, the groups of a column lie N floats apart and evict each other from L1
// where N is a multiple of a power of two.
constexpr int64_t kStripTiles = 4;

size_t StripBytes(const Layer* layer, int64_t, int64_t) {
  return PerGroup(layer) ? (size_t)(layer->num_groups * kStripTiles * kTile) * sizeof(float) : 0;
}

// Scales of the tile at column n, (groups, 4); fills the strip at the first tile of each.
const float* StripScales(const Layer* layer, int64_t begin, int64_t n, void* scratch) {
  const int64_t num_groups = layer->num_groups;
  float* strip = (float*)scratch;
  const int64_t tile = (n - begin) / kTile % kStripTiles;
  if (tile == 0) {
    for (int64_t g = 0; g < num_groups; ++g) {
      const float* row = layer->scale + g * layer->N;
      for (int64_t t = 0; t < kStripTiles && n + t * kTile < layer->N; ++t) {
        const int64_t column = n + t * kTile;
        _mm_store_ps(strip + (t * num_groups + g) * kTile,
                     LoadFloats(row + column, layer->N - column));
      }
    }
  }
  return strip + tile * num_groups * kTile;
}

// Four rows by four columns, row by row in one register; rows from `count` on are not touched.
void StoreTile(float* y, int64_t N, __m512 tile, int64_t count, int64_t num_columns) {
  StoreFloats(y, _mm512_castps512_ps128(tile), num_columns);
  if (count > 1) StoreFloats(y + N, _mm512_extractf32x4_ps(tile, 1), num_columns);
  if (count > 2) StoreFloats(y + 2 * N, _mm512_extractf32x4_ps(tile, 2), num_columns);
  if (count > 3) StoreFloats(y + 3 * N, _mm512_extractf32x4_ps(tile, 3), num_columns);
}

// A number a row, of which `count` lie in the array, for the four columns of each.
__m512i RowsI32(const int32_t* p, int64_t count) {
  const __m512i rows = _mm512_castsi128_si512(_mm_maskz_loadu_epi32(FirstFour(count), p));
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                  rows);
}

__m512 RowsF32(const float* p, int64_t count) {
  return _mm512_castsi512_ps(RowsI32((const int32_t*)p, count));
}

// Two rows by four columns in float64.
struct TwoByFour {
  __m512d rows01, rows23;
};

TwoByFour Widen(__m512i tile) {
  return {_mm512_cvtepi32_pd(_mm512_castsi512_si256(tile)),
          _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(tile, 1))};
}

__m512 Narrow(TwoByFour tile) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(tile.rows01)),
                            _mm512_cvtpd_ps(tile.rows23), 1);
}

// With scales per group the weighted sums are taken in float64, in the order of the groups.
void AddGroup(TwoByFour* total, TwoByFour sum, __m128 scale) {
  const __m512d wide = _mm512_broadcast_f64x4(_mm256_cvtps_pd(scale));
  total->rows01 = _mm512_add_pd(total->rows01, _mm512_mul_pd(sum.rows01, wide));
  total->rows23 = _mm512_add_pd(total->rows23, _mm512_mul_pd(sum.rows23, wide));
}

// Sum of int8 values, exact: num_bytes is a multiple of 128.
int32_t SumBytes(const int8_t* q, int64_t num_bytes) {
  const __m512i one = _mm512_set1_epi8(1);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < num_bytes; i += 64) {
    sum = _mm512_dpbusd_epi32(sum, one, _mm512_load_si512(q + i));
  }
  return _mm512_reduce_add_epi32(sum);
}

// acc0 += dot(field0, *q), acc1 += dot(field1, *q), q (32,) int8 for both halves of the registers.
// gcc 12 loads ahead and spills two thirds of twenty-four accumulators (20 us instead of 16 for
// eight float rows of K = N = 512 on Zen 5); one assembler statement keeps them in place.
// Sanitizers cannot see its loads.
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
#define OTN_DOT(acc0, acc1, field0, field1, q)                                        \
  do {                                                                                \
    const __m512i d = _mm512_broadcast_i64x4(_mm256_load_si256((const __m256i*)(q))); \
    (acc0) = _mm512_dpbusd_epi32((acc0), (field0), d);                                \
    (acc1) = _mm512_dpbusd_epi32((acc1), (field1), d);                                \
  } while (0)
#else
#define OTN_DOT(acc0, acc1, field0, field1, q)                  \
  do {                                                          \
    __m512i d;                                                  \
    __asm__ volatile(                                           \
        "vbroadcasti64x4 %5, %2\n\t"                            \
        "vpdpbusd %2, %3, %0\n\t"                               \
        "vpdpbusd %2, %4, %1"                                   \
        : "+v"(acc0), "+v"(acc1), "=&v"(d)                      \
        : "v"(field0), "v"(field1), "m"(*(const __m256i*)(q))); \
  } while (0)
#endif

// sums: (kDigits, kRows / 4, 4 rows, 4 columns) int32, sum(code * q) over blocks [begin, end) of
// one column tile modulo 2^32; zero past kRows. q: (num_k_blocks, kDigits, kRows, 128) int8.
template <int kDigits, int kRows>
inline void DotVectors(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                       __m512i* sums) {
  constexpr int kVectors = kDigits * kRows;
  // Eight chains of additions at least, to hide their latency.
  constexpr int kChains = kVectors == 1 ? 4 : kVectors <= 3 ? 2 : 1;
  const __m512i mask3 = _mm512_set1_epi8(3);
  __m512i acc[kVectors][2][kChains];
  OTN_UNROLL16
  for (int v = 0; v < kVectors; ++v) {
    OTN_UNROLL16
    for (int i = 0; i < kChains; ++i) acc[v][0][i] = acc[v][1][i] = _mm512_setzero_si512();
  }
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = tile_codes + b * kTileBlockBytes;
    const int8_t* q_block = q + b * (kVectors * kBlock);
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    const __m512i v01 = _mm512_loadu_si512(codes);
    const __m512i v23 = _mm512_loadu_si512(codes + 64);
    OTN_UNROLL16
    for (int j = 0; j < 4; ++j) {
      const __m512i field01 = _mm512_and_si512(_mm512_srli_epi16(v01, (unsigned)(2 * j)), mask3);
      const __m512i field23 = _mm512_and_si512(_mm512_srli_epi16(v23, (unsigned)(2 * j)), mask3);
      OTN_UNROLL16
      for (int v = 0; v < kVectors; ++v) {
        OTN_DOT(acc[v][0][j % kChains], acc[v][1][j % kChains], field01, field23,
                q_block + v * kBlock + j * 32);
      }
    }
  }
  constexpr int kQuads = (kRows + 3) / 4;
  const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  OTN_UNROLL16
  for (int quad = 0; quad < kDigits * kQuads; ++quad) {
    __m512i pairs[4];
    OTN_UNROLL16
    for (int i = 0; i < 4; ++i) {
      const int r = quad % kQuads * 4 + i;
      if (r >= kRows) {
        pairs[i] = _mm512_setzero_si512();
        continue;
      }
      const int v = quad / kQuads * kRows + r;
      __m512i a = acc[v][0][0], b = acc[v][1][0];
      OTN_UNROLL16
      for (int chain = 1; chain < kChains; ++chain) {
        a = _mm512_add_epi32(a, acc[v][0][chain]);
        b = _mm512_add_epi32(b, acc[v][1][chain]);
      }
      // Columns 0 and 1 are the halves of a, 2 and 3 those of b. In each 128-bit lane now: column 0
      // (or 1), 2 (or 3), the same, the same.
      pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    const __m512i r01 = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[0], pairs[1]),
                                         _mm512_unpackhi_epi64(pairs[0], pairs[1]));
    const __m512i r23 = _mm512_add_epi32(_mm512_unpacklo_epi64(pairs[2], pairs[3]),
                                         _mm512_unpackhi_epi64(pairs[2], pairs[3]));
    // Lanes 0 and 1 of each belong to columns 0 and 2, lanes 2 and 3 to columns 1 and 3.
    const __m512i even = _mm512_shuffle_i32x4(r01, r23, 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(r01, r23, 0xdd);
    sums[quad] = _mm512_permutexvar_epi32(order, _mm512_add_epi32(even, odd));
  }
}

int64_t ChunkColumns(const Layer* layer) {
  const int64_t tiles = Max(kChunkBytes / (layer->num_k_blocks * kTileBlockBytes), 1);
  return (tiles + kStripTiles - 1) / kStripTiles * kStripTiles * kTile;
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_8x4: up to eight rows a pass. prepared:
//   q     (row groups, num_k_blocks, rows of the group, 128) int8, zero past K
//   sums  (num_groups, rows) int32: sum of q over the group's inputs
//   s     (rows,) float
//   a row in order, before it is spread over the blocks

constexpr int64_t kRowGroup = 8;
constexpr int64_t kInt8MaxRows = 64;

struct Int8Rows {
  size_t sums_offset, s_offset, row_offset, bytes;
};

Int8Rows Int8RowsLayout(const Layer* layer, int64_t rows) {
  const size_t padded_K = (size_t)(layer->num_k_blocks * kBlock);
  Int8Rows layout;
  layout.sums_offset = (size_t)rows * padded_K;
  layout.s_offset =
      layout.sums_offset + RoundUp64((size_t)(rows * NumGroups(layer)) * sizeof(int32_t));
  layout.row_offset = layout.s_offset + RoundUp64((size_t)rows * sizeof(float));
  layout.bytes = layout.row_offset + padded_K;
  return layout;
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8RowsLayout(layer, rows).bytes;
}

void PrepareGemmInt8(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t group_inputs = BlocksPerGroup(layer) * kBlock;
  const int64_t padded_K = num_blocks * kBlock;
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  float* s = (float*)(base + layout.s_offset);
  int8_t* in_order = (int8_t*)(base + layout.row_offset);
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantiseActivationRow(layer, x + row * layer->K, in_order);
    memset(in_order + layer->K, 0, (size_t)(padded_K - layer->K));
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * group_inputs;
      sums[g * rows + row] = SumBytes(in_order + first, Min(group_inputs, padded_K - first));
    }
    const int64_t group_row = row / kRowGroup * kRowGroup;
    const int64_t stride = Min(rows - group_row, kRowGroup) * kBlock;
    int8_t* q = (int8_t*)base + group_row * padded_K + (row - group_row) * kBlock;
    for (int64_t b = 0; b < num_blocks; ++b) {
      memcpy(q + b * stride, in_order + b * kBlock, (size_t)kBlock);
    }
  }
}

// sums: (num_groups, stride) int32.
template <int kRows>
void GemmInt8Rows(const Layer* layer, const int8_t* q, const int32_t* sums, int64_t stride,
                  const float* s, int64_t begin, int64_t end, float* y, void* scratch) {
  constexpr int kQuads = (kRows + 3) / 4;
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = layer->codes + n / kTile * num_blocks * kTileBlockBytes;
    const __m512 bias = _mm512_broadcast_f32x4(LoadBias(layer, n));
    __m512i dot[kQuads];
    if (!PerGroup(layer)) {
      const __m512 scale = _mm512_broadcast_f32x4(LoadScale(layer, n));
      DotVectors<1, kRows>(codes, q, 0, num_blocks, dot);
      for (int i = 0; i < kQuads; ++i) {
        // Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
        const int r = 4 * i;
        const __m512 sum =
            _mm512_cvtepi32_ps(_mm512_sub_epi32(dot[i], RowsI32(sums + r, kRows - r)));
        const __m512 product = _mm512_mul_ps(_mm512_div_ps(sum, RowsF32(s + r, kRows - r)), scale);
        StoreTile(y + r * layer->N + n, layer->N, _mm512_add_ps(product, bias), kRows - r, end - n);
      }
      continue;
    }
    const float* scales = StripScales(layer, begin, n, scratch);
    TwoByFour total[kQuads];
    for (int i = 0; i < kQuads; ++i) total[i] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * blocks_per_group;
      DotVectors<1, kRows>(codes, q, first, Min(first + blocks_per_group, num_blocks), dot);
      for (int i = 0; i < kQuads; ++i) {
        const __m512i sum =
            _mm512_sub_epi32(dot[i], RowsI32(sums + g * stride + 4 * i, kRows - 4 * i));
        AddGroup(&total[i], Widen(sum), _mm_load_ps(scales + g * kTile));
      }
    }
    for (int i = 0; i < kQuads; ++i) {
      const int r = 4 * i;
      // In float64: the weighted sums may lie outside float32.
      const __m512 divisor = RowsF32(s + r, kRows - r);
      const __m512 quotient = Narrow(
          {_mm512_div_pd(total[i].rows01, _mm512_cvtps_pd(_mm512_castps512_ps256(divisor))),
           _mm512_div_pd(total[i].rows23, _mm512_cvtps_pd(_mm512_extractf32x8_ps(divisor, 1)))});
      StoreTile(y + r * layer->N + n, layer->N, _mm512_add_ps(quotient, bias), kRows - r, end - n);
    }
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  using RowsFunction = void (*)(const Layer*, const int8_t*, const int32_t*, int64_t, const float*,
                                int64_t, int64_t, float*, void*);
  static constexpr RowsFunction kFunctions[kRowGroup] = {
      GemmInt8Rows<1>, GemmInt8Rows<2>, GemmInt8Rows<3>, GemmInt8Rows<4>,
      GemmInt8Rows<5>, GemmInt8Rows<6>, GemmInt8Rows<7>, GemmInt8Rows<8>};
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int64_t chunk = ChunkColumns(layer);
  for (int64_t n = begin; n < end; n += chunk) {
    for (int64_t row = 0; row < rows; row += kRowGroup) {
      const int8_t* q = (const int8_t*)base + row * layer->num_k_blocks * kBlock;
      const int32_t* sums = (const int32_t*)(base + layout.sums_offset) + row;
      const float* s = (const float*)(base + layout.s_offset) + row;
      kFunctions[Min(rows - row, kRowGroup) - 1](layer, q, sums, rows, s, n, Min(n + chunk, end),
                                                 y + row * layer->N, scratch);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_float_4x4: rows as 24-bit fixed point, q = round(x * 2^e), three balanced base-256
// digits, each a vector of its own in the loop above; up to four rows a pass.
//
// e is the largest integer with absmax * 2^e <= 8355711 = 127 * (1 + 256 + 65536), so every |q| is
// within three digits of [-128, 127], and absmax * 2^(e + 1) > 8355711: an input is off by at most
// 2^-e / 2 < absmax / 8355711 = absmax * 2^-22.994. Integer-valued inputs up to 2^22 are exact.
// sum(level * q) <= 2^24 * 2^23 is exact in float64, where digits, scale and bias are combined.
//
// prepared:
//   digits  (row groups, num_k_blocks, 3, rows of the group, 128) int8, zero past K
//   sums    (num_groups, 3, rows) int32
//   units   (rows,) float64, 2^-e

constexpr int kDigits = 3;
constexpr int32_t kFixedPointMax = 8355711;
constexpr int64_t kFixedRowGroup = 4;
constexpr int64_t kFixedMaxRows = 16;

struct FixedRows {
  size_t sums_offset, units_offset, bytes;
};

FixedRows FixedRowsLayout(const Layer* layer, int64_t rows) {
  FixedRows layout;
  layout.sums_offset = (size_t)(rows * layer->num_k_blocks * kDigits * kBlock);
  layout.units_offset =
      layout.sums_offset + RoundUp64((size_t)(rows * NumGroups(layer) * kDigits) * sizeof(int32_t));
  layout.bytes = layout.units_offset + RoundUp64((size_t)rows * sizeof(double));
  return layout;
}

size_t FixedPreparedBytes(const Layer* layer, int64_t rows) {
  return FixedRowsLayout(layer, rows).bytes;
}

__mmask16 FirstSixteen(int64_t count) {
  return count >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << Max(count, 0)) - 1u);
}

float AbsMax(const float* x, int64_t count) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i max_bits = _mm512_setzero_si512();
  for (int64_t k = 0; k < count; k += 16) {
    const __m512i bits = _mm512_maskz_loadu_epi32(FirstSixteen(count - k), x + k);
    max_bits = _mm512_max_epi32(max_bits, _mm512_and_si512(bits, magnitude));
  }
  const int32_t largest = _mm512_reduce_max_epi32(max_bits);
  float absmax;
  memcpy(&absmax, &largest, sizeof absmax);
  return absmax;
}

double PowerOfTwo(int exponent) {  // -1022 <= exponent <= 1023
  const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// e as above; 0 for a row of zeros, and some number for NaN and inf, which the op sends elsewhere.
int FixedPointExponent(float absmax) {
  if (!(absmax > 0.0f)) return 0;
  const double wide = (double)absmax;  // normal in float64, also where absmax is denormal
  uint64_t bits;
  memcpy(&bits, &wide, sizeof bits);
  const int exponent = (int)(bits >> 52) - 1023;  // absmax = 1.f * 2^exponent
  if (exponent > 127) return 0;
  const int e = 22 - exponent;
  return wide * PowerOfTwo(e) <= (double)kFixedPointMax ? e : e - 1;
}

void PrepareFixed(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const FixedRows layout = FixedRowsLayout(layer, rows);
  const int64_t K = layer->K;
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  const __m512i half = _mm512_set1_epi32(128);
  const __m512i one = _mm512_set1_epi8(1);
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  double* units = (double*)(base + layout.units_offset);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * K;
    const int64_t group_row = row / kFixedRowGroup * kFixedRowGroup;
    const int64_t stride = Min(rows - group_row, kFixedRowGroup) * kBlock;  // of a digit
    int8_t* digits =
        (int8_t*)base + group_row * num_blocks * kDigits * kBlock + (row - group_row) * kBlock;
    const int e = FixedPointExponent(AbsMax(x_row, K));
    units[row] = PowerOfTwo(-e);
    const __m512 exponent = _mm512_set1_ps((float)e);
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * blocks_per_group;
      __m512i group_sums[kDigits];
      for (int d = 0; d < kDigits; ++d) group_sums[d] = _mm512_setzero_si512();
      for (int64_t b = first; b < Min(first + blocks_per_group, num_blocks); ++b) {
        int8_t* out = digits + b * kDigits * stride;
        for (int64_t i = 0; i < kBlock; i += 16) {
          const int64_t k = b * kBlock + i;
          // Times 2^e, exact in one step also where 2^e is outside float32.
          const __m512 scaled =
              _mm512_scalef_ps(_mm512_maskz_loadu_ps(FirstSixteen(K - k), x_row + k), exponent);
          __m512i rest = _mm512_cvtps_epi32(scaled);  // to nearest
          for (int d = 0; d < kDigits; ++d) {
            // The low byte, read as int8, is the digit; (rest + 128) >> 8 takes it off.
            _mm_store_si128((__m128i*)(out + d * stride + i), _mm512_cvtepi32_epi8(rest));
            rest = _mm512_srai_epi32(_mm512_add_epi32(rest, half), 8);
          }
        }
        for (int d = 0; d < kDigits; ++d) {
          for (int64_t i = 0; i < kBlock; i += 64) {
            group_sums[d] =
                _mm512_dpbusd_epi32(group_sums[d], one, _mm512_load_si512(out + d * stride + i));
          }
        }
      }
      for (int d = 0; d < kDigits; ++d) {
        sums[(g * kDigits + d) * rows + row] = _mm512_reduce_add_epi32(group_sums[d]);
      }
    }
  }
}

// sum(level * q), exact, from the sums of the digits. sums: (3, stride) int32.
template <int kRows>
inline TwoByFour Combine(const __m512i* dot, const int32_t* sums, int64_t stride) {
  const __m512d base = _mm512_set1_pd(256.0);
  TwoByFour total = Widen(_mm512_sub_epi32(dot[2], RowsI32(sums + 2 * stride, kRows)));
  for (int d = 1; d >= 0; --d) {
    const TwoByFour digit = Widen(_mm512_sub_epi32(dot[d], RowsI32(sums + d * stride, kRows)));
    total.rows01 = _mm512_fmadd_pd(total.rows01, base, digit.rows01);
    total.rows23 = _mm512_fmadd_pd(total.rows23, base, digit.rows23);
  }
  return total;
}

// sums: (num_groups, 3, stride) int32.
template <int kRows>
void FixedRowsColumns(const Layer* layer, const int8_t* digits, const int32_t* sums, int64_t stride,
                      const double* units, int64_t begin, int64_t end, float* y, void* scratch) {
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  const __m512d rows_units = _mm512_castpd256_pd512(_mm256_maskz_loadu_pd(FirstFour(kRows), units));
  const TwoByFour unit = {
      _mm512_permutexvar_pd(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), rows_units),
      _mm512_permutexvar_pd(_mm512_setr_epi64(2, 2, 2, 2, 3, 3, 3, 3), rows_units)};
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = layer->codes + n / kTile * num_blocks * kTileBlockBytes;
    const float* scales = PerGroup(layer) ? StripScales(layer, begin, n, scratch) : nullptr;
    TwoByFour total = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * blocks_per_group;
      __m512i dot[kDigits];
      DotVectors<kDigits, kRows>(codes, digits, first, Min(first + blocks_per_group, num_blocks),
                                 dot);
      AddGroup(&total, Combine<kRows>(dot, sums + g * kDigits * stride, stride),
               scales ? _mm_load_ps(scales + g * kTile) : LoadScale(layer, n));
    }
    const __m512d bias = _mm512_broadcast_f64x4(_mm256_cvtps_pd(LoadBias(layer, n)));
    total.rows01 = _mm512_add_pd(_mm512_mul_pd(total.rows01, unit.rows01), bias);
    total.rows23 = _mm512_add_pd(_mm512_mul_pd(total.rows23, unit.rows23), bias);
    StoreTile(y + n, layer->N, Narrow(total), kRows, end - n);
  }
}

void GemvFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  using RowsFunction = void (*)(const Layer*, const int8_t*, const int32_t*, int64_t, const double*,
                                int64_t, int64_t, float*, void*);
  static constexpr RowsFunction kFunctions[kFixedRowGroup] = {
      FixedRowsColumns<1>, FixedRowsColumns<2>, FixedRowsColumns<3>, FixedRowsColumns<4>};
  const FixedRows layout = FixedRowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int64_t chunk = ChunkColumns(layer);
  for (int64_t n = begin; n < end; n += chunk) {
    for (int64_t row = 0; row < rows; row += kFixedRowGroup) {
      const int8_t* digits = (const int8_t*)base + row * layer->num_k_blocks * kDigits * kBlock;
      const int32_t* sums = (const int32_t*)(base + layout.sums_offset) + row;
      const double* units = (const double*)(base + layout.units_offset) + row;
      kFunctions[Min(rows - row, kFixedRowGroup) - 1](
          layer, digits, sums, rows, units, n, Min(n + chunk, end), y + row * layer->N, scratch);
    }
  }
}

// Integer sums; float64 where scales are per group.
int64_t ExactDepth(const Layer*) { return 0; }

}  // namespace
}  // namespace avx512vnni

extern const Kernel packed_gemm_int8_8x4_avx512vnni = {
    "packed_gemm_int8_8x4_avx512vnni",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx512vnni,
    avx512vnni::AcceptsInt8,
    /*max_rows=*/avx512vnni::kInt8MaxRows,
    /*column_step=*/avx512vnni::kTile,
    avx512vnni::ExactDepth,
    /*fixed_point=*/false,
    avx512vnni::GemmInt8PreparedBytes,
    avx512vnni::PrepareGemmInt8,
    avx512vnni::StripBytes,
    avx512vnni::GemmInt8,
};

extern const Kernel packed_gemv_float_4x4_avx512vnni = {
    "packed_gemv_float_4x4_avx512vnni",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx512vnni,
    avx512vnni::AcceptsFloat,
    /*max_rows=*/avx512vnni::kFixedMaxRows,
    /*column_step=*/avx512vnni::kTile,
    avx512vnni::ExactDepth,
    /*fixed_point=*/true,
    avx512vnni::FixedPreparedBytes,
    avx512vnni::PrepareFixed,
    avx512vnni::StripBytes,
    avx512vnni::GemvFloat,
};

}  // namespace onnx_ternary
