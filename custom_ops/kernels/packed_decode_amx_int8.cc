// Kernels for `packed`, AMX: codes become tiles of unsigned bytes, tdpbsud multiplies them by int8
// activations, and by float activations as fixed point of three int8 digits. Digits and rows are
// vectors, rows of tiles, so one core serves both.
//
// Layout: span.h. A row block is 16 vectors; its activations of a span are two tiles, 16 vectors of
// 64 inputs each, in the order of the fields. Codes of 16 columns and a span become two tiles as
// well (tiles_amx.h); two such column groups side by side meet two row blocks, four tiles of sums.
// One row block alone keeps the halves of a span in sums of their own, so that four chains of
// additions hide the latency of tdpbsud. Codes are decoded a few spans ahead, between products,
// also over the ends of columns.
//
// Up to two row blocks keep their sums in tiles over all of K. More go through memory: two spans of
// every pair of row blocks, then the next two, so that activations (64 or 96 vectors of 256 inputs,
// at most 24 KB), decoded codes (16 KB) and sums stay near: a tile comes from L1 in less than half
// the time it takes from L2 (Sapphire Rapids, 2.4 and 5.5 ns).
//
// Ranges. Codes are 0, 1, 2 (3 only in damaged files), d is an int8 in [-128, 127], and tdpbsud
// wraps. sum(code * d) - sum(d) = sum(level * d) is at most 128 K <= 2^31 - 128 in magnitude, and
// so exact modulo 2^32 whatever wraps before.
//
// Scales per group (of whole spans): the three digits of a span are put together, at most 128 *
// 8355711 < 2^30, converted to float32 and added times their scale in float32: below 2^47 *
// kLargestBlockScale < 2^128 for any K; an integer times a float32 does not underflow.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/tiles_amx.h"
// After its pragmas.
#include "common/decode_avx2.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace amx_int8 {
namespace {

using namespace avx2;

constexpr int64_t kInt8MaxRows = 64;
constexpr int64_t kFloatMaxRows = 32;
constexpr int64_t kGroupTiles = 4;                     // column tiles of a column group
constexpr int64_t kColumns = 2 * kGroupTiles * kTile;  // side by side
constexpr int64_t kSpanTileBytes = 2 * kTileBytes;     // of a row block, or of a column group
constexpr int64_t kRingSpans = 4;
constexpr int64_t kRingBytes = kRingSpans * 2 * kSpanTileBytes;
constexpr int64_t kChunkSpans = 2;
constexpr int64_t kPrefetchSpans = 9;

// A group of scales must be whole spans.
bool Accepts(const Layer* layer) { return !PerGroup(layer) || layer->group_size % kSpan == 0; }

// ---------------------------------------------------------------------------------------------
// Rows. Vector digits * r + d is digit d of row r. prepared:
//   q        (row blocks, num_spans, 2, 16, 64) int8, zero past K and past the vectors
//   sums     (rows, digits) int32: of q; with scales per group (rows, num_spans), all digits
//   factors  (rows,) float64: s, or 2^-e
//   a row in order, before it is spread over the tiles (padded K,) int8

struct RowsLayout {
  int64_t digits, row_sums, num_blocks;
  size_t sums_offset, factors_offset, row_offset, bytes;
};

RowsLayout MakeRowsLayout(const Layer* layer, int64_t rows) {
  const int64_t spans = NumSpans(layer);
  RowsLayout layout;
  layout.digits = layer->activation == Activation::float32 ? kDigits : 1;
  layout.row_sums = PerGroup(layer) ? spans : layout.digits;
  layout.num_blocks = (rows * layout.digits + kTileRows - 1) / kTileRows;
  layout.sums_offset = (size_t)(layout.num_blocks * spans * kSpanTileBytes);
  layout.factors_offset =
      layout.sums_offset + RoundUp64((size_t)(rows * layout.row_sums) * sizeof(int32_t));
  layout.row_offset = layout.factors_offset + RoundUp64((size_t)rows * sizeof(double));
  layout.bytes = layout.row_offset + (size_t)(spans * kSpan);
  return layout;
}

size_t PreparedBytes(const Layer* layer, int64_t rows) { return MakeRowsLayout(layer, rows).bytes; }

// Puts digit d of a row and span where it belongs. in_order: (128,).
void PlaceSpan(const Layer* layer, const RowsLayout& layout, int64_t row, int d, int64_t span,
               const int8_t* in_order, void* prepared) {
  const int64_t vector = row * layout.digits + d;
  int8_t* q = (int8_t*)prepared + (vector / kTileRows * NumSpans(layer) + span) * kSpanTileBytes +
              vector % kTileRows * kRowBytes;
  int8_t ordered[kSpan];
  OrderSpan(layer, in_order, ordered);
  memcpy(q, ordered, (size_t)kRowBytes);
  memcpy(q + kTileBytes, ordered + kRowBytes, (size_t)kRowBytes);
  int32_t* sums = (int32_t*)((char*)prepared + layout.sums_offset) + row * layout.row_sums;
  const int32_t sum = SumBytes(in_order, kSpan);
  if (PerGroup(layer)) {
    sums[span] = (d == 0 ? 0 : sums[span]) + sum * (1 << 8 * d);
  } else {
    sums[d] = (span == 0 ? 0 : sums[d]) + sum;
  }
}

// Returns s.
double PlaceInt8Row(const Layer* layer, const Call* call, const float* x, const RowsLayout& layout,
                    int64_t row, void* prepared) {
  int8_t* in_order = (int8_t*)prepared + layout.row_offset;
  const float s = QuantizeRow(layer, call, x, in_order);
  memset(in_order + layer->K, 0, (size_t)(NumSpans(layer) * kSpan - layer->K));
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    PlaceSpan(layer, layout, row, 0, span, in_order + span * kSpan, prepared);
  }
  return (double)s;
}

