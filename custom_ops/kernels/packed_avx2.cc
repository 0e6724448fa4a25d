// Kernels for `packed`, AVX2: decode GEMV (int8, and float as fixed point), decode GEMM (int8) and
// batched lookup GEMM (float; method of four Russians, Arlazarov et al. 1970, the patterns of arXiv
// 2411.06360 turned round).
//
// Layout: docs/index_format.md section 2.1 with blocks of 128 inputs. One block of one column is 32
// bytes, one register; bits 2j..2j+1 of byte i are the code (level + 1) of input 32 j + i. Codes
// come in tiles of four columns: (column tile, block, 4 columns, 32 bytes), one stream. Loads of
// codes are unaligned (memory-mapped files); everything in prepared and scratch is 64-byte aligned.
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files: sums then wrap, which intrinsics define).
// d is an int8 in [-128, 127].
//   code field at scale 1: maddubs adds two products, |.| <= 2 * 2 * 128 = 512
//   code field at scale 4 (mask 12, not shifted): |.| <= 2 * 8 * 128 = 2048
// so two maddubs a block at scale 4 over 8 blocks reach 16 * -2048 = -32768 and 16 * 8 * 127 * 2 =
// 32512: exactly int16. Sums are widened to int32 every 8 blocks. There the sum over codes may wrap
// for K above 2^23, but sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in
// magnitude, and so exact modulo 2^32.
//
// C headers and intrinsics only, everything in the anonymous namespace: no weak symbol compiled for
// AVX2 may leave this file.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "quantise_row.h"

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kBlock = 128;      // inputs
constexpr int64_t kBlockBytes = 32;  // codes of one column
constexpr int64_t kTile = 4;         // columns
constexpr int64_t kTileBlockBytes = kTile * kBlockBytes;
constexpr int64_t kWiden = 8;  // blocks an int16 sum may span, see above

// Hides DRAM latency: three KB ahead was best on Zen 3 (27.6 against 24 weights/cycle without).
constexpr int64_t kPrefetchBytes = 3072;

size_t RoundUp64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

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

int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

__m256i LoadU(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
__m256i LoadA(const void* p) { return _mm256_load_si256((const __m256i*)p); }

// Four floats of which the first `count` lie in the array; the others are zero.
__m128 LoadFloats(const float* p, int64_t count) {
  if (count >= 4) return _mm_loadu_ps(p);
  float buffer[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return _mm_loadu_ps(buffer);
}

void StoreFloats(float* p, __m128 v, int64_t count) {
  if (count >= 4) {
    _mm_storeu_ps(p, v);
    return;
  }
  float buffer[4];
  _mm_storeu_ps(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// Scales of columns n..n+3; not for scales per group.
__m128 LoadScale(const Layer* layer, int64_t n) {
  if (layer->scale_kind == ScaleKind::per_tensor) return _mm_set1_ps(layer->scale[0]);
  return LoadFloats(layer->scale + n, layer->N - n);
}

// Scales per group are copied four tiles (a cache line) at a time to scratch, (tiles, groups, 4
// columns): read in place, the groups of a column lie N floats apart and evict each other from L1
// where N is a multiple of a power of two (GEMV 1.3 to 2 times slower at N = 2560).
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

__m128 LoadBias(const Layer* layer, int64_t n) {
  return layer->bias ? LoadFloats(layer->bias + n, layer->N - n) : _mm_setzero_ps();
}

// Sums of the eight int32 of each of four registers.
__m128i HorizontalSums(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
}

// int16 sums of the fields at scale 1 and at scale 4, as eight int32. Every sum at scale 4 is a
// multiple of 4, so the shift is exact, and 16 * 512 + 32768 / 4 = 16384 still fits int16.
__m256i Widen(__m256i sum_scale1, __m256i sum_scale4) {
  const __m256i sum = _mm256_add_epi16(sum_scale1, _mm256_srai_epi16(sum_scale4, 2));
  return _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
}

// Sum of int8 values, exact: num_bytes is a multiple of 32.
int32_t SumBytes(const int8_t* q, int64_t num_bytes) {
  const __m256i one_u8 = _mm256_set1_epi8(1);
  const __m256i one_i16 = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < num_bytes; i += 32) {
    sum = _mm256_add_epi32(sum,
                           _mm256_madd_epi16(_mm256_maddubs_epi16(one_u8, LoadA(q + i)), one_i16));
  }
  return _mm_cvtsi128_si32(HorizontalSums(sum, sum, sum, sum));
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_int8_1x4: one row, four columns. prepared, per row:
//   q     (num_k_blocks * 128,) int8, zero past K
//   sums  (num_groups,) int32: sum of q over the group's rows
//   s     float
// Load 32 bytes v and s = v >> 4; v & 3, v & 12, s & 3, s & 12 are the four fields, two of them at
// scale 4, summed apart.

struct Int8Row {
  size_t sums_offset, s_offset, bytes;
};

Int8Row Int8RowLayout(const Layer* layer) {
  Int8Row row;
  row.sums_offset = (size_t)(layer->num_k_blocks * kBlock);
  row.s_offset = row.sums_offset + RoundUp64((size_t)NumGroups(layer) * sizeof(int32_t));
  row.bytes = row.s_offset + 64;
  return row;
}

size_t GemvInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8RowLayout(layer).bytes * (size_t)rows;
}

void PrepareGemvInt8(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const Int8Row layout = Int8RowLayout(layer);
  const int64_t group_inputs = BlocksPerGroup(layer) * kBlock;
  const int64_t padded_K = layer->num_k_blocks * kBlock;
  for (int64_t row = 0; row < rows; ++row) {
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    int8_t* q = (int8_t*)base;
    int32_t* sums = (int32_t*)(base + layout.sums_offset);
    *(float*)(base + layout.s_offset) = QuantiseActivationRow(layer, x + row * layer->K, q);
    memset(q + layer->K, 0, (size_t)(padded_K - layer->K));
    for (int64_t g = 0; g < NumGroups(layer); ++g) {
      const int64_t first = g * group_inputs;
      sums[g] = SumBytes(q + first, Min(group_inputs, padded_K - first));
    }
  }
}

// sum(code * q) over blocks [begin, end), at most kWiden, of one column tile: (4,) of eight int32.
inline void DotInt8Short(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                         __m256i* sum_i32) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i mask12 = _mm256_set1_epi8(12);
  __m256i scale1_i16[kTile], scale4_i16[kTile];
  for (int c = 0; c < kTile; ++c) scale1_i16[c] = scale4_i16[c] = _mm256_setzero_si256();
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = tile_codes + b * kTileBlockBytes;
    const int8_t* q_block = q + b * kBlock;
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch((const char*)codes + kPrefetchBytes + 64, _MM_HINT_T0);
    for (int c = 0; c < kTile; ++c) {
      const __m256i v = LoadU(codes + c * kBlockBytes);
      const __m256i s = _mm256_srli_epi16(v, 4);
      scale1_i16[c] = _mm256_add_epi16(
          scale1_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(v, mask3), LoadA(q_block)));
      scale4_i16[c] = _mm256_add_epi16(
          scale4_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(v, mask12), LoadA(q_block + 32)));
      scale1_i16[c] = _mm256_add_epi16(
          scale1_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(s, mask3), LoadA(q_block + 64)));
      scale4_i16[c] = _mm256_add_epi16(
          scale4_i16[c], _mm256_maddubs_epi16(_mm256_and_si256(s, mask12), LoadA(q_block + 96)));
    }
  }
  for (int c = 0; c < kTile; ++c) sum_i32[c] = Widen(scale1_i16[c], scale4_i16[c]);
}

