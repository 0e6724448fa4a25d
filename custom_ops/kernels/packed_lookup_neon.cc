// Kernels for `packed`, any 64-bit ARM: batched lookup GEMM, float and int8 (method of four
// Russians, Arlazarov et al. 1970, the patterns of arXiv 2411.06360 turned round). Lanes are rows
// of X: one or two registers of 4 float32 or 8 int16. The 81 sums +-x0 +-x1 +-x2 +-x3 of a group of
// four inputs (those of one byte of codes) are built once; each column then adds one table row per
// four weights: a quarter of the additions of a dense product, and no multiplication.
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
// prepared: x (row blocks, num_spans, 32 bytes, 4 fields, lanes) float32 or int8; a block has two
//           registers of rows, the last one has one if that is enough; zero past K and rows
//           int8: s (rows,) float | 16 rows in order
// scratch:  tables (8, 81, lanes) | codes (columns, 32) | scales (columns) | sums (columns, lanes)
//           | totals (columns, lanes): float32 with scales per group; int32, or float64 with scales
//           per group
#include "common/span_neon.h"
// After its pragmas and macros.
#include "common/lookup.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace neon {
namespace {

constexpr int kTables = 8;  // groups of four inputs in L1 at a time
constexpr int64_t kStepInputs = 4 * kTables;
constexpr int kBlockVectors = 2;  // registers of rows in a row block, except the last
constexpr int64_t kGemmMaxRows = 64;
constexpr int64_t kColumnMultiple = 8;  // of columns of a chunk
// Bytes of sums and codes a pass over K may touch, so that they stay in L2 (256 KB of a Cortex-A72
// with four busy cores). The tables are rebuilt for every pass.
constexpr int64_t kChunkBytes = 192 << 10;
constexpr int64_t kPrefetchSpans = 2;

// The eight or four bytes at p, the first one lowest.
template <int kCount>
OTN_ALWAYS_INLINE uint64_t LoadWord(const uint8_t* p) {
  if (kCount == 8) {
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
  }
  uint32_t word;
  memcpy(&word, p, sizeof word);
  return word;
}

inline void Prefetch(const uint8_t* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p, 0, 2);
  __builtin_prefetch(p + 64, 0, 2);
#else
  (void)p;
#endif
}

struct FloatRows {
  typedef float Input;
  typedef float Value;
  typedef float32x4_t Vector;
  static constexpr int64_t kVectorRows = 4;
  static constexpr bool kWidens = false;

  static int64_t TotalBytes(const Layer* layer) { return PerGroup(layer) ? 4 : 0; }
  static Vector LoadInput(const Input* x) { return vld1q_f32(x); }
  static Vector Zero() { return vdupq_n_f32(0.0f); }
  static Vector Load(const Value* p) { return vld1q_f32(p); }
  static void Store(Value* p, Vector v) { vst1q_f32(p, v); }
  static Vector Plus(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector Minus(Vector a, Vector b) { return vsubq_f32(a, b); }

  // acc to the totals from `at` on.
  template <Finish>
  static void Flush(Vector acc, void* totals, int64_t at, float scale) {
    float* total = (float*)totals + at;
    vst1q_f32(total, vfmaq_n_f32(vld1q_f32(total), acc, scale));
  }
};

struct Int16Rows {
  typedef int8_t Input;
  typedef int16_t Value;
  typedef int16x8_t Vector;
  static constexpr int64_t kVectorRows = 8;
  static constexpr bool kWidens = true;

  static int64_t TotalBytes(const Layer* layer) { return PerGroup(layer) ? 8 : 4; }
  static Vector LoadInput(const Input* x) { return vmovl_s8(vld1_s8(x)); }
  static Vector Zero() { return vdupq_n_s16(0); }
  static Vector Load(const Value* p) { return vld1q_s16(p); }
  static void Store(Value* p, Vector v) { vst1q_s16(p, v); }
  static Vector Plus(Vector a, Vector b) { return vaddq_s16(a, b); }
  static Vector Minus(Vector a, Vector b) { return vsubq_s16(a, b); }

