// Kernels for `packed`, AVX2: batched lookup GEMM, float and int8 (method of four Russians,
// Arlazarov et al. 1970, the patterns of arXiv 2411.06360 turned round). Lanes are rows of X: 8 of
// float32, 16 of int16. The 81 sums +-x0 +-x1 +-x2 +-x3 of a group of four inputs (those of one
// byte of codes) are built once; each column then adds one table row per four weights: a quarter of
// the additions of a dense product, and no multiplication.
//
// Layout: span.h; the four fields of byte p of a column are inputs B b + (B/4) j + i where
// p = (B/4) b + i. A step is 8 bytes, 32 inputs: its tables (20 KB) stay in L1, the sums of a chunk
// of columns wait in L2 between steps. Codes are transcoded to base 3 (digit 3, in damaged files
// only, becomes 0: every index stays inside the table). Everything in prepared and scratch is
// 64-byte aligned.
//
// Ranges of int16. q is an int8 in [-128, 127] and levels are -1, 0, 1, so a table row is at most
// 4 * 128 = 512 in magnitude, and the 32 bytes of a span add up to 32 * 512 = 16384. (64 bytes
// would not do: -128 * -1 in all of them is 32768.) So int16 sums cover a span, then go to int32,
// where 128 K < 2^31 for every K below 2^24; or, with scales per group, times the scale to float64.
//
// prepared: float  x (row blocks, num_spans, 32 bytes, 4 fields, 8 rows) float32
//           int8   x (row blocks, num_spans, 32 bytes, 4 fields, 16 rows) int8 | s (rows,) float |
//                  16 rows in order; both zero past K and rows
// scratch:  tables | codes (columns, 4) uint64 | scales (columns) | sums (columns, lanes) | totals
//           (columns, lanes): float32 with scales per group; int32, or float64 with scales per
//           group
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/span_avx2.h"
// After its macros.
#include "common/lookup.h"
#include "kernel_list.h"

#if defined(__clang__)
#define OTN_UNROLL8 _Pragma("unroll 8")
#elif defined(__GNUC__)
#define OTN_UNROLL8 _Pragma("GCC unroll 8")
#else
#define OTN_UNROLL8
#endif

namespace onnx_ternary {
namespace avx2 {
namespace {

constexpr int64_t kTables = 8;                    // groups of four inputs in L1 at a time
constexpr int64_t kSteps = kSpanBytes / kTables;  // per span
constexpr int64_t kTableSet = 4;                  // tables interleaved
constexpr int64_t kVectorBytes = 32;
constexpr int64_t kTableRowBytes = kTableSet * kVectorBytes;  // from one pattern to the next
constexpr int kOffsetShift = 7;                               // pattern to bytes, in any table
constexpr int64_t kStepInputs = 4 * kTables;
constexpr int64_t kColumns = 8;  // interleaved, to hide the latency of additions
// Bytes of sums and codes a pass over K may touch, so that they stay in L2. The tables are rebuilt
// for every pass.
constexpr int64_t kChunkBytes = 320 << 10;

// A span's codes lie in as many places as there are tiles, which no hardware foresees: a tenth to a
// sixth of the time of layers outside L2 (Zen 5).
constexpr int64_t kPrefetchSpans = 2;

static_assert(kTableRowBytes == 1 << kOffsetShift, "an offset is a shifted pattern");

// What the accumulators of a step begin with.
enum class Start { zero, sums };

struct FloatRows {
  typedef float Input;
  typedef float Value;
  typedef __m256 Vector;
  static constexpr int64_t kLanes = 8;
  static constexpr bool kWidens = false;

  static int64_t TotalBytes(const Layer* layer) { return PerGroup(layer) ? 4 : 0; }
  static Vector LoadInput(const Input* x) { return _mm256_load_ps(x); }
  static Vector Zero() { return _mm256_setzero_ps(); }
  static Vector Load(const Value* p) { return _mm256_load_ps(p); }
  static void Store(Value* p, Vector v) { _mm256_store_ps(p, v); }
  static Vector Plus(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector Minus(Vector a, Vector b) { return _mm256_sub_ps(a, b); }

  template <Finish>
  static void Flush(Vector acc, void* totals, int64_t column, const float* scales) {
    float* total = (float*)totals + column * kLanes;
    const __m256 scale = _mm256_broadcast_ss(scales + column);
    _mm256_store_ps(total, _mm256_fmadd_ps(acc, scale, _mm256_load_ps(total)));
  }
};

struct Int16Rows {
  typedef int8_t Input;
  typedef int16_t Value;
  typedef __m256i Vector;
  static constexpr int64_t kLanes = 16;
  static constexpr bool kWidens = true;

