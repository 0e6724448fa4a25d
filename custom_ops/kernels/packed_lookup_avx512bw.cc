// Kernel for `packed`, AVX-512: batched lookup GEMM (float; method of four Russians, Arlazarov et
// al. 1970, the patterns of arXiv 2411.06360 turned round). Lanes are sixteen rows of X. The 81
// sums +-x0 +-x1 +-x2 +-x3 of a group of four inputs (those of one byte of codes) are built once;
// each column then adds one table row per four weights: a quarter of the additions of a dense
// product, and no multiplication.
//
// Layout: docs/index_format.md sections 2.1 and 2.3, read in spans of 128 inputs (span.h):
// 32 bytes of codes per column, the four fields of byte p being inputs B b + (B/4) j + i where
// p = (B/4) b + i. A step is 8 bytes, 32 inputs. Loads of codes are unaligned (memory-mapped
// files); everything in prepared and scratch is 64-byte aligned.
//
// Longest chain of additions: two per table row, then one per byte of the column.
//
// prepared: x (row blocks, num_spans, 32 bytes, 4 fields, 16 rows) float32, zero past K and rows
// scratch:  tables | codes (steps, columns, kTables) uint8 | scales (columns) | sums
//           (columns, 16) | with scales per group: totals (columns, 16)
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/span_avx512.h"
// After its pragmas.
#include "common/lookup.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace avx512 {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kTables = 8;                     // groups of four inputs at a time
constexpr int64_t kSteps = kSpanBytes / kTables;   // per span
constexpr int64_t kTableSet = 4;                   // tables interleaved
constexpr int64_t kTableRow = kTableSet * kLanes;  // floats from one pattern to the next
constexpr int kOffsetShift = 8;                    // pattern to bytes from the table's first row
typedef uint64_t Codes;                            // kTables bytes of one column
constexpr int64_t kColumns = 8;                    // interleaved, to hide the latency of additions
constexpr int64_t kStepInputs = 4 * kTables;
constexpr int64_t kMaxRows = 64;
// Bytes of sums and offsets a pass over K may touch: they stay in L2. The tables are rebuilt for
// every pass.
constexpr int64_t kChunkBytes = 320 << 10;

static_assert((kTableRow * 4) == (1 << kOffsetShift), "an offset is a shifted pattern");

int64_t RowBlocks(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

int64_t MostColumns(const Layer* layer) {
  const int64_t column_bytes = kLanes * 4 * (PerGroup(layer) ? 2 : 1) + kSpanBytes;
  return Max(kChunkBytes / column_bytes, 512);
}

int64_t ChunkColumns(const Layer* layer, int64_t num_columns) {
  const int64_t most = MostColumns(layer);
  const int64_t num_chunks = (num_columns + most - 1) / most;
  return RoundUp((num_columns + num_chunks - 1) / num_chunks, kLanes);
}

struct Scratch {
  size_t codes_offset, scales_offset, sums_offset, tile_bytes, bytes;
};

Scratch ScratchLayout(const Layer* layer, int64_t chunk_columns) {
  const size_t columns = (size_t)chunk_columns;
  Scratch layout;
  layout.codes_offset =
      RoundUp64((size_t)(kTables / kTableSet * kPatterns * kTableRow) * sizeof(float));
  layout.scales_offset = layout.codes_offset + columns * (size_t)kSpanBytes;
  layout.sums_offset = layout.scales_offset + RoundUp64(columns * sizeof(float));
  layout.tile_bytes = columns * (size_t)kLanes * sizeof(float);
  layout.bytes = layout.sums_offset + layout.tile_bytes * (PerGroup(layer) ? 2 : 1);
  return layout;
}

size_t GemmFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return (size_t)(RowBlocks(rows) * NumSpans(layer) * kSpan * kLanes) * sizeof(float);
}

size_t GemmFloatScratchBytes(const Layer* layer, int64_t, int64_t num_columns) {
  // Chunks are even, so those of a narrower range can be wider.
  const int64_t columns = RoundUp(Min(num_columns, MostColumns(layer)), kLanes);
  return ScratchLayout(layer, columns).bytes;
}

void Transpose16x16(__m512* r) {
  __m512 pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  // quads[4 g + j]: in lane l, column 4 l + j of rows 4 g .. 4 g + 3.
  for (int i = 0; i < 16; i += 4) {
    quads[i] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    quads[i + 1] = _mm512_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
    quads[i + 2] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    quads[i + 3] = _mm512_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512 low01 = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x44);
    const __m512 high01 = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xee);
    r[j] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    r[4 + j] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[8 + j] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    r[12 + j] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

void PrepareGemmFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  const int64_t K = layer->K;
  const int64_t quarter = layer->block_size / 4;
  int32_t place[kSpan];  // of every input of a span
  for (int64_t input = 0; input < kSpan; ++input) {
    const int64_t block = input / layer->block_size, in_block = input % layer->block_size;
    const int64_t p = block * quarter + in_block % quarter;
    place[input] = (int32_t)((p * 4 + in_block / quarter) * kLanes);
  }
  float* out = (float*)prepared;
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t valid_rows = Min(rows - row, kLanes);
    for (int64_t k = 0; k < NumSpans(layer) * kSpan; k += kSpan) {
      const float* span = x + row * K + k;
      for (int64_t input = 0; input < kSpan; input += kLanes) {
        const __mmask16 valid = FirstSixteen(Max(K - k - input, 0));
        __m512 v[16];
        for (int64_t r = 0; r < kLanes; ++r) {
          v[r] = r < valid_rows ? _mm512_maskz_loadu_ps(valid, span + r * K + input)
                                : _mm512_setzero_ps();
        }
        Transpose16x16(v);
        for (int64_t e = 0; e < kLanes; ++e) _mm512_store_ps(out + place[input + e], v[e]);
      }
      out += kSpan * kLanes;
    }
  }
}

// What PairSums adds.
struct FloatRows {
  typedef __m512 Vector;
  static Vector Zero() { return _mm512_setzero_ps(); }
  static Vector Plus(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector Minus(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
};

// Tables of kTables bytes from x (bytes, 4 fields, 16 rows): (sets, 81 patterns, 4 tables, 16
// rows).
void BuildTables(const float* x, float* tables) {
  for (int64_t t = 0; t < kTables; ++t) {
    const float* inputs = x + t * 4 * kLanes;
    __m512 low[9], high[9];
    PairSums<FloatRows>(_mm512_load_ps(inputs), _mm512_load_ps(inputs + kLanes), low);
    PairSums<FloatRows>(_mm512_load_ps(inputs + 2 * kLanes), _mm512_load_ps(inputs + 3 * kLanes),
                        high);
    float* table = tables + t / kTableSet * kPatterns * kTableRow + t % kTableSet * kLanes;
    OTN_UNROLL16
    for (int h = 0; h < 9; ++h) {
      OTN_UNROLL16
      for (int l = 0; l < 9; ++l) {
        _mm512_store_ps(table + (h * 9 + l) * kTableRow, _mm512_add_ps(high[h], low[l]));
      }
    }
  }
}

// Codes of a span, columns [begin, begin + num_columns), as base-3 patterns: codes (kSteps, stride)
// of kTables bytes. Columns up to stride get pattern 40, level 0.
template <bool kAsIs>
void Transcode(const Decoder& decoder, const uint8_t* all_codes, int64_t span, int64_t begin,
               int64_t num_columns, int64_t stride, Codes* codes) {
  // Low nibble: d0 + 3 d1; high nibble: 9 d2 + 27 d3; digit 3 (damaged files only) counts as 0, so
  // that every index stays inside its table.
  const __m512i low_pattern =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0));
  const __m512i high_pattern = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, 9, 18, 0, 27, 36, 45, 27, 54, 63, 72, 54, 0, 9, 18, 0));
  const __m512i nibble = _mm512_set1_epi8(15);
  const uint8_t* tile = all_codes + begin / kTile * decoder.tile_bytes;
  int64_t n = 0;
  for (; n < num_columns; n += kTile, tile += decoder.tile_bytes) {
    __m512i both[2], pattern[2];
    LoadSpan<kAsIs>(decoder, tile, span, &both[0], &both[1]);
    for (int i = 0; i < 2; ++i) {
      const __m512i v = both[i];
      pattern[i] = _mm512_add_epi8(
          _mm512_shuffle_epi8(low_pattern, _mm512_and_si512(v, nibble)),
          _mm512_shuffle_epi8(high_pattern, _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble)));
    }
    // Bytes of a step of the four columns side by side.
    for (int step = 0; step < kSteps; ++step) {
      const __m512i index = _mm512_setr_epi64(step, 4 + step, 8 + step, 12 + step, 0, 0, 0, 0);
      _mm256_storeu_si256(
          (__m256i*)(codes + step * stride + n),
          _mm512_castsi512_si256(_mm512_permutex2var_epi64(pattern[0], index, pattern[1])));
    }
  }
  for (; n < stride; ++n) {
    for (int64_t step = 0; step < kSteps; ++step) {
      codes[step * stride + n] = (Codes)0x2828282828282828u;
    }
  }
}