  template <Finish kFinish>
  static void Flush(Vector acc, void* totals, int64_t at, float scale) {
    if (kFinish == Finish::widen) {
      int32_t* total = (int32_t*)totals + at;
      vst1q_s32(total, vaddw_s16(vld1q_s32(total), vget_low_s16(acc)));
      vst1q_s32(total + 4, vaddw_high_s16(vld1q_s32(total + 4), acc));
      return;
    }
    double* total = (double*)totals + at;
    const int32x4_t halves[2] = {vmovl_s16(vget_low_s16(acc)), vmovl_high_s16(acc)};
    const float64x2_t factor = vdupq_n_f64((double)scale);
    for (int i = 0; i < 2; ++i) {
      const Wide wide = WidenS32(halves[i]);
      vst1q_f64(total + i * 4, vfmaq_f64(vld1q_f64(total + i * 4), wide.low, factor));
      vst1q_f64(total + i * 4 + 2, vfmaq_f64(vld1q_f64(total + i * 4 + 2), wide.high, factor));
    }
  }
};

template <typename Rows>
constexpr int64_t BlockRows() {
  return Rows::kVectorRows * kBlockVectors;
}

// Registers of a block of rows.
template <typename Rows>
int64_t BlockVectors(int64_t valid_rows) {
  return valid_rows <= Rows::kVectorRows ? 1 : kBlockVectors;
}

// Rows with those that fill the last block.
template <typename Rows>
int64_t PaddedRows(int64_t rows) {
  return RoundUp(rows, Rows::kVectorRows);
}

template <typename Rows>
int64_t MostColumns(const Layer* layer) {
  const int64_t numbers_bytes = (int64_t)sizeof(typename Rows::Value) + Rows::TotalBytes(layer);
  const int64_t column_bytes = kSpanBytes + BlockRows<Rows>() * numbers_bytes;
  return kChunkBytes / column_bytes / kColumnMultiple * kColumnMultiple;
}

template <typename Rows>
int64_t ChunkColumns(const Layer* layer, int64_t num_columns) {
  const int64_t most = MostColumns<Rows>(layer);
  const int64_t num_chunks = (num_columns + most - 1) / most;
  return RoundUp((num_columns + num_chunks - 1) / num_chunks, kColumnMultiple);
}

struct GemmScratch {
  size_t codes_offset, scales_offset, sums_offset, totals_offset, totals_bytes, bytes;
};

template <typename Rows>
GemmScratch GemmScratchLayout(const Layer* layer, int64_t chunk_columns) {
  const size_t columns = (size_t)chunk_columns;
  const size_t block_rows = (size_t)BlockRows<Rows>();
  GemmScratch layout;
  layout.codes_offset = RoundUp64((size_t)(kTables * kPatterns) * kBlockVectors * 16);
  layout.scales_offset = layout.codes_offset + RoundUp64(columns * (size_t)kSpanBytes);
  layout.sums_offset = layout.scales_offset + RoundUp64(columns * sizeof(float));
  layout.totals_offset =
      layout.sums_offset + RoundUp64(columns * block_rows * sizeof(typename Rows::Value));
  layout.totals_bytes = columns * block_rows * (size_t)Rows::TotalBytes(layer);
  layout.bytes = layout.totals_offset + layout.totals_bytes;
  return layout;
}

template <typename Rows>
size_t GemmScratchBytes(const Layer* layer, int64_t, int64_t num_columns) {
  // Chunks are even, so those of a narrower range can be wider: one of 2048 columns, two of 1028.
  const int64_t most = Min(num_columns, MostColumns<Rows>(layer));
  return GemmScratchLayout<Rows>(layer, RoundUp(most, kColumnMultiple)).bytes;
}

// The columns of a chunk.
struct Chunk {
  int64_t begin, num_columns;
  int64_t padded_columns;  // a multiple of what a pass takes
};

// Tables of eight bytes from x (8 bytes, 4 fields, lanes): (8, 81 patterns, lanes).
template <typename Rows, int kVectors>
void BuildTables(const typename Rows::Input* x, typename Rows::Value* tables) {
  constexpr int64_t kLanes = kVectors * Rows::kVectorRows;
  for (int t = 0; t < kTables; ++t, x += 4 * kLanes, tables += kPatterns * kLanes) {
    for (int64_t lane = 0; lane < kLanes; lane += Rows::kVectorRows) {
      typename Rows::Vector low[9], high[9];
      PairSums<Rows>(Rows::LoadInput(x + lane), Rows::LoadInput(x + kLanes + lane), low);
      PairSums<Rows>(Rows::LoadInput(x + 2 * kLanes + lane), Rows::LoadInput(x + 3 * kLanes + lane),
                     high);
      OTN_UNROLL
      for (int h = 0; h < 9; ++h) {
        OTN_UNROLL
        for (int l = 0; l < 9; ++l) {
          Rows::Store(tables + (h * 9 + l) * kLanes + lane, Rows::Plus(high[h], low[l]));
        }
      }
    }
  }
}

// Bytes of codes as base-3 patterns. Low nibble: d0 + 3 d1; high nibble: 9 d2 + 27
// d3; digit 3 counts as 0.
struct Patterns {
  uint8x16_t low, high;
  Patterns() {
    const uint8_t of_nibble[16] = {0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0};
    low = vld1q_u8(of_nibble);
    high = vmulq_u8(low, vdupq_n_u8(9));
  }
  OTN_ALWAYS_INLINE uint8x16_t Of(uint8x16_t v) const {
    return vaddq_u8(vqtbl1q_u8(low, vandq_u8(v, vdupq_n_u8(15))),
                    vqtbl1q_u8(high, vshrq_n_u8(v, 4)));
  }
};

// A span of column tiles whose codes are read as they lie; tiles are tile_stride bytes apart, and
// so in as many places as there are tiles, which no hardware foresees.
OTN_NEVER_INLINE void TranscodeAsIs(const uint8_t* source, int64_t tile_stride, int64_t num_tiles,
                                    uint8_t* codes) {
  const Patterns patterns;
  for (int64_t tile = 0; tile < num_tiles; ++tile, source += tile_stride, codes += kTileSpanBytes) {
    Prefetch(source + kPrefetchSpans * kTileSpanBytes);
    OTN_UNROLL
    for (int64_t i = 0; i < kTileSpanBytes; i += 16) {
      vst1q_u8(codes + i, patterns.Of(vld1q_u8(source + i)));
    }
  }
}

// Codes of a span of a chunk as patterns: codes (padded columns, 32). Columns past those of the
// matrix get pattern 40, level 0.
OTN_NEVER_INLINE void Transcode(const Layer* layer, int64_t span, const Chunk& chunk,
                                uint8_t* codes) {
  const int64_t num_tiles = (chunk.num_columns + kTile - 1) / kTile;
  const uint8_t* tile = TileStart(layer, chunk.begin);
  if (AsIs(layer)) {
    TranscodeAsIs(tile + span * kTileSpanBytes, TileBytes(layer), num_tiles, codes);
  } else {
    const Patterns patterns;
    for (int64_t t = 0; t < num_tiles; ++t) {
      uint8x16_t columns[kTile][2];
      ExpandSpan(layer, tile + t * TileBytes(layer), span, columns);
      for (int i = 0; i < 2 * kTile; ++i) {
        vst1q_u8(codes + t * kTileSpanBytes + i * 16, patterns.Of(columns[i / 2][i % 2]));
      }
    }
  }
  memset(codes + num_tiles * kTileSpanBytes, 40,
         (size_t)((chunk.padded_columns - num_tiles * kTile) * kSpanBytes));
}

// Adds the table rows of tables [0, kCount) to each column's sums. codes (columns, 32), from the
// first byte of this step on; sums and totals (columns, lanes).
template <typename Rows, int kVectors, bool kStarts, Finish kFinish, int kCount>
void LookupStep(const uint8_t* codes, int64_t num_columns, const typename Rows::Value* tables,
                typename Rows::Value* sums, void* totals, const float* scales) {
  typedef typename Rows::Vector Vector;
  constexpr int64_t kLanes = kVectors * Rows::kVectorRows;
  // Eight chains of additions hide their latency.
  constexpr int kColumns = 8 / kVectors;
  constexpr int kShift = kVectors == 1 ? 4 : 5;  // pattern to bytes
  // A pattern is rotated to its offset and masked by one instruction; a load adds the offset to the
  // start of a register of a table.
  uint64_t mask = (uint64_t)255 << kShift;
  const char* starts[kCount][kVectors];
  OTN_UNROLL
  for (int i = 0; i < kCount * kVectors; ++i) {
    starts[i / kVectors][i % kVectors] =
        (const char*)tables + (i / kVectors * kPatterns * kVectors + i % kVectors) * 16;
    OTN_IN_GENERAL_REGISTER(starts[i / kVectors][i % kVectors]);
  }
  OTN_IN_GENERAL_REGISTER(mask);
  for (int64_t n = 0; n < num_columns; n += kColumns) {
    uint64_t code[kColumns];
    Vector acc[kColumns][kVectors];
    OTN_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      code[c] = LoadWord<kCount>(codes + (n + c) * kSpanBytes);
      OTN_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        acc[c][v] =
            kStarts ? Rows::Zero() : Rows::Load(sums + (n + c) * kLanes + v * Rows::kVectorRows);
      }
    }
    OTN_UNROLL
    for (int t = 0; t < kCount; ++t) {
      const int rotate = (8 * t - kShift) & 63;
      uint64_t offset[kColumns];
      Vector row[kColumns][kVectors];
      OTN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        offset[c] = (code[c] >> rotate | code[c] << (64 - rotate)) & mask;
        OTN_IN_GENERAL_REGISTER(offset[c]);
      }
      OTN_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        OTN_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          row[c][v] = Rows::Load((const typename Rows::Value*)(starts[t][v] + offset[c]));
          OTN_IN_REGISTER(row[c][v]);
        }
      }
      OTN_UNROLL
      for (int i = 0; i < kColumns * kVectors; ++i) {
        Vector* sum = &acc[i / kVectors][i % kVectors];
        *sum = Rows::Plus(*sum, row[i / kVectors][i % kVectors]);
        OTN_IN_REGISTER(*sum);
      }
    }
    OTN_UNROLL
    for (int i = 0; i < kColumns * kVectors; ++i) {
      const int64_t column = n + i / kVectors;
      const int64_t at = column * kLanes + i % kVectors * Rows::kVectorRows;
      if (kFinish == Finish::sums) {
        Rows::Store(sums + at, acc[i / kVectors][i % kVectors]);
      } else {
        const float scale = kFinish == Finish::weigh ? scales[column] : 0;
        Rows::template Flush<kFinish>(acc[i / kVectors][i % kVectors], totals, at, scale);
      }
    }
  }
}