  static int64_t TotalBytes(const Layer* layer) { return PerGroup(layer) ? 8 : 4; }
  static Vector LoadInput(const Input* x) {
    return _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)x));
  }
  static Vector Zero() { return _mm256_setzero_si256(); }
  static Vector Load(const Value* p) { return LoadA(p); }
  static void Store(Value* p, Vector v) { _mm256_store_si256((__m256i*)p, v); }
  static Vector Plus(Vector a, Vector b) { return _mm256_add_epi16(a, b); }
  static Vector Minus(Vector a, Vector b) { return _mm256_sub_epi16(a, b); }

  // Totals are in the order 0, 2 .. 14, 1, 3 .. 15.
  template <Finish kFinish>
  static void Flush(Vector acc, void* totals, int64_t column, const float* scales) {
    const __m256i halves[2] = {_mm256_srai_epi32(_mm256_slli_epi32(acc, 16), 16),
                               _mm256_srai_epi32(acc, 16)};
    if (kFinish == Finish::widen) {
      __m256i* total = (__m256i*)((int32_t*)totals + column * kLanes);
      for (int i = 0; i < 2; ++i) {
        _mm256_store_si256(total + i, _mm256_add_epi32(LoadA(total + i), halves[i]));
      }
      return;
    }
    double* total = (double*)totals + column * kLanes;
    const __m256d scale = _mm256_cvtps_pd(_mm_broadcast_ss(scales + column));
    for (int i = 0; i < 4; ++i) {
      const __m128i quarter = i % 2 ? _mm256_extracti128_si256(halves[i / 2], 1)
                                    : _mm256_castsi256_si128(halves[i / 2]);
      _mm256_store_pd(total + i * 4, _mm256_fmadd_pd(_mm256_cvtepi32_pd(quarter), scale,
                                                     _mm256_load_pd(total + i * 4)));
    }
  }
};

// acc += *row. gcc 12 hoists the loads of all columns and spills them (17 instead of 30 MAC/cycle
// on Zen 3); an assembler addition keeps load and add together. Sanitizers cannot see its loads.
inline void AddRow(__m256* acc, const char* row) {
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
  *acc = _mm256_add_ps(*acc, _mm256_load_ps((const float*)row));
#else
  __asm__ volatile("vaddps %1, %0, %0" : "+x"(*acc) : "m"(*(const __m256*)row));
#endif
}

inline void AddRow(__m256i* acc, const char* row) {
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
  *acc = _mm256_add_epi16(*acc, LoadA(row));
#else
  __asm__ volatile("vpaddw %1, %0, %0" : "+x"(*acc) : "m"(*(const __m256i*)row));
#endif
}

template <typename Rows>
int64_t RowBlocks(int64_t rows) {
  return (rows + Rows::kLanes - 1) / Rows::kLanes;
}

template <typename Rows>
int64_t MostColumns(const Layer* layer) {
  const int64_t sums_bytes = kVectorBytes + Rows::kLanes * Rows::TotalBytes(layer);
  return kChunkBytes / (kSpanBytes + sums_bytes) / kColumns * kColumns;
}

template <typename Rows>
int64_t ChunkColumns(const Layer* layer, int64_t num_columns) {
  const int64_t most = MostColumns<Rows>(layer);
  const int64_t num_chunks = (num_columns + most - 1) / most;
  return RoundUp((num_columns + num_chunks - 1) / num_chunks, kColumns);
}

struct GemmScratch {
  size_t codes_offset, scales_offset, sums_offset, totals_offset, totals_bytes, bytes;
};

template <typename Rows>
GemmScratch GemmScratchLayout(const Layer* layer, int64_t chunk_columns) {
  const size_t columns = (size_t)chunk_columns;
  GemmScratch layout;
  layout.codes_offset = RoundUp64((size_t)(kTables * kPatterns * kVectorBytes));
  layout.scales_offset = layout.codes_offset + RoundUp64(columns * (size_t)kSpanBytes);
  layout.sums_offset = layout.scales_offset + RoundUp64(columns * sizeof(float));
  layout.totals_offset = layout.sums_offset + columns * (size_t)kVectorBytes;
  layout.totals_bytes = columns * (size_t)(Rows::kLanes * Rows::TotalBytes(layer));
  layout.bytes = layout.totals_offset + layout.totals_bytes;
  return layout;
}

template <typename Rows>
size_t GemmScratchBytes(const Layer* layer, int64_t, int64_t num_columns) {
  // Chunks are even, so those of a narrower range can be wider: one of 4096 columns, two of 2052.
  const int64_t most = Min(num_columns, MostColumns<Rows>(layer));
  return GemmScratchLayout<Rows>(layer, RoundUp(most, kColumns)).bytes;
}

// Tables of eight bytes from x (8 bytes, 4 fields, lanes): (2 sets, 81 patterns, 4 tables, lanes).
template <typename Rows>
void BuildTables(const typename Rows::Input* x, typename Rows::Value* tables) {
  constexpr int64_t kTableRow = kTableSet * Rows::kLanes;
  for (int64_t t = 0; t < kTables; ++t) {
    typename Rows::Vector low[9], high[9];
    const typename Rows::Input* inputs = x + t * 4 * Rows::kLanes;
    PairSums<Rows>(Rows::LoadInput(inputs), Rows::LoadInput(inputs + Rows::kLanes), low);
    PairSums<Rows>(Rows::LoadInput(inputs + 2 * Rows::kLanes),
                   Rows::LoadInput(inputs + 3 * Rows::kLanes), high);
    typename Rows::Value* table =
        tables + t / kTableSet * kPatterns * kTableRow + t % kTableSet * Rows::kLanes;
    for (int h = 0; h < 9; ++h) {
      for (int l = 0; l < 9; ++l) {
        Rows::Store(table + (h * 9 + l) * kTableRow, Rows::Plus(high[h], low[l]));
      }
    }
  }
}

// Codes of a span, columns [begin, begin + num_columns), as base-3 patterns: codes (stride, 4)
// words of eight bytes. Columns up to stride get pattern 40, level 0.
void Transcode(const Layer* layer, int64_t span, int64_t begin, int64_t num_columns, int64_t stride,
               uint64_t* codes) {
  // Low nibble: d0 + 3 d1; high nibble: 9 d2 + 27 d3; digit 3 counts as 0.
  const __m256i low_pattern = _mm256_setr_epi8(0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0, 0, 1,
                                               2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0);
  const __m256i high_pattern =
      _mm256_setr_epi8(0, 9, 18, 0, 27, 36, 45, 27, 54, 63, 72, 54, 0, 9, 18, 0, 0, 9, 18, 0, 27,
                       36, 45, 27, 54, 63, 72, 54, 0, 9, 18, 0);
  const __m256i nibble = _mm256_set1_epi8(15);
  const int64_t tile_stride = layer->num_k_blocks * kTile * layer->block_bytes;
  const int64_t span_bytes = SpanUnits(layer) * kTile * layer->block_bytes;
  const uint8_t* tile = layer->codes + begin / kTile * tile_stride;
  const bool as_is = AsIs(layer);
  int64_t n = 0;
  for (; n < num_columns; n += kTile, tile += tile_stride) {
    __m256i columns[kTile];
    const uint8_t* ahead = tile + (span + kPrefetchSpans) * span_bytes;
    _mm_prefetch((const char*)ahead, _MM_HINT_T1);
    _mm_prefetch((const char*)ahead + 64, _MM_HINT_T1);
    if (as_is) {
      for (int c = 0; c < kTile; ++c) {
        columns[c] = LoadU(tile + span * kTileSpanBytes + c * kSpanBytes);
      }
    } else {
      ExpandSpan(layer, tile, span, columns);
    }
    for (int64_t c = 0; c < kTile; ++c) {
      const __m256i v = columns[c];
      const __m256i pattern = _mm256_add_epi8(
          _mm256_shuffle_epi8(low_pattern, _mm256_and_si256(v, nibble)),
          _mm256_shuffle_epi8(high_pattern, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble)));
      _mm256_store_si256((__m256i*)(codes + (n + c) * kSteps), pattern);
    }
  }
  memset(codes + n * kSteps, 40, (size_t)((stride - n) * kSpanBytes));
}