// sum(level * q) over blocks [begin, end) of one column tile, four columns.
inline __m128i DotInt8(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                       int32_t sum_q) {
  __m256i sum_i32[kTile];
  DotInt8Short(tile_codes, q, begin, Min(begin + kWiden, end), sum_i32);
  for (int64_t b = begin + kWiden; b < end; b += kWiden) {
    __m256i part_i32[kTile];
    DotInt8Short(tile_codes, q, b, Min(b + kWiden, end), part_i32);
    for (int c = 0; c < kTile; ++c) sum_i32[c] = _mm256_add_epi32(sum_i32[c], part_i32[c]);
  }
  return _mm_sub_epi32(HorizontalSums(sum_i32[0], sum_i32[1], sum_i32[2], sum_i32[3]),
                       _mm_set1_epi32(sum_q));
}

// Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
__m128 FinishInt8(const Layer* layer, __m128i sum, float s, int64_t n) {
  const __m128 quotient = _mm_div_ps(_mm_cvtepi32_ps(sum), _mm_set1_ps(s));
  return _mm_add_ps(_mm_mul_ps(quotient, LoadScale(layer, n)), LoadBias(layer, n));
}

// With scales per group the weighted sums, which may lie outside float32, are taken in float64, in
// the order of the groups.
__m256d AddGroup(__m256d total, __m256d sum, __m128 scale) {
  return _mm256_add_pd(total, _mm256_mul_pd(sum, _mm256_cvtps_pd(scale)));
}

__m128 FinishGroupsInt8(const Layer* layer, __m256d total, float s, int64_t n) {
  const __m256d y = _mm256_div_pd(total, _mm256_set1_pd((double)s));
  return _mm_add_ps(_mm256_cvtpd_ps(y), LoadBias(layer, n));
}

void GemvInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  const Int8Row layout = Int8RowLayout(layer);
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  for (int64_t row = 0; row < rows; ++row) {
    const char* base = (const char*)prepared + (size_t)row * layout.bytes;
    const int8_t* q = (const int8_t*)base;
    const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
    const float s = *(const float*)(base + layout.s_offset);
    for (int64_t n = begin; n < end; n += kTile) {
      const uint8_t* codes = layer->codes + n / kTile * num_blocks * kTileBlockBytes;
      __m128 result;
      if (!PerGroup(layer)) {
        result = FinishInt8(layer, DotInt8(codes, q, 0, num_blocks, sums[0]), s, n);
      } else {
        const float* scales = StripScales(layer, begin, n, scratch);
        __m256d total = _mm256_setzero_pd();
        for (int64_t g = 0; g < layer->num_groups; ++g) {
          const int64_t first = g * blocks_per_group;
          const __m128i sum =
              DotInt8(codes, q, first, Min(first + blocks_per_group, num_blocks), sums[g]);
          total = AddGroup(total, _mm256_cvtepi32_pd(sum), _mm_load_ps(scales + g * kTile));
        }
        result = FinishGroupsInt8(layer, total, s, n);
      }
      StoreFloats(y + row * layer->N + n, result, end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_float_1x4: one row as 24-bit fixed point, q = round(x * 2^e), three balanced base-256
// digits, the decode loop above three times over one unpack.
//
// e is the largest integer with absmax * 2^e <= 8355711 = 127 * (1 + 256 + 65536), so every |q| is
// within three digits of [-128, 127], and absmax * 2^(e + 1) > 8355711: an input is off by at most
// 2^-e / 2 < absmax / 8355711 = absmax * 2^-22.994. Integer-valued inputs up to 2^22 are exact.
// sum(level * q) <= 2^24 * 2^23 is exact in float64, where digits, scale and bias are combined.
//
// prepared, per row:
//   digits  (num_k_blocks, 3, 128) int8
//   sums    (num_groups, 3) int32
//   unit    float64, 2^-e

constexpr int kDigits = 3;
constexpr int32_t kFixedPointMax = 8355711;
constexpr int64_t kShortGroup = 2;  // blocks

struct FixedRow {
  size_t sums_offset, unit_offset, bytes;
};

FixedRow FixedRowLayout(const Layer* layer) {
  FixedRow row;
  row.sums_offset = (size_t)(layer->num_k_blocks * kDigits * kBlock);
  row.unit_offset = row.sums_offset + RoundUp64((size_t)NumGroups(layer) * kDigits * 4);
  row.bytes = row.unit_offset + 64;
  return row;
}

size_t GemvFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return FixedRowLayout(layer).bytes * (size_t)rows;
}

float AbsMax(const float* x, int64_t count) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i max_bits = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    max_bits = _mm256_max_epi32(max_bits, _mm256_and_si256(LoadU(x + k), magnitude));
  }
  int32_t lanes[8], largest = 0;
  _mm256_storeu_si256((__m256i*)lanes, max_bits);
  for (int i = 0; i < 8; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  for (; k < count; ++k) {
    int32_t bits;
    memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
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

void PrepareGemvFloat(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const FixedRow layout = FixedRowLayout(layer);
  const int64_t K = layer->K;
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  const __m256i half_i32 = _mm256_set1_epi32(128);
  // Byte 0 of each int32, lane by lane, then the int32 of both lanes in order.
  const __m256i low_bytes =
      _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * K;
    char* base = (char*)prepared + (size_t)row * layout.bytes;
    int8_t* digits = (int8_t*)base;
    int32_t* sums = (int32_t*)(base + layout.sums_offset);
    const int e = FixedPointExponent(AbsMax(x_row, K));
    *(double*)(base + layout.unit_offset) = PowerOfTwo(-e);
    // 2^e may exceed float32 (denormal rows): two exact steps. A product below 2^-126 rounds to 0
    // with or without the second rounding.
    const int e_first = e > 126 ? 126 : e;
    const __m256 scale_first = _mm256_set1_ps((float)PowerOfTwo(e_first));
    const __m256 scale_second = _mm256_set1_ps((float)PowerOfTwo(e - e_first));
    for (int64_t b = 0; b < num_blocks; ++b) {
      float buffer[kBlock];
      const float* x_block = x_row + b * kBlock;
      if (K - b * kBlock < kBlock) {
        memset(buffer, 0, sizeof buffer);
        memcpy(buffer, x_block, (size_t)(K - b * kBlock) * sizeof(float));
        x_block = buffer;
      }
      int8_t* out = digits + b * kDigits * kBlock;
      for (int64_t i = 0; i < kBlock; i += 8) {
        const __m256 scaled =
            _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x_block + i), scale_first), scale_second);
        __m256i rest = _mm256_cvtps_epi32(scaled);  // to nearest
        for (int d = 0; d < kDigits; ++d) {
          // The low byte, read as int8, is the digit; (rest + 128) >> 8 takes it off.
          const __m256i bytes = _mm256_shuffle_epi8(rest, low_bytes);
          const uint32_t low = (uint32_t)_mm256_extract_epi32(bytes, 0);
          const uint32_t high = (uint32_t)_mm256_extract_epi32(bytes, 4);
          memcpy(out + d * kBlock + i, &low, 4);
          memcpy(out + d * kBlock + i + 4, &high, 4);
          rest = _mm256_srai_epi32(_mm256_add_epi32(rest, half_i32), 8);
        }
      }
    }
    for (int64_t g = 0; g < NumGroups(layer); ++g) {
      const int64_t first = g * blocks_per_group;
      for (int d = 0; d < kDigits; ++d) {
        int32_t sum = 0;
        for (int64_t b = first; b < Min(first + blocks_per_group, num_blocks); ++b) {
          sum += SumBytes(digits + (b * kDigits + d) * kBlock, kBlock);
        }
        sums[g * kDigits + d] = sum;
      }
    }
  }
}

// sum(code * digit) over blocks [begin, end), at most kWiden, of column c of a tile: (3,) of eight
// int32.
inline void DotDigits(const uint8_t* tile_codes, int c, const int8_t* digits, int64_t begin,
                      int64_t end, __m256i* sum_i32) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i mask12 = _mm256_set1_epi8(12);
  __m256i scale1_i16[kDigits], scale4_i16[kDigits];
  for (int d = 0; d < kDigits; ++d) scale1_i16[d] = scale4_i16[d] = _mm256_setzero_si256();
  for (int64_t b = begin; b < end; ++b) {
    const uint8_t* codes = tile_codes + b * kTileBlockBytes + c * kBlockBytes;
    const int8_t* digits_block = digits + b * kDigits * kBlock;
    _mm_prefetch((const char*)codes + kPrefetchBytes, _MM_HINT_T0);
    const __m256i v = LoadU(codes);
    const __m256i s = _mm256_srli_epi16(v, 4);
    const __m256i field0 = _mm256_and_si256(v, mask3);
    const __m256i field1 = _mm256_and_si256(v, mask12);
    const __m256i field2 = _mm256_and_si256(s, mask3);
    const __m256i field3 = _mm256_and_si256(s, mask12);
    for (int d = 0; d < kDigits; ++d) {
      const int8_t* p = digits_block + d * kBlock;
      scale1_i16[d] = _mm256_add_epi16(scale1_i16[d], _mm256_maddubs_epi16(field0, LoadA(p)));
      scale4_i16[d] = _mm256_add_epi16(scale4_i16[d], _mm256_maddubs_epi16(field1, LoadA(p + 32)));
      scale1_i16[d] = _mm256_add_epi16(scale1_i16[d], _mm256_maddubs_epi16(field2, LoadA(p + 64)));
      scale4_i16[d] = _mm256_add_epi16(scale4_i16[d], _mm256_maddubs_epi16(field3, LoadA(p + 96)));
    }
  }
  for (int d = 0; d < kDigits; ++d) sum_i32[d] = Widen(scale1_i16[d], scale4_i16[d]);
}