template <typename Rows, int kVectors, bool kStarts, int kCount>
OTN_ALWAYS_INLINE auto StepFunction(Finish finish) {
  auto* step = LookupStep<Rows, kVectors, kStarts, Finish::sums, kCount>;
  if (finish == Finish::weigh) step = LookupStep<Rows, kVectors, kStarts, Finish::weigh, kCount>;
  if constexpr (Rows::kWidens) {
    if (finish == Finish::widen) step = LookupStep<Rows, kVectors, kStarts, Finish::widen, kCount>;
  }
  return step;
}

// scales (columns,): of the group that input `first` of the padded K lies in.
void CopyScales(const Layer* layer, int64_t first, int64_t begin, int64_t num_columns,
                int64_t padded_columns, float* scales) {
  const float* row = layer->scale + first / layer->group_size * layer->N + begin;
  memcpy(scales, row, (size_t)num_columns * sizeof(float));
  memset(scales + num_columns, 0, (size_t)(padded_columns - num_columns) * sizeof(float));
}

// Sums, or totals where there are any, of a chunk for the rows of one block: x (num_spans, 32
// bytes, 4 fields, lanes). kCount: tables between the places where a group can end.
template <typename Rows, int kVectors, int kCount>
void LookupColumns(const Layer* layer, const typename Rows::Input* x, const Chunk& chunk,
                   const GemmScratch& layout, char* scratch) {
  typedef typename Rows::Value Value;
  constexpr int64_t kLanes = kVectors * Rows::kVectorRows;
  const bool per_group = PerGroup(layer);
  const int64_t padded_K = layer->num_k_blocks * layer->block_size;
  const int64_t group_size = per_group ? layer->group_size : NumSpans(layer) * kSpan;
  Value* tables = (Value*)scratch;
  uint8_t* codes = (uint8_t*)scratch + layout.codes_offset;
  float* scales = (float*)(scratch + layout.scales_offset);
  Value* sums = (Value*)(scratch + layout.sums_offset);
  void* totals = scratch + layout.totals_offset;
  memset(totals, 0, layout.totals_bytes);
  for (int64_t first = 0; first < padded_K; first += 4 * kCount) {
    if (first % kSpan == 0) {
      Transcode(layer, first / kSpan, chunk, codes);
    }
    const int64_t table = first % kStepInputs / 4;
    if (table == 0) BuildTables<Rows, kVectors>(x + first * kLanes, tables);
    const int64_t last = first + 4 * kCount;
    const bool exact_ends = Rows::kWidens && last % kSpan == 0;
    const bool ends = last % group_size == 0 || last >= padded_K || exact_ends;
    const Finish finish = !ends           ? Finish::sums
                          : per_group     ? Finish::weigh
                          : Rows::kWidens ? Finish::widen
                                          : Finish::sums;
    if (finish == Finish::weigh) {
      CopyScales(layer, first, chunk.begin, chunk.num_columns, chunk.padded_columns, scales);
    }
    const bool starts = first % group_size == 0 || (Rows::kWidens && first % kSpan == 0);
    auto* step = starts ? StepFunction<Rows, kVectors, true, kCount>(finish)
                        : StepFunction<Rows, kVectors, false, kCount>(finish);
    step(codes + first % kSpan / 4, chunk.padded_columns, tables + table * kPatterns * kLanes, sums,
         totals, scales);
  }
}