// Returns 2^-e.
double PlaceFloatRow(const Layer* layer, const float* x, const RowsLayout& layout, int64_t row,
                     void* prepared) {
  const int e = FixedPointExponent(AbsMax(x, layer->K));
  const TwoFactors factors = FactorsOfPower(e);
  for (int64_t span = 0; span < NumSpans(layer); ++span) {
    int8_t in_order[kDigits][kSpan];
    SpanDigits(factors, x + span * kSpan, layer->K - span * kSpan, in_order);
    for (int d = 0; d < kDigits; ++d) {
      PlaceSpan(layer, layout, row, d, span, in_order[d], prepared);
    }
  }
  return PowerOfTwo(-e);
}

void Prepare(const Layer* layer, const Call* call, const float* x, int64_t rows, void* prepared) {
  const RowsLayout layout = MakeRowsLayout(layer, rows);
  if (rows * layout.digits % kTileRows != 0) {
    const int64_t block_bytes = NumSpans(layer) * kSpanTileBytes;
    memset((char*)prepared + (layout.num_blocks - 1) * block_bytes, 0, (size_t)block_bytes);
  }
  double* factors = (double*)((char*)prepared + layout.factors_offset);
  for (int64_t row = 0; row < rows; ++row) {
    const float* x_row = x + row * layer->K;
    factors[row] = layout.digits == 1 ? PlaceInt8Row(layer, call, x_row, layout, row, prepared)
                                      : PlaceFloatRow(layer, x_row, layout, row, prepared);
  }
}

// ---------------------------------------------------------------------------------------------
// Codes

// Decodes span after span of the columns of a call, 32 at a time, into a ring, half of 32 columns
// at a time.
struct Decoder {
  const Layer* layer;
  uint8_t* ring;  // (kRingSpans, 2 column groups, 2, 16, 64)
  int64_t tile, end_tile;
  int64_t span;
  int64_t halves;  // decoded so far