// sum(level * q) over blocks [begin, end) of one column tile, four columns, exact.
inline __m256d DotFixedPoint(const uint8_t* tile_codes, const int8_t* digits, int64_t begin,
                             int64_t end, const int32_t* sums) {
  if (end - begin <= kShortGroup) {
    // |sum(level * q)| <= 256 * 8355711 < 2^31: the digits can be put together before the lanes
    // are added up, modulo 2^32.
    __m256i column_i32[kTile];
    for (int c = 0; c < kTile; ++c) {
      __m256i sum_i32[kDigits];
      DotDigits(tile_codes, c, digits, begin, end, sum_i32);
      column_i32[c] =
          _mm256_add_epi32(_mm256_add_epi32(sum_i32[0], _mm256_slli_epi32(sum_i32[1], 8)),
                           _mm256_slli_epi32(sum_i32[2], 16));
    }
    const uint32_t sum_q = (uint32_t)sums[0] + ((uint32_t)sums[1] << 8) + ((uint32_t)sums[2] << 16);
    return _mm256_cvtepi32_pd(
        _mm_sub_epi32(HorizontalSums(column_i32[0], column_i32[1], column_i32[2], column_i32[3]),
                      _mm_set1_epi32((int32_t)sum_q)));
  }
  __m256i sum_i32[kTile][kDigits];
  for (int c = 0; c < kTile; ++c) {
    for (int d = 0; d < kDigits; ++d) sum_i32[c][d] = _mm256_setzero_si256();
  }
  for (int64_t b = begin; b < end; b += kWiden) {
    for (int c = 0; c < kTile; ++c) {
      __m256i part_i32[kDigits];
      DotDigits(tile_codes, c, digits, b, Min(b + kWiden, end), part_i32);
      for (int d = 0; d < kDigits; ++d) {
        sum_i32[c][d] = _mm256_add_epi32(sum_i32[c][d], part_i32[d]);
      }
    }
  }
  __m256d total = _mm256_setzero_pd();
  for (int d = kDigits - 1; d >= 0; --d) {
    const __m128i sum =
        _mm_sub_epi32(HorizontalSums(sum_i32[0][d], sum_i32[1][d], sum_i32[2][d], sum_i32[3][d]),
                      _mm_set1_epi32(sums[d]));
    total = _mm256_add_pd(_mm256_mul_pd(total, _mm256_set1_pd(256.0)), _mm256_cvtepi32_pd(sum));
  }
  return total;
}

void GemvFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  const FixedRow layout = FixedRowLayout(layer);
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = layer->codes + n / kTile * num_blocks * kTileBlockBytes;
    const float* scales = PerGroup(layer) ? StripScales(layer, begin, n, scratch) : nullptr;
    const __m256d bias = _mm256_cvtps_pd(LoadBias(layer, n));
    for (int64_t row = 0; row < rows; ++row) {
      const char* base = (const char*)prepared + (size_t)row * layout.bytes;
      const int8_t* digits = (const int8_t*)base;
      const int32_t* sums = (const int32_t*)(base + layout.sums_offset);
      const __m256d unit = _mm256_set1_pd(*(const double*)(base + layout.unit_offset));
      __m256d total = _mm256_setzero_pd();
      for (int64_t g = 0; g < num_groups; ++g) {
        const int64_t first = g * blocks_per_group;
        const __m256d sum = DotFixedPoint(
            codes, digits, first, Min(first + blocks_per_group, num_blocks), sums + g * kDigits);
        total =
            AddGroup(total, sum, scales ? _mm_load_ps(scales + g * kTile) : LoadScale(layer, n));
      }
      const __m256d result = _mm256_add_pd(_mm256_mul_pd(total, unit), bias);
      StoreFloats(y + row * layer->N + n, _mm256_cvtpd_ps(result), end - n);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_8x4: eight rows share one unpack. Fields are shifted to scale 1, so one
// accumulator a row is enough: four maddubs a block, 4 * 512 = 2048 at most, and 16 blocks reach
// 64 * -512 = -32768 and 64 * 2 * 2 * 127 = 32512, exactly int16. prepared:
//   q     (row groups, num_k_blocks, 8 rows, 128) int8
//   sums  (rows, num_groups) int32
//   s     (rows,) float

constexpr int64_t kRowGroup = 8;
constexpr int64_t kWidenShifted = 16;
constexpr int64_t kGemmMaxRows = 64;

struct Int8Rows {
  size_t sums_offset, s_offset, bytes;
};

Int8Rows Int8RowsLayout(const Layer* layer, int64_t rows) {
  const size_t row_groups = (size_t)((rows + kRowGroup - 1) / kRowGroup);
  Int8Rows layout;
  layout.sums_offset = row_groups * (size_t)(layer->num_k_blocks * kRowGroup * kBlock);
  layout.s_offset =
      layout.sums_offset + RoundUp64((size_t)(rows * NumGroups(layer)) * sizeof(int32_t));
  // One row in order, before it is spread over the blocks.
  layout.bytes = layout.s_offset + RoundUp64((size_t)rows * sizeof(float)) +
                 (size_t)(layer->num_k_blocks * kBlock);
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
  int8_t* in_order = (int8_t*)(base + layout.bytes - (size_t)padded_K);
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantiseActivationRow(layer, x + row * layer->K, in_order);
    memset(in_order + layer->K, 0, (size_t)(padded_K - layer->K));
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * group_inputs;
      sums[row * num_groups + g] = SumBytes(in_order + first, Min(group_inputs, padded_K - first));
    }
    int8_t* q = (int8_t*)base + row / kRowGroup * num_blocks * kRowGroup * kBlock +
                row % kRowGroup * kBlock;
    for (int64_t b = 0; b < num_blocks; ++b) {
      memcpy(q + b * kRowGroup * kBlock, in_order + b * kBlock, (size_t)kBlock);
    }
  }
}