// Adds the table rows of tables [kFirst, kEnd) to each column's sums. codes (columns, 4), from the
// word of this step on; sums and totals (columns, lanes).
template <typename Rows, Start kStart, Finish kFinish, int kFirst, int kEnd>
void LookupStep(const uint64_t* codes, int64_t num_columns, const typename Rows::Value* tables,
                typename Rows::Value* sums, void* totals, const float* scales) {
  // Rotate so that the code stands at bit 7, and mask.
  uint64_t mask = (uint64_t)255 << kOffsetShift;
#if defined(__GNUC__)
  __asm__("" : "+r"(mask));  // keeps it in a register: an immediate would cost a longer encoding
#endif
  const char* set0 = (const char*)tables;
  const char* set1 = set0 + kPatterns * kTableRowBytes;
  for (int64_t n = 0; n < num_columns; n += kColumns) {
    uint64_t code[kColumns];
    typename Rows::Vector acc[kColumns];
    OTN_UNROLL8
    for (int c = 0; c < kColumns; ++c) {
      code[c] = codes[(n + c) * kSteps];
      acc[c] = kStart == Start::zero ? Rows::Zero() : Rows::Load(sums + (n + c) * Rows::kLanes);
    }
    OTN_UNROLL8
    for (int t = kFirst; t < kEnd; ++t) {
      const int rotate = (8 * t - kOffsetShift) & 63;
      const char* set = (t < kTableSet ? set0 : set1) + t % kTableSet * kVectorBytes;
      OTN_UNROLL8
      for (int c = 0; c < kColumns; ++c) {
        const uint64_t offset = (code[c] >> rotate | code[c] << (64 - rotate)) & mask;
        AddRow(&acc[c], set + offset);
      }
    }
    OTN_UNROLL8
    for (int c = 0; c < kColumns; ++c) {
      if (kFinish == Finish::sums) {
        Rows::Store(sums + (n + c) * Rows::kLanes, acc[c]);
      } else {
        Rows::template Flush<kFinish>(acc[c], totals, n + c, scales);
      }
    }
  }
}