  // What span number `index` of all has become.
  const uint8_t* Decoded(int64_t index) const {
    return ring + index % kRingSpans * (2 * kSpanTileBytes);
  }

  // False where all is decoded.
  OTN_ALWAYS_INLINE bool Half() {
    if (tile >= end_tile) return false;
    const int64_t tile_bytes = TileBytes(layer);
    const int64_t ahead = span + kPrefetchSpans < NumSpans(layer)
                              ? kPrefetchSpans * kTileSpanBytes
                              : 2 * kGroupTiles * tile_bytes - span * kTileSpanBytes;
    alignas(64) uint8_t expanded[kGroupTiles][kTileSpanBytes];
    const uint8_t* columns[kGroupTiles];
    for (int64_t g = 0; g < kGroupTiles; ++g) {
      // Past the last tile its columns stand in, and nobody reads their sums.
      const int64_t at = Min(tile + halves % 2 * kGroupTiles + g, layer->num_column_tiles - 1);
      const uint8_t* codes = layer->codes + at * tile_bytes;
      if (AsIs(layer)) {
        columns[g] = codes + span * kTileSpanBytes;
        _mm_prefetch((const char*)columns[g] + ahead, _MM_HINT_T0);
        _mm_prefetch((const char*)columns[g] + ahead + 64, _MM_HINT_T0);
        continue;
      }
      __m256i four[kTile];
      ExpandSpan(layer, codes, span, four);
      for (int c = 0; c < kTile; ++c) _mm256_store_si256((__m256i*)expanded[g] + c, four[c]);
      columns[g] = expanded[g];
    }
    DecodeSpan(columns, ring + halves % (2 * kRingSpans) * kSpanTileBytes);
    if (++halves % 2 == 0 && ++span == NumSpans(layer)) {
      span = 0;
      tile += 2 * kGroupTiles;
    }
    return true;
  }
};

// ---------------------------------------------------------------------------------------------
// Products. Tiles 0 to 3 are sums: of row block 0 and column groups 0, 1, of row block 1 and the
// same; 4 and 5 activations, 6 and 7 codes. sums: (vectors, 32 columns) int32.

constexpr int64_t kSumsStride = kColumns * (int64_t)sizeof(int32_t);

// One half (64 inputs) of a span. a: the span's tiles of the first row block, block_bytes before
// those of the second; b: of both column groups.
template <int kBlocks>
OTN_ALWAYS_INLINE void MultiplyHalf(const int8_t* a, int64_t block_bytes, const uint8_t* b,
                                    int half) {
  a += half * kTileBytes;
  b += half * kTileBytes;
  OTN_TILE_LOAD(4, a, kRowBytes);
  OTN_TILE_LOAD(6, b, kRowBytes);
  if (kBlocks == 1 && half == 1) {
    OTN_TILE_DOT(2, 4, 6);
    OTN_TILE_LOAD(7, b + kSpanTileBytes, kRowBytes);
    OTN_TILE_DOT(3, 4, 7);
    return;
  }
  OTN_TILE_DOT(0, 4, 6);
  OTN_TILE_LOAD(7, b + kSpanTileBytes, kRowBytes);
  OTN_TILE_DOT(1, 4, 7);
  if (kBlocks == 1) return;
  OTN_TILE_LOAD(5, a + block_bytes, kRowBytes);
  OTN_TILE_DOT(2, 5, 6);
  OTN_TILE_DOT(3, 5, 7);
}

OTN_ALWAYS_INLINE void ClearSums() {
  OTN_TILE_ZERO(0);
  OTN_TILE_ZERO(1);
  OTN_TILE_ZERO(2);
  OTN_TILE_ZERO(3);
}