// sum(code * q) over blocks [begin, end) of one column tile into sum_i32 (kRows, 4).
template <int kRows>
void DotInt8Rows(const uint8_t* tile_codes, const int8_t* q, int64_t begin, int64_t end,
                 __m256i (*sum_i32)[kTile]) {
  const __m256i mask3 = _mm256_set1_epi8(3);
  const __m256i one = _mm256_set1_epi16(1);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kTile; ++c) sum_i32[r][c] = _mm256_setzero_si256();
  }
  for (int64_t b0 = begin; b0 < end; b0 += kWidenShifted) {
    const int64_t b1 = Min(b0 + kWidenShifted, end);
    for (int c = 0; c < kTile; ++c) {
      __m256i sum_i16[kRows];
      for (int r = 0; r < kRows; ++r) sum_i16[r] = _mm256_setzero_si256();
      for (int64_t b = b0; b < b1; ++b) {
        const __m256i v = LoadU(tile_codes + b * kTileBlockBytes + c * kBlockBytes);
        const __m256i field0 = _mm256_and_si256(v, mask3);
        const __m256i field1 = _mm256_and_si256(_mm256_srli_epi16(v, 2), mask3);
        const __m256i field2 = _mm256_and_si256(_mm256_srli_epi16(v, 4), mask3);
        const __m256i field3 = _mm256_and_si256(_mm256_srli_epi16(v, 6), mask3);
        const int8_t* p = q + b * kRowGroup * kBlock;
        for (int r = 0; r < kRows; ++r) {
          const int8_t* q_row = p + r * kBlock;
          sum_i16[r] = _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field0, LoadA(q_row)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field1, LoadA(q_row + 32)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field2, LoadA(q_row + 64)));
          sum_i16[r] =
              _mm256_add_epi16(sum_i16[r], _mm256_maddubs_epi16(field3, LoadA(q_row + 96)));
        }
      }
      for (int r = 0; r < kRows; ++r) {
        sum_i32[r][c] = _mm256_add_epi32(sum_i32[r][c], _mm256_madd_epi16(sum_i16[r], one));
      }
    }
  }
}