template <typename Rows, int kFirst, int kEnd>
void Lookup(bool starts, Finish finish, const uint64_t* codes, int64_t num_columns,
            const typename Rows::Value* tables, typename Rows::Value* sums, void* totals,
            const float* scales) {
  auto* step = starts ? LookupStep<Rows, Start::zero, Finish::sums, kFirst, kEnd>
                      : LookupStep<Rows, Start::sums, Finish::sums, kFirst, kEnd>;
  if (finish == Finish::weigh) {
    step = starts ? LookupStep<Rows, Start::zero, Finish::weigh, kFirst, kEnd>
                  : LookupStep<Rows, Start::sums, Finish::weigh, kFirst, kEnd>;
  }
  if constexpr (Rows::kWidens) {
    if (finish == Finish::widen) {
      step = starts ? LookupStep<Rows, Start::zero, Finish::widen, kFirst, kEnd>
                    : LookupStep<Rows, Start::sums, Finish::widen, kFirst, kEnd>;
    }
  }
  step(codes, num_columns, tables, sums, totals, scales);
}

// Sums, or totals where there are any, of columns [begin, begin + num_columns) for the rows of one
// block: x (num_spans, 32 bytes, 4 fields, lanes).
template <typename Rows>
void LookupColumns(const Layer* layer, const typename Rows::Input* x, int64_t begin,
                   int64_t num_columns, const GemmScratch& layout, char* scratch) {
  typedef typename Rows::Value Value;
  const int64_t num_spans = NumSpans(layer);
  const bool per_group = PerGroup(layer);
  const int64_t padded_K = layer->num_k_blocks * layer->block_size;
  const int64_t padded_columns = RoundUp(num_columns, kColumns);
  const int64_t group_size = per_group ? layer->group_size : num_spans * kSpan;
  // Inputs between the places where a group can end.
  const int64_t stretch = group_size % kStepInputs == 0 ? kStepInputs : kStepInputs / 2;
  Value* tables = (Value*)scratch;
  uint64_t* codes = (uint64_t*)(scratch + layout.codes_offset);
  float* scales = (float*)(scratch + layout.scales_offset);
  Value* sums = (Value*)(scratch + layout.sums_offset);
  void* totals = scratch + layout.totals_offset;
  memset(totals, 0, layout.totals_bytes);
  for (int64_t span = 0; span < num_spans; ++span) {
    Transcode(layer, span, begin, RoundUp(num_columns, kTile), padded_columns, codes);
    for (int64_t step = 0; step < kSteps; ++step) {
      const uint64_t* step_codes = codes + step;
      BuildTables<Rows>(x + (span * kSpan + step * kStepInputs) * Rows::kLanes, tables);
      for (int64_t part = 0; part < kStepInputs; part += stretch) {
        // Counted in inputs; those of a whole block come together.
        const int64_t first = span * kSpan + step * kStepInputs + part;
        if (first >= padded_K) continue;
        const int64_t last = first + stretch;
        const bool starts = first % group_size == 0 || (Rows::kWidens && first % kSpan == 0);
        const bool ends =
            last % group_size == 0 || (Rows::kWidens && last % kSpan == 0) || last >= padded_K;
        const Finish finish = !ends           ? Finish::sums
                              : per_group     ? Finish::weigh
                              : Rows::kWidens ? Finish::widen
                                              : Finish::sums;
        if (finish == Finish::weigh) {
          const float* scale_row = layer->scale + first / group_size * layer->N + begin;
          for (int64_t i = 0; i < padded_columns; ++i) {
            scales[i] = i < num_columns ? scale_row[i] : 0;
          }
        }
        if (stretch == kStepInputs) {
          Lookup<Rows, 0, kTables>(starts, finish, step_codes, padded_columns, tables, sums, totals,
                                   scales);
        } else if (part == 0) {
          Lookup<Rows, 0, kTableSet>(starts, finish, step_codes, padded_columns, tables, sums,
                                     totals, scales);
        } else {
          Lookup<Rows, kTableSet, kTables>(starts, finish, step_codes, padded_columns, tables, sums,
                                           totals, scales);
        }
      }
    }
  }
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

// Scales and biases of eight columns, of which the first `valid` exist. Scales per group are
// already in the totals.
struct ColumnFactors {
  __m256 scale, bias;
};

ColumnFactors LoadFactors(const Layer* layer, int64_t column, int64_t valid) {
  float scale[8], bias[8];
  for (int64_t i = 0; i < 8; ++i) {
    const int64_t at = column + (i < valid ? i : 0);
    scale[i] = layer->scale_kind == ScaleKind::per_tensor   ? layer->scale[0]
               : layer->scale_kind == ScaleKind::per_column ? layer->scale[at]
                                                            : 1.0f;
    bias[i] = layer->bias ? layer->bias[at] : 0.0f;
  }
  return {_mm256_loadu_ps(scale), _mm256_loadu_ps(bias)};
}

void StoreColumns(float* y, __m256 v, int64_t valid) {
  if (valid == 8) {
    _mm256_storeu_ps(y, v);
    return;
  }
  float buffer[8];
  _mm256_storeu_ps(buffer, v);
  for (int64_t i = 0; i < valid; ++i) y[i] = buffer[i];
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_float_8x8

size_t GemmFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return (size_t)(RowBlocks<FloatRows>(rows) * NumSpans(layer) * kSpan * FloatRows::kLanes) *
         sizeof(float);
}

void PrepareGemmFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  constexpr int64_t kLanes = FloatRows::kLanes;
  const int64_t K = layer->K;
  int32_t place[kSpan];
  InputPlaces(layer, place);
  float* out = (float*)prepared;
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t valid_rows = Min(rows - row, kLanes);
    for (int64_t k = 0; k < NumSpans(layer) * kSpan; k += kSpan) {
      float buffer[kLanes * kSpan];
      const float* span = x + row * K + k;
      int64_t stride = K;
      const int64_t valid_inputs = Min(K - k, kSpan);
      if (valid_rows < kLanes || valid_inputs < kSpan) {
        memset(buffer, 0, sizeof buffer);
        for (int64_t r = 0; r < valid_rows; ++r) {
          memcpy(buffer + r * kSpan, span + r * K, (size_t)valid_inputs * sizeof(float));
        }
        span = buffer;
        stride = kSpan;
      }
      for (int64_t i = 0; i < kSpan; i += 8) {
        __m256 v[8];
        for (int r = 0; r < 8; ++r) v[r] = _mm256_loadu_ps(span + r * stride + i);
        Transpose8x8(v);
        for (int e = 0; e < 8; ++e) _mm256_store_ps(out + place[i + e] * kLanes, v[e]);
      }
      out += kSpan * kLanes;
    }
  }
}