template <int kBlocks>
OTN_ALWAYS_INLINE void LoadSums(const int32_t* sums) {
  OTN_TILE_LOAD(0, sums, kSumsStride);
  OTN_TILE_LOAD(1, sums + 16, kSumsStride);
  if (kBlocks == 1) {
    OTN_TILE_ZERO(2);
    OTN_TILE_ZERO(3);
    return;
  }
  OTN_TILE_LOAD(2, sums + kTileRows * kColumns, kSumsStride);
  OTN_TILE_LOAD(3, sums + kTileRows * kColumns + 16, kSumsStride);
}

template <int kBlocks>
OTN_ALWAYS_INLINE void StoreSums(int32_t* sums) {
  OTN_TILE_STORE(0, sums, kSumsStride);
  OTN_TILE_STORE(1, sums + 16, kSumsStride);
  if (kBlocks == 2) {
    OTN_TILE_STORE(2, sums + kTileRows * kColumns, kSumsStride);
    OTN_TILE_STORE(3, sums + kTileRows * kColumns + 16, kSumsStride);
    return;
  }
  alignas(64) int32_t second[kTileRows * kColumns];
  OTN_TILE_STORE(2, second, kSumsStride);
  OTN_TILE_STORE(3, second + 16, kSumsStride);
  for (int64_t i = 0; i < kTileRows * kColumns; i += 8) {
    const __m256i sum = _mm256_add_epi32(LoadA(sums + i), LoadA(second + i));
    _mm256_store_si256((__m256i*)(sums + i), sum);
  }
}

// All of K of one or two row blocks, whose sums stay in tiles. first: number of the first span.
template <int kBlocks>
OTN_NEVER_INLINE void MultiplyFew(Decoder* decoder, const int8_t* a, int64_t first, int32_t* sums) {
  const int64_t spans = NumSpans(decoder->layer);
  const int64_t block_bytes = spans * kSpanTileBytes;
  ClearSums();
  for (int64_t span = 0; span < spans; ++span, a += kSpanTileBytes) {
    const uint8_t* b = decoder->Decoded(first + span);
    MultiplyHalf<kBlocks>(a, block_bytes, b, 0);
    decoder->Half();
    MultiplyHalf<kBlocks>(a, block_bytes, b, 1);
    decoder->Half();
  }
  StoreSums<kBlocks>(sums);
}

// `count` spans of one or two row blocks, added to sums; decodes on until `halves` are there.
template <int kBlocks>
OTN_NEVER_INLINE void MultiplyChunk(Decoder* decoder, const int8_t* a, int64_t first, int64_t count,
                                    bool add, int64_t halves, int32_t* sums) {
  const int64_t block_bytes = NumSpans(decoder->layer) * kSpanTileBytes;
  if (add) {
    LoadSums<kBlocks>(sums);
  } else {
    ClearSums();
  }
  for (int64_t i = 0; i < count; ++i, a += kSpanTileBytes) {
    const uint8_t* b = decoder->Decoded(first + i);
    MultiplyHalf<kBlocks>(a, block_bytes, b, 0);
    if (decoder->halves < halves) decoder->Half();
    MultiplyHalf<kBlocks>(a, block_bytes, b, 1);
    if (decoder->halves < halves) decoder->Half();
  }
  StoreSums<kBlocks>(sums);
}

// Spans [span, span + count) of all row blocks, `next` spans of whatever follows decoded meanwhile.
// first: number of the first of them.
void MultiplyBlocks(Decoder* decoder, const int8_t* q, int64_t num_blocks, int64_t span,
                    int64_t first, int64_t count, int64_t next, bool add, int32_t* sums) {
  const int64_t block_bytes = NumSpans(decoder->layer) * kSpanTileBytes;
  const int64_t halves = 2 * (first + count + next);
  for (int64_t block = 0; block < num_blocks; block += 2) {
    const int8_t* a = q + block * block_bytes + span * kSpanTileBytes;
    int32_t* block_sums = sums + block * kTileRows * kColumns;
    // An odd last block is not padded to two.
    if (block + 1 < num_blocks) {
      MultiplyChunk<2>(decoder, a, first, count, add, halves, block_sums);
    } else {
      MultiplyChunk<1>(decoder, a, first, count, add, halves, block_sums);
    }
  }
  while (decoder->halves < halves && decoder->Half()) {
  }
}