template <int kRows>
void GemmInt8RowGroup(const Layer* layer, const int8_t* q, const int32_t* sums, const float* s,
                      int64_t begin, int64_t end, float* y, void* scratch) {
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t num_groups = NumGroups(layer);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  __m256i sum_i32[kRows][kTile];
  for (int64_t n = begin; n < end; n += kTile) {
    const uint8_t* codes = layer->codes + n / kTile * num_blocks * kTileBlockBytes;
    const float* scales = PerGroup(layer) ? StripScales(layer, begin, n, scratch) : nullptr;
    __m256d total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = _mm256_setzero_pd();
    for (int64_t g = 0; g < num_groups; ++g) {
      const int64_t first = g * blocks_per_group;
      DotInt8Rows<kRows>(codes, q, first, Min(first + blocks_per_group, num_blocks), sum_i32);
      for (int r = 0; r < kRows; ++r) {
        const __m128i sum = _mm_sub_epi32(
            HorizontalSums(sum_i32[r][0], sum_i32[r][1], sum_i32[r][2], sum_i32[r][3]),
            _mm_set1_epi32(sums[r * num_groups + g]));
        if (scales) {
          total[r] = AddGroup(total[r], _mm256_cvtepi32_pd(sum), _mm_load_ps(scales + g * kTile));
        } else {
          StoreFloats(y + r * layer->N + n, FinishInt8(layer, sum, s[r], n), end - n);
        }
      }
    }
    if (PerGroup(layer)) {
      for (int r = 0; r < kRows; ++r) {
        StoreFloats(y + r * layer->N + n, FinishGroupsInt8(layer, total[r], s[r], n), end - n);
      }
    }
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  const Int8Rows layout = Int8RowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const int64_t num_groups = NumGroups(layer);
  // Row groups outside: their activations stay in L1 or L2 while the codes stream past.
  for (int64_t row = 0; row < rows; row += kRowGroup) {
    const int8_t* q = (const int8_t*)base + row * layer->num_k_blocks * kBlock;
    const int32_t* sums = (const int32_t*)(base + layout.sums_offset) + row * num_groups;
    const float* s = (const float*)(base + layout.s_offset) + row;
    float* y_rows = y + row * layer->N;
    switch (Min(rows - row, kRowGroup)) {
      case 1:
        GemmInt8RowGroup<1>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 2:
        GemmInt8RowGroup<2>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 3:
        GemmInt8RowGroup<3>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 4:
        GemmInt8RowGroup<4>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 5:
        GemmInt8RowGroup<5>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 6:
        GemmInt8RowGroup<6>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      case 7:
        GemmInt8RowGroup<7>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
      default:
        GemmInt8RowGroup<8>(layer, q, sums, s, begin, end, y_rows, scratch);
        break;
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_float_8x8: lookup over the batch. Lanes are eight rows of X. The 81 sums
// +-x0 +-x1 +-x2 +-x3 of a group of four inputs (those of one byte) are built once; each column
// then adds one table row per four weights: a quarter of the additions of a dense product, and no
// multiplication. Longest chain: two additions a table row, then one a byte of the column.
//
// Eight tables at a time (20 KB) stay in L1. A block's bytes are transcoded to base 3 (digit 3, in
// damaged files only, becomes 0: every index stays inside the table). Sums of a column chunk wait
// in scratch, (column, 8 rows), between blocks.
//
// prepared: x (row blocks, num_k_blocks, 32 bytes, 4 fields, 8 rows) float32, zero past K and rows.
// scratch:  tables | codes (4, columns) uint64 | scales (columns) | per row block: sums (columns,
// 8)
//           and, with scales per group, totals (columns, 8)

constexpr int64_t kLanes = 8;
constexpr int64_t kPatterns = 81;
constexpr int64_t kTables = 8;                     // groups of four inputs in L1 at a time
constexpr int64_t kSteps = kBlockBytes / kTables;  // a block
constexpr int64_t kTableSet = 4;  // tables interleaved: a code times 128 bytes finds its row in any
constexpr int64_t kTableRow = kTableSet * kLanes;  // floats from one pattern to the next
constexpr int64_t kColumns = 8;                    // interleaved, to hide the latency of additions
// Columns a pass over K: the sums of one row block (32 bytes a column) stay in L2, the tables are
// rebuilt for every pass.
constexpr int64_t kChunkColumns = 4096;

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

int64_t ChunkColumns(int64_t num_columns) {
  const int64_t num_chunks = (num_columns + kChunkColumns - 1) / kChunkColumns;
  return RoundUp((num_columns + num_chunks - 1) / num_chunks, kColumns);
}

int64_t RowBlocks(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

struct GemmScratch {
  size_t codes_offset, scales_offset, sums_offset, tile_bytes, bytes;
};

GemmScratch GemmScratchLayout(const Layer* layer, int64_t rows, int64_t chunk_columns) {
  const size_t columns = (size_t)chunk_columns;
  GemmScratch layout;
  layout.codes_offset = RoundUp64((size_t)(2 * kPatterns * kTableRow) * sizeof(float));
  layout.scales_offset = layout.codes_offset + RoundUp64((size_t)kSteps * columns * 8);
  layout.sums_offset = layout.scales_offset + RoundUp64(columns * sizeof(float));
  layout.tile_bytes = columns * kLanes * sizeof(float);
  layout.bytes =
      layout.sums_offset + layout.tile_bytes * (size_t)RowBlocks(rows) * (PerGroup(layer) ? 2 : 1);
  return layout;
}

size_t GemmFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return (size_t)(RowBlocks(rows) * layer->num_k_blocks * kBlock * kLanes) * sizeof(float);
}

size_t GemmFloatScratchBytes(const Layer* layer, int64_t rows, int64_t num_columns) {
  // Chunks are even, so those of a narrower range can be wider: one of 4096 columns, two of 2052.
  return GemmScratchLayout(layer, rows, RoundUp(Min(num_columns, kChunkColumns), kColumns)).bytes;
}

void Transpose8x8(__m256* r) {
  __m256 pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

void PrepareGemmFloat(const Layer* layer, const float* x, int64_t rows, void* prepared) {
  const int64_t K = layer->K;
  float* out = (float*)prepared;
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t valid_rows = Min(rows - row, kLanes);
    for (int64_t k = 0; k < layer->num_k_blocks * kBlock; k += kBlock) {
      float buffer[kLanes * kBlock];
      const float* block = x + row * K + k;
      int64_t stride = K;
      const int64_t valid_inputs = Min(K - k, kBlock);
      if (valid_rows < kLanes || valid_inputs < kBlock) {
        memset(buffer, 0, sizeof buffer);
        for (int64_t r = 0; r < valid_rows; ++r) {
          memcpy(buffer + r * kBlock, block + r * K, (size_t)valid_inputs * sizeof(float));
        }
        block = buffer;
        stride = kBlock;
      }
      for (int64_t field = 0; field < 4; ++field) {
        for (int64_t i = 0; i < kBlockBytes; i += 8) {
          __m256 v[8];
          for (int r = 0; r < 8; ++r) {
            v[r] = _mm256_loadu_ps(block + r * stride + field * kBlockBytes + i);
          }
          Transpose8x8(v);
          for (int e = 0; e < 8; ++e) {
            _mm256_store_ps(out + ((i + e) * 4 + field) * kLanes, v[e]);
          }
        }
      }
      out += kBlock * kLanes;
    }
  }
}

// The nine sums d0 * a + d1 * b, digits d = 0, 1, 2 meaning -1, 0, 1, a's digit first.
void PairSums(__m256 a, __m256 b, __m256* sums) {
  const __m256 zero = _mm256_setzero_ps();
  sums[8] = _mm256_add_ps(a, b);
  sums[6] = _mm256_sub_ps(b, a);
  sums[2] = _mm256_sub_ps(a, b);
  sums[0] = _mm256_sub_ps(_mm256_sub_ps(zero, a), b);
  sums[7] = b;
  sums[5] = a;
  sums[4] = zero;
  sums[3] = _mm256_sub_ps(zero, a);
  sums[1] = _mm256_sub_ps(zero, b);
}

// Tables of eight bytes from x (8 bytes, 4 fields, 8 rows): (2 sets, 81 patterns, 4 tables, 8
// rows).
void BuildTables(const float* x, float* tables) {
  for (int64_t t = 0; t < kTables; ++t) {
    __m256 low[9], high[9];
    const float* inputs = x + t * 4 * kLanes;
    PairSums(_mm256_load_ps(inputs), _mm256_load_ps(inputs + kLanes), low);
    PairSums(_mm256_load_ps(inputs + 2 * kLanes), _mm256_load_ps(inputs + 3 * kLanes), high);
    float* table = tables + t / kTableSet * kPatterns * kTableRow + t % kTableSet * kLanes;
    for (int h = 0; h < 9; ++h) {
      for (int l = 0; l < 9; ++l) {
        _mm256_store_ps(table + (h * 9 + l) * kTableRow, _mm256_add_ps(high[h], low[l]));
      }
    }
  }
}

// Codes of block b, columns [begin, begin + num_columns), as base-3 patterns: codes (4, stride)
// uint64, eight bytes of one column each. Columns up to stride get pattern 40, level 0.
void Transcode(const Layer* layer, int64_t b, int64_t begin, int64_t num_columns, int64_t stride,
               uint64_t* codes) {
  // Low nibble: d0 + 3 d1; high nibble: 9 d2 + 27 d3; digit 3 counts as 0.
  const __m256i low_pattern = _mm256_setr_epi8(0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0, 0, 1,
                                               2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0);
  const __m256i high_pattern =
      _mm256_setr_epi8(0, 9, 18, 0, 27, 36, 45, 27, 54, 63, 72, 54, 0, 9, 18, 0, 0, 9, 18, 0, 27,
                       36, 45, 27, 54, 63, 72, 54, 0, 9, 18, 0);
  const __m256i nibble = _mm256_set1_epi8(15);
  const int64_t tile_stride = layer->num_k_blocks * kTileBlockBytes;
  const uint8_t* source = layer->codes + begin / kTile * tile_stride + b * kTileBlockBytes;
  int64_t n = 0;
  for (; n < num_columns; n += kTile, source += tile_stride) {
    for (int64_t c = 0; c < kTile; ++c) {
      const __m256i v = LoadU(source + c * kBlockBytes);
      const __m256i pattern = _mm256_add_epi8(
          _mm256_shuffle_epi8(low_pattern, _mm256_and_si256(v, nibble)),
          _mm256_shuffle_epi8(high_pattern, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
      const __m128i first = _mm256_castsi256_si128(pattern);
      const __m128i second = _mm256_extracti128_si256(pattern, 1);
      uint64_t* out = codes + n + c;
      _mm_storel_epi64((__m128i*)out, first);
      _mm_storeh_pd((double*)(out + stride), _mm_castsi128_pd(first));
      _mm_storel_epi64((__m128i*)(out + 2 * stride), second);
      _mm_storeh_pd((double*)(out + 3 * stride), _mm_castsi128_pd(second));
    }
  }
  for (; n < stride; ++n) {
    for (int64_t step = 0; step < kSteps; ++step) codes[step * stride + n] = 0x2828282828282828u;
  }
}

// acc += *row. gcc 12 hoists the loads of all columns and spills them (17 instead of 30 MAC/cycle
// on Zen 3); an assembler addition keeps load and add together. Sanitizers cannot see its loads.
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
#define OTN_ADD_ROW(acc, row) (acc) = _mm256_add_ps((acc), _mm256_load_ps(row))
#else
#define OTN_ADD_ROW(acc, row) \
  __asm__ volatile("vaddps %1, %0, %0" : "+x"(acc) : "m"(*(const __m256*)(row)))
#endif

#if defined(__clang__)
#define OTN_UNROLL8 _Pragma("unroll 8")
#elif defined(__GNUC__)
#define OTN_UNROLL8 _Pragma("GCC unroll 8")
#else
#define OTN_UNROLL8
#endif

enum class Start { zero, sums };     // what the accumulators begin with
enum class Finish { sums, totals };  // where they go: sums, or totals += scale * sum

// Adds eight table rows to each column's sums. codes (columns,), sums and totals (columns, 8).
template <Start kStart, Finish kFinish>
void LookupStep(const uint64_t* codes, int64_t num_columns, const float* tables, float* sums,
                float* totals, const float* scales) {
  // Pattern times 128 bytes: rotate so that the code stands at bit 7, and mask.
  uint64_t mask = (uint64_t)255 << 7;
#if defined(__GNUC__)
  __asm__("" : "+r"(mask));  // keeps it in a register: an immediate would cost a longer encoding
#endif
  const char* set0 = (const char*)tables;
  const char* set1 = (const char*)(tables + kPatterns * kTableRow);
  for (int64_t n = 0; n < num_columns; n += kColumns) {
    uint64_t code[kColumns];
    __m256 acc[kColumns];
    OTN_UNROLL8
    for (int c = 0; c < kColumns; ++c) {
      code[c] = codes[n + c];
      acc[c] =
          kStart == Start::zero ? _mm256_setzero_ps() : _mm256_load_ps(sums + (n + c) * kLanes);
    }
    OTN_UNROLL8
    for (int t = 0; t < kTables; ++t) {
      const int rotate = (8 * t - 7) & 63;
      const char* set = (t < kTableSet ? set0 : set1) + t % kTableSet * kLanes * 4;
      OTN_UNROLL8
      for (int c = 0; c < kColumns; ++c) {
        const uint64_t offset = (code[c] >> rotate | code[c] << (64 - rotate)) & mask;
        OTN_ADD_ROW(acc[c], (const float*)(set + offset));
      }
    }
    OTN_UNROLL8
    for (int c = 0; c < kColumns; ++c) {
      if (kFinish == Finish::sums) {
        _mm256_store_ps(sums + (n + c) * kLanes, acc[c]);
      } else {
        float* total = totals + (n + c) * kLanes;
        _mm256_store_ps(total, _mm256_fmadd_ps(acc[c], _mm256_broadcast_ss(scales + n + c),
                                               _mm256_load_ps(total)));
      }
    }
  }
}

// (columns, 8 rows) to row-major Y, with scale (unless already applied) and bias.
void StoreRows(const Layer* layer, const float* sums, int64_t begin, int64_t num_columns,
               int64_t valid_rows, float* y) {
  for (int64_t n = 0; n < num_columns; n += kLanes) {
    const int64_t column = begin + n;
    const int64_t valid = Min(num_columns - n, kLanes);
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_load_ps(sums + (n + i) * kLanes);
    Transpose8x8(v);
    float scale_buffer[8], bias_buffer[8];
    for (int64_t i = 0; i < 8; ++i) {
      const int64_t at = column + (i < valid ? i : 0);
      scale_buffer[i] = layer->scale_kind == ScaleKind::per_tensor   ? layer->scale[0]
                        : layer->scale_kind == ScaleKind::per_column ? layer->scale[at]
                                                                     : 1.0f;
      bias_buffer[i] = layer->bias ? layer->bias[at] : 0.0f;
    }
    const __m256 scale = _mm256_loadu_ps(scale_buffer);
    const __m256 bias = _mm256_loadu_ps(bias_buffer);
    for (int64_t r = 0; r < valid_rows; ++r) {
      const __m256 result = _mm256_fmadd_ps(v[r], scale, bias);
      float* out = y + r * layer->N + column;
      if (valid == kLanes) {
        _mm256_storeu_ps(out, result);
      } else {
        float buffer[8];
        _mm256_storeu_ps(buffer, result);
        for (int64_t i = 0; i < valid; ++i) out[i] = buffer[i];
      }
    }
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  const int64_t stride = ChunkColumns(end - begin);
  const GemmScratch layout = GemmScratchLayout(layer, rows, stride);
  const int64_t num_blocks = layer->num_k_blocks;
  const int64_t row_blocks = RowBlocks(rows);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  const bool per_group = PerGroup(layer);
  char* base = (char*)scratch;
  float* tables = (float*)base;
  uint64_t* codes = (uint64_t*)(base + layout.codes_offset);
  float* scales = (float*)(base + layout.scales_offset);
  float* all_sums = (float*)(base + layout.sums_offset);
  float* all_totals = all_sums + stride * kLanes * row_blocks;
  for (int64_t n = begin; n < end; n += stride) {
    const int64_t num_columns = Min(stride, end - n);
    const int64_t padded_columns = RoundUp(num_columns, kColumns);
    if (per_group) memset(all_totals, 0, (size_t)row_blocks * layout.tile_bytes);
    for (int64_t b = 0; b < num_blocks; ++b) {
      Transcode(layer, b, n, RoundUp(num_columns, kTile), padded_columns, codes);
      const bool group_starts = b % blocks_per_group == 0;
      const bool group_ends = per_group && ((b + 1) % blocks_per_group == 0 || b + 1 == num_blocks);
      if (group_ends) {
        const float* scale_row = layer->scale + b / blocks_per_group * layer->N + n;
        for (int64_t i = 0; i < padded_columns; ++i) scales[i] = i < num_columns ? scale_row[i] : 0;
      }
      for (int64_t rb = 0; rb < row_blocks; ++rb) {
        const float* x = (const float*)prepared + (rb * num_blocks + b) * kBlock * kLanes;
        float* sums = all_sums + rb * stride * kLanes;
        float* totals = all_totals + rb * stride * kLanes;
        for (int64_t step = 0; step < kSteps; ++step) {
          BuildTables(x + step * kTables * 4 * kLanes, tables);
          const uint64_t* step_codes = codes + step * padded_columns;
          if (step == 0 && group_starts) {
            LookupStep<Start::zero, Finish::sums>(step_codes, padded_columns, tables, sums, nullptr,
                                                  nullptr);
          } else if (step == kSteps - 1 && group_ends) {
            LookupStep<Start::sums, Finish::totals>(step_codes, padded_columns, tables, sums,
                                                    totals, scales);
          } else {
            LookupStep<Start::sums, Finish::sums>(step_codes, padded_columns, tables, sums, nullptr,
                                                  nullptr);
          }
        }
      }
    }
    for (int64_t rb = 0; rb < row_blocks; ++rb) {
      const float* result = (per_group ? all_totals : all_sums) + rb * stride * kLanes;
      StoreRows(layer, result, n, num_columns, Min(rows - rb * kLanes, kLanes),
                y + rb * kLanes * layer->N);
    }
  }
}

// ---------------------------------------------------------------------------------------------

void RowMagnitudes(const float* x, int64_t count, int32_t* largest_bits, double* sum) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i max_bits = _mm256_setzero_si256();
  __m256d total = _mm256_setzero_pd();
  int32_t largest = 0;
  int64_t k = 0;
  for (; k + 32 <= count; k += 32) {
    __m256 part = _mm256_setzero_ps();
    for (int64_t i = 0; i < 32; i += 8) {
      const __m256i bits = _mm256_and_si256(LoadU(x + k + i), magnitude);
      max_bits = _mm256_max_epi32(max_bits, bits);
      part = _mm256_add_ps(part, _mm256_castsi256_ps(bits));
    }
    total = _mm256_add_pd(total, _mm256_cvtps_pd(_mm_add_ps(_mm256_castps256_ps128(part),
                                                            _mm256_extractf128_ps(part, 1))));
  }
  double sums[4];
  int32_t lanes[8];
  _mm256_storeu_pd(sums, total);
  _mm256_storeu_si256((__m256i*)lanes, max_bits);
  for (int i = 0; i < 8; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  double rest = 0.0;
  for (; k < count; ++k) {
    int32_t bits;
    memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
    float value;
    memcpy(&value, &bits, sizeof value);
    rest += (double)value;
  }
  *largest_bits = largest;
  *sum = sums[0] + sums[1] + sums[2] + sums[3] + rest;
}

// Integer sums; float64 where scales are per group.
int64_t ExactDepth(const Layer*) { return 0; }

int64_t LookupDepth(const Layer* layer) {
  const int64_t blocks = Min(BlocksPerGroup(layer), layer->num_k_blocks);
  return blocks * kBlockBytes + 2;
}

}  // namespace
}  // namespace avx2

extern const RowMagnitudesFunction row_magnitudes_avx2 = avx2::RowMagnitudes;

extern const Kernel packed_gemv_int8_1x4_avx2 = {
    "packed_gemv_int8_1x4_avx2",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx2,
    avx2::AcceptsInt8,
    /*max_rows=*/2,
    /*column_step=*/avx2::kTile,
    avx2::ExactDepth,
    /*fixed_point=*/false,
    avx2::GemvInt8PreparedBytes,
    avx2::PrepareGemvInt8,
    avx2::StripBytes,
    avx2::GemvInt8,
};

extern const Kernel packed_gemm_int8_8x4_avx2 = {
    "packed_gemm_int8_8x4_avx2",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx2,
    avx2::AcceptsInt8,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/avx2::kTile,
    avx2::ExactDepth,
    /*fixed_point=*/false,
    avx2::GemmInt8PreparedBytes,
    avx2::PrepareGemmInt8,
    avx2::StripBytes,
    avx2::GemmInt8,
};

extern const Kernel packed_gemv_float_1x4_avx2 = {
    "packed_gemv_float_1x4_avx2",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx2,
    avx2::AcceptsFloat,
    /*max_rows=*/4,
    /*column_step=*/avx2::kTile,
    avx2::ExactDepth,
    /*fixed_point=*/true,
    avx2::GemvFloatPreparedBytes,
    avx2::PrepareGemvFloat,
    avx2::StripBytes,
    avx2::GemvFloat,
};

extern const Kernel packed_gemm_float_8x8_avx2 = {
    "packed_gemm_float_8x8_avx2",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx2,
    avx2::AcceptsFloat,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/avx2::kTile,
    avx2::LookupDepth,
    /*fixed_point=*/false,
    avx2::GemmFloatPreparedBytes,
    avx2::PrepareGemmFloat,
    avx2::GemmFloatScratchBytes,
    avx2::GemmFloat,
};

}  // namespace onnx_ternary