// (columns, 8 rows) to row-major Y, with scale (unless already applied) and bias.
void StoreFloatRows(const Layer* layer, const float* sums, int64_t begin, int64_t num_columns,
                    int64_t valid_rows, float* y) {
  for (int64_t n = 0; n < num_columns; n += 8) {
    const int64_t valid = Min(num_columns - n, 8);
    __m256 v[8];
    for (int i = 0; i < 8; ++i) v[i] = _mm256_load_ps(sums + (n + i) * FloatRows::kLanes);
    Transpose8x8(v);
    const ColumnFactors factors = LoadFactors(layer, begin + n, valid);
    for (int64_t r = 0; r < valid_rows; ++r) {
      StoreColumns(y + r * layer->N + begin + n, _mm256_fmadd_ps(v[r], factors.scale, factors.bias),
                   valid);
    }
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  const int64_t stride = ChunkColumns<FloatRows>(layer, end - begin);
  const GemmScratch layout = GemmScratchLayout<FloatRows>(layer, stride);
  const size_t result_offset = PerGroup(layer) ? layout.totals_offset : layout.sums_offset;
  for (int64_t row = 0; row < rows; row += FloatRows::kLanes) {
    const float* x = (const float*)prepared + row * NumSpans(layer) * kSpan;
    for (int64_t n = begin; n < end; n += stride) {
      const int64_t num_columns = Min(stride, end - n);
      LookupColumns<FloatRows>(layer, x, n, num_columns, layout, (char*)scratch);
      StoreFloatRows(layer, (const float*)((char*)scratch + result_offset), n, num_columns,
                     Min(rows - row, FloatRows::kLanes), y + row * layer->N);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_16x8

struct Int8Prepared {
  size_t s_offset, in_order_offset, bytes;
};

Int8Prepared Int8PreparedLayout(const Layer* layer, int64_t rows) {
  const int64_t block_bytes = NumSpans(layer) * kSpan * Int16Rows::kLanes;
  Int8Prepared layout;
  layout.s_offset = (size_t)(RowBlocks<Int16Rows>(rows) * block_bytes);
  layout.in_order_offset = layout.s_offset + RoundUp64((size_t)rows * sizeof(float));
  layout.bytes = layout.in_order_offset + (size_t)block_bytes;
  return layout;
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8PreparedLayout(layer, rows).bytes;
}

// Four perfect shuffles of 256 bytes turn row-major into column-major.
void Transpose16x16(__m128i* r) {
  for (int round = 0; round < 4; ++round) {
    __m128i next[16];
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]);
      next[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
    }
    memcpy(r, next, sizeof next);
  }
}

void PrepareGemmInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  constexpr int64_t kLanes = Int16Rows::kLanes;
  const Int8Prepared layout = Int8PreparedLayout(layer, rows);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  int32_t place[kSpan];
  InputPlaces(layer, place);
  int8_t* out = (int8_t*)prepared;
  float* s = (float*)((char*)prepared + layout.s_offset);
  int8_t* in_order = (int8_t*)prepared + layout.in_order_offset;
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t valid_rows = Min(rows - row, kLanes);
    QuantizeBlock(layer, call, x + row * layer->K, valid_rows, kLanes, s + row, in_order);
    for (int64_t k = 0; k < padded_K; k += 16) {
      __m128i v[16];
      for (int r = 0; r < 16; ++r) {
        v[r] = _mm_load_si128((const __m128i*)(in_order + r * padded_K + k));
      }
      Transpose16x16(v);
      int8_t* span = out + k / kSpan * kSpan * kLanes;
      for (int e = 0; e < 16; ++e) {
        _mm_store_si128((__m128i*)(span + place[k % kSpan + e] * kLanes), v[e]);
      }
    }
    out += padded_K * kLanes;
  }
}