// acc += *row. gcc 12 hoists the loads of all columns and spills them; an assembler addition keeps
// load and add together. Sanitizers cannot see its loads.
#if defined(OTN_SANITIZE) || !defined(__GNUC__)
#define OTN_ADD_ROW(acc, row) (acc) = _mm512_add_ps((acc), _mm512_load_ps(row))
#else
#define OTN_ADD_ROW(acc, row) \
  __asm__ volatile("vaddps %1, %0, %0" : "+v"(acc) : "m"(*(const __m512*)(row)))
#endif

enum class Start { zero, sums };     // what the accumulators begin with
enum class Finish { sums, totals };  // where they go: sums, or totals += scale * sum

// Adds the table rows of tables [kFirst, kEnd) to each column's sums. codes (columns,), sums and
// totals (columns, 16).
template <Start kStart, Finish kFinish, int kFirst, int kEnd>
void LookupStep(const Codes* codes, int64_t num_columns, const float* tables, float* sums,
                float* totals, const float* scales) {
  // Pattern times 256 bytes: rotate so that the code stands at bit 8, and mask.
  Codes mask = (Codes)255 << kOffsetShift;
#if defined(__GNUC__)
  __asm__("" : "+r"(mask));  // keeps it in a register: an immediate would cost a longer encoding
#endif
  constexpr int kBits = (int)sizeof(Codes) * 8;
  const char* set0 = (const char*)tables;
  const char* set1 = (const char*)(tables + kPatterns * kTableRow);
  for (int64_t n = 0; n < num_columns; n += kColumns) {
    Codes code[kColumns];
    __m512 acc[kColumns];
    OTN_UNROLL16
    for (int c = 0; c < kColumns; ++c) {
      code[c] = codes[n + c];
      acc[c] =
          kStart == Start::zero ? _mm512_setzero_ps() : _mm512_load_ps(sums + (n + c) * kLanes);
    }
    OTN_UNROLL16
    for (int t = kFirst; t < kEnd; ++t) {
      const int rotate = (8 * t - kOffsetShift) & (kBits - 1);
      const char* set = (t < kTableSet ? set0 : set1) + t % kTableSet * kLanes * 4;
      OTN_UNROLL16
      for (int c = 0; c < kColumns; ++c) {
        const Codes offset =
            (rotate ? code[c] >> rotate | code[c] << (kBits - rotate) : code[c]) & mask;
        OTN_ADD_ROW(acc[c], (const float*)(set + offset));
      }
    }
    OTN_UNROLL16
    for (int c = 0; c < kColumns; ++c) {
      if (kFinish == Finish::sums) {
        _mm512_store_ps(sums + (n + c) * kLanes, acc[c]);
      } else {
        float* total = totals + (n + c) * kLanes;
        _mm512_store_ps(
            total, _mm512_fmadd_ps(acc[c], _mm512_set1_ps(scales[n + c]), _mm512_load_ps(total)));
      }
    }
  }
}

// (columns, 16 rows) to row-major Y, with scale (unless already applied) and bias.
void StoreRows(const Layer* layer, const float* sums, int64_t begin, int64_t num_columns,
               int64_t valid_rows, float* y) {
  for (int64_t n = 0; n < num_columns; n += kLanes) {
    const int64_t column = begin + n;
    const __mmask16 valid = FirstSixteen(num_columns - n);
    __m512 v[16];
    for (int i = 0; i < 16; ++i) v[i] = _mm512_load_ps(sums + (n + i) * kLanes);
    Transpose16x16(v);
    const ScaleAndBias columns = LoadScaleAndBias(layer, column, valid);
    for (int64_t r = 0; r < valid_rows; ++r) {
      _mm512_mask_storeu_ps(y + r * layer->N + column, valid,
                            _mm512_fmadd_ps(v[r], columns.scale, columns.bias));
    }
  }
}