// ---------------------------------------------------------------------------------------------
// Y

__m256i FirstEight(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)Min(count, 8)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// What eight columns from n on share.
struct EightColumns {
  __m256i valid;  // to write
  __m256 scale, bias;
};

EightColumns MakeEightColumns(const Layer* layer, int64_t n, int64_t end) {
  const __m256i valid = FirstEight(end - n);
  return {valid,
          layer->scale_kind == ScaleKind::per_column   ? _mm256_maskload_ps(layer->scale + n, valid)
          : layer->scale_kind == ScaleKind::per_tensor ? _mm256_set1_ps(layer->scale[0])
                                                       : _mm256_set1_ps(1.0f),
          layer->bias ? _mm256_maskload_ps(layer->bias + n, valid) : _mm256_setzero_ps()};
}

// Eight numbers in float64.
struct Wide {
  __m256d low, high;
};

inline Wide Widen(__m256i v) {
  return {_mm256_cvtepi32_pd(_mm256_castsi256_si128(v)),
          _mm256_cvtepi32_pd(_mm256_extracti128_si256(v, 1))};
}

inline Wide Widen(__m256 v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}

inline Wide MultiplyAdd(Wide a, Wide b, Wide c) {
  return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}

inline __m256 Narrow(Wide v) {
  return _mm256_set_m128(_mm256_cvtpd_ps(v.high), _mm256_cvtpd_ps(v.low));
}

// total * scale * unit + bias, each operation rounded to float64.
inline __m256 FinishWide(Wide total, Wide scale, double unit, Wide bias) {
  const __m256d factor = _mm256_set1_pd(unit);
  const __m256d low = _mm256_mul_pd(_mm256_mul_pd(total.low, scale.low), factor);
  const __m256d high = _mm256_mul_pd(_mm256_mul_pd(total.high, scale.high), factor);
  return Narrow({_mm256_add_pd(low, bias.low), _mm256_add_pd(high, bias.high)});
}

// What the end of a tile of columns reads: sums (vectors, 32) and totals (rows, 32) of scratch.
struct Rows {
  int64_t count;
  const int32_t* q_sums;  // (rows, row_sums)
  int64_t row_sums;
  const double* factors;
};

void FinishInt8(const Layer* layer, const Rows& rows, const int32_t* sums, int64_t n, int64_t end,
                float* y) {
  for (int64_t c = 0; c < kColumns && n + c < end; c += 8) {
    const EightColumns columns = MakeEightColumns(layer, n + c, end);
    for (int64_t r = 0; r < rows.count; ++r) {
      // Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
      const __m256i sum =
          _mm256_sub_epi32(LoadA(sums + r * kColumns + c), _mm256_set1_epi32(rows.q_sums[r]));
      const __m256 quotient =
          _mm256_div_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps((float)rows.factors[r]));
      const __m256 value = _mm256_add_ps(_mm256_mul_ps(quotient, columns.scale), columns.bias);
      _mm256_maskstore_ps(y + r * layer->N + n + c, columns.valid, value);
    }
  }
}

void FinishFloat(const Layer* layer, const Rows& rows, const int32_t* sums, int64_t n, int64_t end,
                 float* y) {
  const Wide base = {_mm256_set1_pd(256.0), _mm256_set1_pd(256.0)};
  for (int64_t c = 0; c < kColumns && n + c < end; c += 8) {
    const EightColumns columns = MakeEightColumns(layer, n + c, end);
    const Wide scale = Widen(columns.scale), bias = Widen(columns.bias);
    for (int64_t r = 0; r < rows.count; ++r) {
      Wide digits[kDigits];
      for (int d = 0; d < kDigits; ++d) {
        digits[d] = Widen(_mm256_sub_epi32(LoadA(sums + (r * kDigits + d) * kColumns + c),
                                           _mm256_set1_epi32(rows.q_sums[r * kDigits + d])));
      }
      const Wide total = MultiplyAdd(MultiplyAdd(digits[2], base, digits[1]), base, digits[0]);
      _mm256_maskstore_ps(y + r * layer->N + n + c, columns.valid,
                          FinishWide(total, scale, rows.factors[r], bias));
    }
  }
}