// Totals (columns, 16) to row-major Y in the operations of docs/op_spec.md. s: of the 16 rows.
void StoreInt8Rows(const Layer* layer, const void* totals, const float* s, int64_t begin,
                   int64_t num_columns, int64_t valid_rows, float* y) {
  const bool per_group = PerGroup(layer);
  for (int64_t n = 0; n < num_columns; n += 8) {
    const int64_t valid = Min(num_columns - n, 8);
    const ColumnFactors factors = LoadFactors(layer, begin + n, valid);
    for (int64_t odd = 0; odd < 2; ++odd) {
      __m256 v[8];
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t at = (n + i) * Int16Rows::kLanes + odd * 8;
        if (!per_group) {
          v[i] = _mm256_cvtepi32_ps(LoadA((const int32_t*)totals + at));
          continue;
        }
        // In float64: weighted sums of groups may lie outside float32.
        const double* total = (const double*)totals + at;
        const __m256d low = _mm256_setr_pd(s[odd], s[odd + 2], s[odd + 4], s[odd + 6]);
        const __m256d high = _mm256_setr_pd(s[odd + 8], s[odd + 10], s[odd + 12], s[odd + 14]);
        v[i] = _mm256_set_m128(_mm256_cvtpd_ps(_mm256_div_pd(_mm256_load_pd(total + 4), high)),
                               _mm256_cvtpd_ps(_mm256_div_pd(_mm256_load_pd(total), low)));
      }
      Transpose8x8(v);
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t row = 2 * i + odd;
        if (row >= valid_rows) break;
        __m256 result = v[i];
        if (!per_group) {
          result = _mm256_mul_ps(_mm256_div_ps(result, _mm256_set1_ps(s[row])), factors.scale);
        }
        StoreColumns(y + row * layer->N + begin + n, _mm256_add_ps(result, factors.bias), valid);
      }
    }
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  constexpr int64_t kLanes = Int16Rows::kLanes;
  const int64_t stride = ChunkColumns<Int16Rows>(layer, end - begin);
  const GemmScratch layout = GemmScratchLayout<Int16Rows>(layer, stride);
  const float* all_s =
      (const float*)((const char*)prepared + Int8PreparedLayout(layer, rows).s_offset);
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t valid_rows = Min(rows - row, kLanes);
    const int8_t* x = (const int8_t*)prepared + row * NumSpans(layer) * kSpan;
    float s[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) s[r] = r < valid_rows ? all_s[row + r] : 1.0f;
    for (int64_t n = begin; n < end; n += stride) {
      const int64_t num_columns = Min(stride, end - n);
      LookupColumns<Int16Rows>(layer, x, n, num_columns, layout, (char*)scratch);
      StoreInt8Rows(layer, (const char*)scratch + layout.totals_offset, s, n, num_columns,
                    valid_rows, y + row * layer->N);
    }
  }
}

}  // namespace
}  // namespace avx2

extern const Kernel packed_gemm_float_8x8_avx2 = {
    "packed_gemm_float_8x8_avx2",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/kTile,
    LookupDepth,
    /*fixed_point=*/false,
    avx2::GemmFloatPreparedBytes,
    avx2::PrepareGemmFloat,
    avx2::GemmScratchBytes<avx2::FloatRows>,
    avx2::GemmFloat,
};

extern const Kernel packed_gemm_int8_16x8_avx2 = {
    "packed_gemm_int8_16x8_avx2",
    IndexFormat::packed,
    Activation::int8,
    Isa::avx2,
    /*accepts=*/nullptr,
    /*max_rows=*/avx2::kGemmMaxRows,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    avx2::GemmInt8PreparedBytes,
    avx2::PrepareGemmInt8,
    avx2::GemmScratchBytes<avx2::Int16Rows>,
    avx2::GemmInt8,
};

}  // namespace onnx_ternary