template <int kFirst, int kEnd>
void Lookup(bool starts, bool ends, const Codes* codes, int64_t num_columns, const float* tables,
            float* sums, float* totals, const float* scales) {
  const auto step = ends ? (starts ? LookupStep<Start::zero, Finish::totals, kFirst, kEnd>
                                   : LookupStep<Start::sums, Finish::totals, kFirst, kEnd>)
                         : (starts ? LookupStep<Start::zero, Finish::sums, kFirst, kEnd>
                                   : LookupStep<Start::sums, Finish::sums, kFirst, kEnd>);
  step(codes, num_columns, tables, sums, totals, scales);
}

// Sixteen rows at most.
template <bool kAsIs>
void GemmFloatRows(const Layer* layer, int64_t rows, const float* x, int64_t begin, int64_t end,
                   float* y, void* scratch) {
  const Decoder decoder = MakeDecoder(layer);
  const int64_t stride = ChunkColumns(layer, end - begin);
  const Scratch layout = ScratchLayout(layer, stride);
  const int64_t num_spans = NumSpans(layer);
  const bool per_group = PerGroup(layer);
  const int64_t padded_K = layer->num_k_blocks * layer->block_size;
  const int64_t group_size = per_group ? layer->group_size : num_spans * kSpan;
  // Inputs between the places where a group can end.
  const int64_t stretch = group_size % kStepInputs == 0 ? kStepInputs : kStepInputs / 2;
  char* base = (char*)scratch;
  float* tables = (float*)base;
  Codes* codes = (Codes*)(base + layout.codes_offset);
  float* scales = (float*)(base + layout.scales_offset);
  float* sums = (float*)(base + layout.sums_offset);
  float* totals = sums + stride * kLanes;
  for (int64_t n = begin; n < end; n += stride) {
    const int64_t num_columns = Min(stride, end - n);
    const int64_t padded_columns = RoundUp(num_columns, kLanes);
    if (per_group) memset(totals, 0, layout.tile_bytes);
    for (int64_t span = 0; span < num_spans; ++span) {
      Transcode<kAsIs>(decoder, layer->codes, span, n, RoundUp(num_columns, kTile), padded_columns,
                       codes);
      for (int64_t step = 0; step < kSteps; ++step) {
        const Codes* step_codes = codes + step * padded_columns;
        BuildTables(x + (span * kSpan + step * kStepInputs) * kLanes, tables);
        for (int64_t part = 0; part < kStepInputs; part += stretch) {
          // Counted in inputs; those of a whole block come together.
          const int64_t first = span * kSpan + step * kStepInputs + part;
          if (first >= padded_K) continue;
          const int64_t last = first + stretch;
          const bool starts = first % group_size == 0;
          const bool ends = per_group && (last % group_size == 0 || last >= padded_K);
          if (ends) {
            const float* scale_row = layer->scale + first / group_size * layer->N + n;
            for (int64_t i = 0; i < padded_columns; ++i) {
              scales[i] = i < num_columns ? scale_row[i] : 0;
            }
          }
          if (stretch == kStepInputs) {
            Lookup<0, kTables>(starts, ends, step_codes, padded_columns, tables, sums, totals,
                               scales);
          } else if (part == 0) {
            Lookup<0, kTableSet>(starts, ends, step_codes, padded_columns, tables, sums, totals,
                                 scales);
          } else {
            Lookup<kTableSet, kTables>(starts, ends, step_codes, padded_columns, tables, sums,
                                       totals, scales);
          }
        }
      }
    }
    StoreRows(layer, per_group ? totals : sums, n, num_columns, rows, y);
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  const auto compute = AsIs(layer) ? GemmFloatRows<true> : GemmFloatRows<false>;
  for (int64_t row = 0; row < rows; row += kLanes) {
    compute(layer, Min(rows - row, kLanes), (const float*)prepared + row * NumSpans(layer) * kSpan,
            begin, end, y + row * layer->N, scratch);
  }
}

}  // namespace
}  // namespace avx512

extern const Kernel packed_gemm_float_16x8_avx512bw = {
    "packed_gemm_float_16x8_avx512bw",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx512bw,
    /*accepts=*/nullptr,
    /*max_rows=*/avx512::kMaxRows,
    /*column_step=*/kTile,
    LookupDepth,
    /*fixed_point=*/false,
    avx512::GemmFloatPreparedBytes,
    avx512::PrepareGemmFloat,
    avx512::GemmFloatScratchBytes,
    avx512::GemmFloat,
};

}  // namespace onnx_ternary