// totals += scale * sum(level * q) of one span.
template <int kDigitCount>
void WeighSpan(const Layer* layer, const Rows& rows, const int32_t* sums, int64_t span, int64_t n,
               float* totals) {
  const float* scales = layer->scale + span * kSpan / layer->group_size * layer->N + n;
  for (int64_t c = 0; c < kColumns && n + c < layer->N; c += 8) {
    const __m256 scale = _mm256_maskload_ps(scales + c, FirstEight(layer->N - n - c));
    for (int64_t r = 0; r < rows.count; ++r) {
      const int32_t* row = sums + r * kDigitCount * kColumns + c;
      __m256i sum = LoadA(row + (kDigitCount - 1) * kColumns);
      for (int d = kDigitCount - 2; d >= 0; --d) {
        sum = _mm256_add_epi32(_mm256_slli_epi32(sum, 8), LoadA(row + d * kColumns));
      }
      sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(rows.q_sums[r * rows.row_sums + span]));
      float* total = totals + r * kColumns + c;
      const __m256 before = span == 0 ? _mm256_setzero_ps() : _mm256_load_ps(total);
      _mm256_store_ps(total, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, before));
    }
  }
}

// In float64: weighted sums of groups may lie outside float32.
void FinishGroups(const Layer* layer, const Rows& rows, const float* totals, int64_t n, int64_t end,
                  float* y) {
  const bool divides = layer->activation == Activation::int8;
  for (int64_t c = 0; c < kColumns && n + c < end; c += 8) {
    const EightColumns columns = MakeEightColumns(layer, n + c, end);
    const Wide bias = Widen(columns.bias);
    for (int64_t r = 0; r < rows.count; ++r) {
      const Wide total = Widen(_mm256_load_ps(totals + r * kColumns + c));
      const __m256d factor = _mm256_set1_pd(rows.factors[r]);
      const __m256d low =
          divides ? _mm256_div_pd(total.low, factor) : _mm256_mul_pd(total.low, factor);
      const __m256d high =
          divides ? _mm256_div_pd(total.high, factor) : _mm256_mul_pd(total.high, factor);
      _mm256_maskstore_ps(y + r * layer->N + n + c, columns.valid,
                          Narrow({_mm256_add_pd(low, bias.low), _mm256_add_pd(high, bias.high)}));
    }
  }
}

// ---------------------------------------------------------------------------------------------

// scratch: ring | sums (row blocks * 16, 32) int32 | totals (rows, 32) float32
size_t ScratchBytes(const Layer* layer, int64_t rows, int64_t) {
  const int64_t vectors = MakeRowsLayout(layer, rows).num_blocks * kTileRows;
  return (size_t)(kRingBytes + (vectors + rows) * kColumns * (int64_t)sizeof(int32_t));
}

// Column tile by column tile, all spans of one before the next. q: as in prepared.
struct Columns {
  const Layer* layer;
  const int8_t* q;
  int64_t num_blocks;
  Rows rows;
  int32_t* sums;
  float* totals;
  float* y;

  // Sums of the columns from n on; first: number of their first span; last: nothing follows.
  void Multiply(Decoder* decoder, int64_t first) const {
    const int64_t spans = NumSpans(layer);
    if (num_blocks == 1) return MultiplyFew<1>(decoder, q, first, sums);
    if (num_blocks == 2) return MultiplyFew<2>(decoder, q, first, sums);
    for (int64_t span = 0; span < spans; span += kChunkSpans) {
      const int64_t count = Min(kChunkSpans, spans - span);
      const int64_t left = spans - span - count;
      MultiplyBlocks(decoder, q, num_blocks, span, first + span, count,
                     Min(kChunkSpans, left > 0 ? left : spans), span > 0, sums);
    }
  }