template <typename Rows>
void LookupBlock(const Layer* layer, const typename Rows::Input* x, int64_t num_vectors,
                 const Chunk& chunk, const GemmScratch& layout, char* scratch) {
  const bool halves = PerGroup(layer) && layer->group_size % kStepInputs != 0;
  auto* lookup = num_vectors == 1 ? halves ? LookupColumns<Rows, 1, kTables / 2>
                                           : LookupColumns<Rows, 1, kTables>
                 : halves ? LookupColumns<Rows, kBlockVectors, kTables / 2>
                                  : LookupColumns<Rows, kBlockVectors, kTables>;
  lookup(layer, x, chunk, layout, scratch);
}

// Calls store(first row, its valid rows, lanes, chunk) for every block of rows and chunk of
// columns, with the block's sums and totals in scratch.
template <typename Rows, typename Store>
void LookupRows(const Layer* layer, int64_t rows, const typename Rows::Input* prepared,
                int64_t begin, int64_t end, const GemmScratch& layout, char* scratch, Store store) {
  const int64_t stride = ChunkColumns<Rows>(layer, end - begin);
  for (int64_t row = 0; row < rows; row += BlockRows<Rows>()) {
    const int64_t valid_rows = Min(rows - row, BlockRows<Rows>());
    const int64_t num_vectors = BlockVectors<Rows>(valid_rows);
    for (int64_t n = begin; n < end; n += stride) {
      const int64_t num_columns = Min(stride, end - n);
      const Chunk chunk = {n, num_columns, RoundUp(num_columns, kColumnMultiple)};
      LookupBlock<Rows>(layer, prepared + row * NumSpans(layer) * kSpan, num_vectors, chunk, layout,
                        scratch);
      store(row, valid_rows, num_vectors * Rows::kVectorRows, chunk);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_float_8x4

size_t GemmFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return (size_t)(PaddedRows<FloatRows>(rows) * NumSpans(layer) * kSpan) * sizeof(float);
}

// One span of four rows, the first `valid_rows` of which exist, as lanes of out.
void PrepareSpan(const float* x, int64_t stride, int64_t valid_rows, int64_t valid_inputs,
                 const int32_t* place, int64_t lanes, float* out) {
  float buffer[4 * kSpan];
  if (valid_rows < 4 || valid_inputs < kSpan) {
    memset(buffer, 0, sizeof buffer);
    for (int64_t r = 0; r < valid_rows; ++r) {
      memcpy(buffer + r * kSpan, x + r * stride, (size_t)valid_inputs * sizeof(float));
    }
    x = buffer;
    stride = kSpan;
  }
  for (int64_t i = 0; i < kSpan; i += 4) {
    uint32x4_t v[4];
    for (int r = 0; r < 4; ++r) v[r] = vreinterpretq_u32_f32(vld1q_f32(x + r * stride + i));
    Transpose4x4(v);
    for (int e = 0; e < 4; ++e) {
      vst1q_f32(out + place[i + e] * lanes, vreinterpretq_f32_u32(v[e]));
    }
  }
}

void PrepareGemmFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  const int64_t padded_K = NumSpans(layer) * kSpan;
  int32_t place[kSpan];
  InputPlaces(layer, place);
  for (int64_t row = 0; row < rows; row += BlockRows<FloatRows>()) {
    const int64_t valid_rows = Min(rows - row, BlockRows<FloatRows>());
    const int64_t lanes = BlockVectors<FloatRows>(valid_rows) * FloatRows::kVectorRows;
    float* out = (float*)prepared + row * padded_K;
    for (int64_t k = 0; k < padded_K; k += kSpan, out += kSpan * lanes) {
      for (int64_t r = 0; r < lanes; r += 4) {
        PrepareSpan(x + (row + r) * layer->K + k, layer->K, Min(valid_rows - r, 4),
                    Min(layer->K - k, kSpan), place, lanes, out + r);
      }
    }
  }
}

// sums (columns, lanes) to row-major Y, with scale (unless already applied) and bias.
void StoreFloatRows(const Layer* layer, const float* sums, const Chunk& chunk, int64_t valid_rows,
                    int64_t lanes, float* y) {
  for (int64_t i = 0; i < chunk.num_columns; i += 4) {
    const int64_t n = chunk.begin + i;
    const float32x4_t scale = PerGroup(layer) ? vdupq_n_f32(1.0f) : LoadScale(layer, n);
    const float32x4_t bias = LoadBias(layer, n);
    for (int64_t row = 0; row < valid_rows; row += 4) {
      uint32x4_t v[4];
      for (int c = 0; c < 4; ++c) {
        v[c] = vreinterpretq_u32_f32(vld1q_f32(sums + (i + c) * lanes + row));
      }
      Transpose4x4(v);
      for (int64_t r = row; r < Min(row + 4, valid_rows); ++r) {
        const float32x4_t sum = vreinterpretq_f32_u32(v[r - row]);
        StoreFloats(y + r * layer->N + n, vfmaq_f32(bias, sum, scale), chunk.num_columns - i);
      }
    }
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  const GemmScratch layout =
      GemmScratchLayout<FloatRows>(layer, ChunkColumns<FloatRows>(layer, end - begin));
  const float* result =
      (const float*)((const char*)scratch +
                     (PerGroup(layer) ? layout.totals_offset : layout.sums_offset));
  LookupRows<FloatRows>(layer, rows, (const float*)prepared, begin, end, layout, (char*)scratch,
                        [&](int64_t row, int64_t valid_rows, int64_t lanes, const Chunk& chunk) {
                          StoreFloatRows(layer, result, chunk, valid_rows, lanes,
                                         y + row * layer->N);
                        });
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_int8_16x4

struct Int8Prepared {
  size_t s_offset, in_order_offset, bytes;
};

Int8Prepared Int8PreparedLayout(const Layer* layer, int64_t rows) {
  const int64_t padded_K = NumSpans(layer) * kSpan;
  Int8Prepared layout;
  layout.s_offset = (size_t)(PaddedRows<Int16Rows>(rows) * padded_K);
  layout.in_order_offset = layout.s_offset + RoundUp64((size_t)rows * sizeof(float));
  layout.bytes = layout.in_order_offset + (size_t)(BlockRows<Int16Rows>() * padded_K);
  return layout;
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return Int8PreparedLayout(layer, rows).bytes;
}

// Four perfect shuffles of 256 bytes turn row-major into column-major.
void Transpose16x16(uint8x16_t* r) {
  for (int round = 0; round < 4; ++round) {
    uint8x16_t next[16];
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = vzip1q_u8(r[i], r[i + 8]);
      next[2 * i + 1] = vzip2q_u8(r[i], r[i + 8]);
    }
    memcpy(r, next, sizeof next);
  }
}

// in_order (16, padded_K) int8 to out (num_spans, 32 bytes, 4 fields, lanes).
void SpreadRows(const int8_t* in_order, int64_t padded_K, const int32_t* place, int64_t lanes,
                int8_t* out) {
  for (int64_t k = 0; k < padded_K; k += 16) {
    uint8x16_t v[16];
    for (int r = 0; r < 16; ++r) v[r] = vld1q_u8((const uint8_t*)in_order + r * padded_K + k);
    Transpose16x16(v);
    uint8_t* span = (uint8_t*)out + k / kSpan * kSpan * lanes;
    for (int e = 0; e < 16; ++e) {
      uint8_t* to = span + place[k % kSpan + e] * lanes;
      if (lanes == 16) {
        vst1q_u8(to, v[e]);
      } else {
        vst1_u8(to, vget_low_u8(v[e]));
      }
    }
  }
}

void PrepareGemmInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  constexpr int64_t kBlock = BlockRows<Int16Rows>();
  static_assert(kBlock == 16, "as many rows as Transpose16x16 takes");
  const Int8Prepared layout = Int8PreparedLayout(layer, rows);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  int32_t place[kSpan];
  InputPlaces(layer, place);
  float* s = (float*)((char*)prepared + layout.s_offset);
  int8_t* in_order = (int8_t*)prepared + layout.in_order_offset;
  for (int64_t row = 0; row < rows; row += kBlock) {
    const int64_t valid_rows = Min(rows - row, kBlock);
    QuantizeBlock(layer, call, x + row * layer->K, valid_rows, kBlock, s + row, in_order);
    SpreadRows(in_order, padded_K, place,
               BlockVectors<Int16Rows>(valid_rows) * Int16Rows::kVectorRows,
               (int8_t*)prepared + row * padded_K);
  }
}

// totals (columns, lanes) to row-major Y in the operations of docs/op_spec.md. s: of the rows.
void StoreInt8Rows(const Layer* layer, const void* totals, const float* s, const Chunk& chunk,
                   int64_t valid_rows, int64_t lanes, float* y) {
  for (int64_t i = 0; i < chunk.num_columns; i += 4) {
    const int64_t n = chunk.begin + i;
    for (int64_t r = 0; r < valid_rows; ++r) {
      float32x4_t result;
      if (PerGroup(layer)) {
        double total[4];
        for (int c = 0; c < 4; ++c) total[c] = ((const double*)totals)[(i + c) * lanes + r];
        result = FinishGroupsInt8(layer, {vld1q_f64(total), vld1q_f64(total + 2)}, s[r], n);
      } else {
        int32_t sum[4];
        for (int c = 0; c < 4; ++c) sum[c] = ((const int32_t*)totals)[(i + c) * lanes + r];
        result = FinishInt8(layer, vld1q_s32(sum), s[r], n);
      }
      StoreFloats(y + r * layer->N + n, result, chunk.num_columns - i);
    }
  }
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  const GemmScratch layout =
      GemmScratchLayout<Int16Rows>(layer, ChunkColumns<Int16Rows>(layer, end - begin));
  const float* s = (const float*)((const char*)prepared + Int8PreparedLayout(layer, rows).s_offset);
  const char* totals = (const char*)scratch + layout.totals_offset;
  LookupRows<Int16Rows>(layer, rows, (const int8_t*)prepared, begin, end, layout, (char*)scratch,
                        [&](int64_t row, int64_t valid_rows, int64_t lanes, const Chunk& chunk) {
                          StoreInt8Rows(layer, totals, s + row, chunk, valid_rows, lanes,
                                        y + row * layer->N);
                        });
}

}  // namespace
}  // namespace neon

extern const Kernel packed_gemm_float_8x4_neon = {
    "packed_gemm_float_8x4_neon",
    IndexFormat::packed,
    Activation::float32,
    Isa::neon,
    /*accepts=*/nullptr,
    /*max_rows=*/neon::kGemmMaxRows,
    /*column_step=*/kTile,
    LookupDepth,
    /*fixed_point=*/false,
    neon::GemmFloatPreparedBytes,
    neon::PrepareGemmFloat,
    neon::GemmScratchBytes<neon::FloatRows>,
    neon::GemmFloat,
};

extern const Kernel packed_gemm_int8_16x4_neon = {
    "packed_gemm_int8_16x4_neon",
    IndexFormat::packed,
    Activation::int8,
    Isa::neon,
    /*accepts=*/nullptr,
    /*max_rows=*/neon::kGemmMaxRows,
    /*column_step=*/kTile,
    ExactDepth,
    /*fixed_point=*/false,
    neon::GemmInt8PreparedBytes,
    neon::PrepareGemmInt8,
    neon::GemmScratchBytes<neon::Int16Rows>,
    neon::GemmInt8,
};

}  // namespace onnx_ternary