  void MultiplyGroups(Decoder* decoder, int64_t first, int64_t n) const {
    const bool is_float = layer->activation == Activation::float32;
    for (int64_t span = 0; span < NumSpans(layer); ++span) {
      MultiplyBlocks(decoder, q, num_blocks, span, first + span, 1, 1, false, sums);
      (is_float ? WeighSpan<kDigits> : WeighSpan<1>)(layer, rows, sums, span, n, totals);
    }
  }

  void Finish(int64_t n, int64_t end) const {
    if (PerGroup(layer)) {
      FinishGroups(layer, rows, totals, n, end, y);
    } else if (layer->activation == Activation::float32) {
      FinishFloat(layer, rows, sums, n, end, y);
    } else {
      FinishInt8(layer, rows, sums, n, end, y);
    }
  }
};

void Compute(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
             int64_t end, float* y, void* scratch) {
  const RowsLayout layout = MakeRowsLayout(layer, rows);
  const char* base = (const char*)prepared;
  const Rows of = {rows, (const int32_t*)(base + layout.sums_offset), layout.row_sums,
                   (const double*)(base + layout.factors_offset)};
  int32_t* sums = (int32_t*)((char*)scratch + kRingBytes);
  float* totals = (float*)(sums + layout.num_blocks * kTileRows * kColumns);
  const Columns columns = {layer, (const int8_t*)base, layout.num_blocks, of, sums, totals, y};
  Decoder decoder = {layer, (uint8_t*)scratch, begin / kTile, (end + kTile - 1) / kTile, 0, 0};
  ConfigureTiles();
  // One span less than the ring holds: a span is overwritten only when its products are done.
  while (decoder.halves < 2 * (kRingSpans - 1) && decoder.Half()) {
  }
  int64_t first = 0;
  for (int64_t n = begin; n < end; n += kColumns, first += NumSpans(layer)) {
    if (PerGroup(layer)) {
      columns.MultiplyGroups(&decoder, first, n);
    } else {
      columns.Multiply(&decoder, first);
    }
    columns.Finish(n, end);
  }
  ReleaseTiles();
}

// Sums of integers are exact. Scales per group: one addition per span.
int64_t Depth(const Layer* layer) { return PerGroup(layer) ? NumSpans(layer) : 0; }

}  // namespace
}  // namespace amx_int8

extern const Kernel packed_gemm_int8_32x32_amx = {
    "packed_gemm_int8_32x32_amx",
    IndexFormat::packed,
    Activation::int8,
    Isa::amx_int8,
    amx_int8::Accepts,
    /*max_rows=*/amx_int8::kInt8MaxRows,
    /*column_step=*/amx_int8::kColumns,
    amx_int8::Depth,
    /*fixed_point=*/false,
    amx_int8::PreparedBytes,
    amx_int8::Prepare,
    amx_int8::ScratchBytes,
    amx_int8::Compute,
    // Not read, but absent where a scale is too large for float32 sums.
    /*reads_block_scales=*/true,
};

extern const Kernel packed_gemm_float_10x32_amx = {
    "packed_gemm_float_10x32_amx",
    IndexFormat::packed,
    Activation::float32,
    Isa::amx_int8,
    amx_int8::Accepts,
    /*max_rows=*/amx_int8::kFloatMaxRows,
    /*column_step=*/amx_int8::kColumns,
    amx_int8::Depth,
    /*fixed_point=*/true,
    amx_int8::PreparedBytes,
    amx_int8::Prepare,
    amx_int8::ScratchBytes,
    amx_int8::Compute,
    /*reads_block_scales=*/true,
};

}  // namespace onnx_ternary
