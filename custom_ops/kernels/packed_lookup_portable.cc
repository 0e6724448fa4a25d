// Kernels for `packed` on any processor, all storages, alphabets, block sizes and scales: lookup
// over the batch (method of four Russians) for three rows and more, decoding and multiply-add for
// fewer.
//
// Layout: docs/index_format.md section 2. A byte of block b holds 4 inputs (2bit) or 8 (1bit),
// field j of byte i being input block_size * b + block_bytes * j + i. A pattern group is four
// fields: the whole byte, or one half of a 1bit byte.
//
// Lookup: lanes are rows of X, 8 float32 or 16 int16. The 81 (2bit) or 16 (1bit) sums of a group's
// four inputs are built once for the rows, then every column adds one table row per group. Longest
// float32 chain: 2 additions per table row, then one per group.
//
// Ranges, int8: a table row is at most 4 * 128 = 512; a step adds 8 of them, 4096, in int16, and is
// widened to int32, where |sum| <= 128 K < 2^31. Code 3, in damaged files only, counts as level 1
// or 0, so that the ranges hold.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/lanes.h"
#include "common/quantize_row.h"
#include "common/scalar.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace portable {
namespace {

constexpr int64_t kTile = 4;        // columns
constexpr int64_t kStepGroups = 8;  // pattern groups whose tables are in L1 at a time
constexpr int64_t kMaxPatterns = 81;
constexpr int64_t kChunkColumns = 2048;  // whose sums wait in L2 between steps
constexpr int64_t kGemmMaxRows = 64;
constexpr int64_t kGemvMaxRows = 4;

int64_t BlocksPerGroup(const Layer* layer) {
  return PerGroup(layer) ? layer->group_size / layer->block_size : layer->num_k_blocks;
}

int64_t PaddedK(const Layer* layer) { return layer->num_k_blocks * layer->block_size; }

// 1 where scales are per group and already applied.
float ScaleToApply(const Layer* layer, int64_t n) {
  return PerGroup(layer) ? 1.0f : ColumnScale(layer, n);
}

// Codes of column tile `tile`, block b: (4, block_bytes).
const uint8_t* TileCodes(const Layer* layer, int64_t tile, int64_t b) {
  return layer->codes + (tile * layer->num_k_blocks + b) * kTile * layer->block_bytes;
}

// ---------------------------------------------------------------------------------------------
// packed_gemm_float_portable, packed_gemm_int8_portable: lookup over the batch.
//
// prepared: x (row blocks, padded K, lanes), zero past K and rows | s (rows,) float32, int8 only
// scratch:  tables (8, 81, lanes) | sums (columns, lanes) | totals (columns, lanes)

struct FloatRows {
  using Value = float;
  using Sum = float;
  using Total = float;
  static constexpr int kLanes = 8;
};

struct Int8Rows {
  using Value = int16_t;
  using Sum = int32_t;
  using Total = double;
  static constexpr int kLanes = 16;
};

template <typename Rows>
int64_t RowBlocks(int64_t rows) {
  return (rows + Rows::kLanes - 1) / Rows::kLanes;
}

template <typename Rows>
size_t TransposedBytes(const Layer* layer, int64_t rows) {
  return RoundUp64(static_cast<size_t>(RowBlocks<Rows>(rows) * PaddedK(layer) * Rows::kLanes) *
                   sizeof(typename Rows::Value));
}

size_t GemmFloatPreparedBytes(const Layer* layer, int64_t rows) {
  return TransposedBytes<FloatRows>(layer, rows);
}

size_t GemmInt8PreparedBytes(const Layer* layer, int64_t rows) {
  // One quantized row in order behind the rest.
  return TransposedBytes<Int8Rows>(layer, rows) +
         RoundUp64(static_cast<size_t>(rows) * sizeof(float)) + static_cast<size_t>(layer->K);
}

void PrepareGemmFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  constexpr int kLanes = FloatRows::kLanes;
  const int64_t K = layer->K;
  float* out = static_cast<float*>(prepared);
  for (int64_t row = 0; row < rows; row += kLanes, out += PaddedK(layer) * kLanes) {
    const int64_t valid = Min(rows - row, kLanes);
    if (valid < kLanes) memset(out, 0, static_cast<size_t>(K * kLanes) * sizeof(float));
    for (int64_t r = 0; r < valid; ++r) {
      const float* x_row = x + (row + r) * K;
      for (int64_t k = 0; k < K; ++k) out[k * kLanes + r] = x_row[k];
    }
    memset(out + K * kLanes, 0, static_cast<size_t>((PaddedK(layer) - K) * kLanes) * sizeof(float));
  }
}

void PrepareGemmInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  constexpr int kLanes = Int8Rows::kLanes;
  const int64_t K = layer->K;
  const size_t transposed_bytes = TransposedBytes<Int8Rows>(layer, rows);
  memset(prepared, 0, transposed_bytes);
  char* behind = static_cast<char*>(prepared) + transposed_bytes;
  float* s = reinterpret_cast<float*>(behind);
  int8_t* q =
      reinterpret_cast<int8_t*>(behind + RoundUp64(static_cast<size_t>(rows) * sizeof(float)));
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantizeActivationRow(layer, call, x + row * K, q);
    int16_t* out =
        static_cast<int16_t*>(prepared) + row / kLanes * PaddedK(layer) * kLanes + row % kLanes;
    for (int64_t k = 0; k < K; ++k) out[k * kLanes] = q[k];
  }
}

struct GemmScratch {
  int64_t columns;  // of a chunk
  size_t sums_offset, totals_offset, bytes;
};

template <typename Rows>
GemmScratch GemmScratchLayout(const Layer* layer, int64_t num_columns) {
  GemmScratch layout;
  layout.columns = RoundUp(Min(num_columns, kChunkColumns), kTile);
  const size_t numbers = static_cast<size_t>(layout.columns * Rows::kLanes);
  layout.sums_offset = RoundUp64(static_cast<size_t>(kStepGroups * kMaxPatterns * Rows::kLanes) *
                                 sizeof(typename Rows::Value));
  layout.totals_offset = layout.sums_offset + RoundUp64(numbers * sizeof(typename Rows::Sum));
  layout.bytes = layout.totals_offset +
                 (PerGroup(layer) ? RoundUp64(numbers * sizeof(typename Rows::Total)) : 0);
  return layout;
}

template <typename Rows>
size_t GemmScratchBytes(const Layer* layer, int64_t, int64_t num_columns) {
  return GemmScratchLayout<Rows>(layer, num_columns).bytes;
}

// table (base^4, lanes): sums of levels[d0] * x[0] + ... + levels[d3] * x[3], d0 the lowest digit.
// x[j] points at the lanes of field j. A level is -1, 0 or 1, so its products are exact.
template <typename Rows, int kBase>
void BuildTable(const typename Rows::Value* const* x, const int* levels,
                typename Rows::Value* table) {
  using Value = typename Rows::Value;
  constexpr int kLanes = Rows::kLanes;
  Value low[kBase * kBase][kLanes];
  Value high[kBase * kBase][kLanes];
  for (int d1 = 0; d1 < kBase; ++d1) {
    for (int d0 = 0; d0 < kBase; ++d0) {
      const Value level0 = static_cast<Value>(levels[d0]);
      const Value level1 = static_cast<Value>(levels[d1]);
      Value* low_row = low[d1 * kBase + d0];
      Value* high_row = high[d1 * kBase + d0];
      for (int l = 0; l < kLanes; ++l) {
        low_row[l] = static_cast<Value>(level0 * x[0][l] + level1 * x[1][l]);
        high_row[l] = static_cast<Value>(level0 * x[2][l] + level1 * x[3][l]);
      }
    }
  }
  for (int h = 0; h < kBase * kBase; ++h) {
    for (int l = 0; l < kBase * kBase; ++l) {
      auto sum = Lanes<Value, kLanes>::Load(high[h]);
      sum.Add(Lanes<Value, kLanes>::Load(low[l]));
      sum.Store(table + (h * kBase * kBase + l) * kLanes);
    }
  }
}

// The base-3 pattern of every 2bit byte; digit 3 counts as 2.
struct PatternOfByte {
  uint8_t pattern[256];
  constexpr PatternOfByte() : pattern() {
    constexpr int digit[4] = {0, 1, 2, 2};
    for (int byte = 0; byte < 256; ++byte) {
      pattern[byte] = static_cast<uint8_t>(digit[byte & 3] + 3 * digit[(byte >> 2) & 3] +
                                           9 * digit[(byte >> 4) & 3] + 27 * digit[byte >> 6]);
    }
  }
};
constexpr PatternOfByte kPatternOfByte;

// One step: adds to the sums (columns, lanes) of a tile what bytes [0, num_bytes) of its columns
// look up. codes: (4, block_bytes), from the first byte of the step.
template <typename Rows, bool kOneBit>
void LookupTile(const uint8_t* codes, int64_t block_bytes, int64_t num_bytes,
                const typename Rows::Value* tables, typename Rows::Sum* sums) {
  using Value = typename Rows::Value;
  constexpr int kLanes = Rows::kLanes;
  constexpr int64_t kTableSize = (kOneBit ? 16 : kMaxPatterns) * kLanes;
  using Row = Lanes<Value, kLanes>;
  Row acc0 = Row::Zero(), acc1 = acc0, acc2 = acc0, acc3 = acc0;
  const uint8_t* codes1 = codes + block_bytes;
  const uint8_t* codes2 = codes1 + block_bytes;
  const uint8_t* codes3 = codes2 + block_bytes;
  for (int64_t i = 0; i < num_bytes; ++i) {
    if (kOneBit) {
      acc0.Add(Row::Load(tables + (codes[i] & 15) * kLanes));
      acc1.Add(Row::Load(tables + (codes1[i] & 15) * kLanes));
      acc2.Add(Row::Load(tables + (codes2[i] & 15) * kLanes));
      acc3.Add(Row::Load(tables + (codes3[i] & 15) * kLanes));
      tables += kTableSize;
      acc0.Add(Row::Load(tables + (codes[i] >> 4) * kLanes));
      acc1.Add(Row::Load(tables + (codes1[i] >> 4) * kLanes));
      acc2.Add(Row::Load(tables + (codes2[i] >> 4) * kLanes));
      acc3.Add(Row::Load(tables + (codes3[i] >> 4) * kLanes));
    } else {
      const uint8_t* pattern = kPatternOfByte.pattern;
      acc0.Add(Row::Load(tables + pattern[codes[i]] * kLanes));
      acc1.Add(Row::Load(tables + pattern[codes1[i]] * kLanes));
      acc2.Add(Row::Load(tables + pattern[codes2[i]] * kLanes));
      acc3.Add(Row::Load(tables + pattern[codes3[i]] * kLanes));
    }
    tables += kTableSize;
  }
  Value step[kTile][kLanes];
  acc0.Store(step[0]);
  acc1.Store(step[1]);
  acc2.Store(step[2]);
  acc3.Store(step[3]);
  for (int c = 0; c < kTile; ++c) {
    for (int l = 0; l < kLanes; ++l) sums[c * kLanes + l] += step[c][l];
  }
}

void FinishRows(const Layer* layer, const float* sums, const float* totals, const float*, int64_t n,
                int64_t num_columns, int64_t valid_rows, float* y) {
  if (PerGroup(layer)) sums = totals;
  for (int64_t c = 0; c < num_columns; ++c) {
    const float scale = ScaleToApply(layer, n + c);
    const float bias = ColumnBias(layer, n + c);
    for (int64_t r = 0; r < valid_rows; ++r) {
      y[r * layer->N + n + c] = sums[c * FloatRows::kLanes + r] * scale + bias;
    }
  }
}

void FinishRows(const Layer* layer, const int32_t* sums, const double* totals, const float* s,
                int64_t n, int64_t num_columns, int64_t valid_rows, float* y) {
  for (int64_t c = 0; c < num_columns; ++c) {
    const float scale = ScaleToApply(layer, n + c);
    const float bias = ColumnBias(layer, n + c);
    for (int64_t r = 0; r < valid_rows; ++r) {
      const int64_t i = c * Int8Rows::kLanes + r;
      y[r * layer->N + n + c] = PerGroup(layer) ? FinishInt8Groups(totals[i], s[r], bias)
                                                : FinishInt8(sums[i], s[r], scale, bias);
    }
  }
}

template <typename Rows, bool kOneBit>
void GemmChunk(const Layer* layer, const typename Rows::Value* x, const float* s, int64_t begin,
               int64_t num_columns, int64_t valid_rows, float* y, const GemmScratch& layout,
               char* scratch) {
  using Value = typename Rows::Value;
  using Sum = typename Rows::Sum;
  using Total = typename Rows::Total;
  constexpr int kLanes = Rows::kLanes;
  constexpr int kBase = kOneBit ? 2 : 3;
  constexpr int64_t kGroupsPerByte = kOneBit ? 2 : 1;
  constexpr int64_t kTableSize = (kOneBit ? 16 : kMaxPatterns) * kLanes;
  const int levels[3] = {kOneBit && layer->alphabet == Alphabet::binary_01 ? 0 : -1,
                         kOneBit ? 1 : 0, 1};
  Value* tables = reinterpret_cast<Value*>(scratch);
  Sum* sums = reinterpret_cast<Sum*>(scratch + layout.sums_offset);
  Total* totals = reinterpret_cast<Total*>(scratch + layout.totals_offset);
  const int64_t padded_columns = RoundUp(num_columns, kTile);
  const int64_t block_bytes = layer->block_bytes;
  const int64_t step_bytes = Min(block_bytes, kStepGroups / kGroupsPerByte);
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  for (int64_t i = 0; i < padded_columns * kLanes; ++i) sums[i] = 0;
  if (PerGroup(layer)) {
    for (int64_t i = 0; i < padded_columns * kLanes; ++i) totals[i] = 0;
  }
  for (int64_t b = 0; b < layer->num_k_blocks; ++b) {
    for (int64_t first = 0; first < block_bytes; first += step_bytes) {
      for (int64_t i = 0; i < step_bytes; ++i) {
        for (int64_t g = 0; g < kGroupsPerByte; ++g) {
          const Value* fields[4];
          for (int64_t j = 0; j < 4; ++j) {
            const int64_t k = b * layer->block_size + block_bytes * (4 * g + j) + first + i;
            fields[j] = x + k * kLanes;
          }
          BuildTable<Rows, kBase>(fields, levels, tables + (i * kGroupsPerByte + g) * kTableSize);
        }
      }
      for (int64_t n = 0; n < padded_columns; n += kTile) {
        LookupTile<Rows, kOneBit>(TileCodes(layer, (begin + n) / kTile, b) + first, block_bytes,
                                  step_bytes, tables, sums + n * kLanes);
      }
    }
    if (PerGroup(layer) && ((b + 1) % blocks_per_group == 0 || b + 1 == layer->num_k_blocks)) {
      const float* scale = layer->scale + b / blocks_per_group * layer->N + begin;
      for (int64_t n = 0; n < num_columns; ++n) {
        const Total column_scale = static_cast<Total>(scale[n]);
        for (int l = 0; l < kLanes; ++l) {
          const int64_t i = n * kLanes + l;
          totals[i] += static_cast<Total>(sums[i]) * column_scale;
          sums[i] = 0;
        }
      }
    }
  }
  FinishRows(layer, sums, totals, s, begin, num_columns, valid_rows, y);
}

template <typename Rows>
void Gemm(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
          float* y, void* scratch) {
  constexpr int kLanes = Rows::kLanes;
  const GemmScratch layout = GemmScratchLayout<Rows>(layer, end - begin);
  const float* s = reinterpret_cast<const float*>(static_cast<const char*>(prepared) +
                                                  TransposedBytes<Rows>(layer, rows));
  for (int64_t n = begin; n < end; n += layout.columns) {
    const int64_t num_columns = Min(layout.columns, end - n);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const auto* x = static_cast<const typename Rows::Value*>(prepared) + row * PaddedK(layer);
      const int64_t valid_rows = Min(rows - row, kLanes);
      float* y_rows = y + row * layer->N;
      char* buffer = static_cast<char*>(scratch);
      if (layer->storage == Storage::one_bit) {
        GemmChunk<Rows, true>(layer, x, s + row, n, num_columns, valid_rows, y_rows, layout,
                              buffer);
      } else {
        GemmChunk<Rows, false>(layer, x, s + row, n, num_columns, valid_rows, y_rows, layout,
                               buffer);
      }
    }
  }
}

void GemmFloat(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
               int64_t end, float* y, void* scratch) {
  Gemm<FloatRows>(layer, rows, prepared, begin, end, y, scratch);
}

void GemmInt8(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
              int64_t end, float* y, void* scratch) {
  Gemm<Int8Rows>(layer, rows, prepared, begin, end, y, scratch);
}

int64_t LookupDepth(const Layer* layer) {
  return Min(BlocksPerGroup(layer), layer->num_k_blocks) * layer->block_size / 4 + 2;
}

// ---------------------------------------------------------------------------------------------
// packed_gemv_float_portable, packed_gemv_int8_portable: lookup for one row at a time. A byte of
// codes indexes a table of its 256 sums directly, so a weight costs a quarter (2bit) or an eighth
// (1bit) of a load and an addition. Decoding to numbers and multiplying reached a third of this
// with SSE2 (2.6 against 8 GMAC/s, K = N = 2560, Zen 5): unpacking bytes to float32 is most of the
// work.
//
// Longest float32 chain: 3 additions per table entry, 16 within a step, one per step.
//
// prepared: x (rows, padded K) float32 or int32, zero past K | s (rows,) float32, int8 only
// scratch:  tables (16, 256) | sums (columns,) | totals (columns,)

constexpr int64_t kStepBytes = 16;
constexpr int64_t kGemvChunkColumns = 4096;

struct FloatRow {
  using Value = float;
  using Total = float;
};

struct Int8Row {
  using Value = int32_t;
  using Total = double;
};

size_t PaddedRowsBytes(const Layer* layer, int64_t rows) {
  return RoundUp64(static_cast<size_t>(rows * PaddedK(layer)) * 4);
}

void PrepareGemvFloat(const Layer* layer, const Call*, const float* x, int64_t rows,
                      void* prepared) {
  const int64_t K = layer->K;
  const int64_t padded_K = PaddedK(layer);
  for (int64_t row = 0; row < rows; ++row) {
    float* out = static_cast<float*>(prepared) + row * padded_K;
    memcpy(out, x + row * K, static_cast<size_t>(K) * sizeof(float));
    memset(out + K, 0, static_cast<size_t>(padded_K - K) * sizeof(float));
  }
}

size_t GemvInt8PreparedBytes(const Layer* layer, int64_t rows) {
  return PaddedRowsBytes(layer, rows) + RoundUp64(static_cast<size_t>(rows) * sizeof(float)) +
         static_cast<size_t>(layer->K);
}

void PrepareGemvInt8(const Layer* layer, const Call* call, const float* x, int64_t rows,
                     void* prepared) {
  const int64_t K = layer->K;
  const int64_t padded_K = PaddedK(layer);
  char* behind = static_cast<char*>(prepared) + PaddedRowsBytes(layer, rows);
  float* s = reinterpret_cast<float*>(behind);
  int8_t* q =
      reinterpret_cast<int8_t*>(behind + RoundUp64(static_cast<size_t>(rows) * sizeof(float)));
  for (int64_t row = 0; row < rows; ++row) {
    s[row] = QuantizeActivationRow(layer, call, x + row * K, q);
    int32_t* out = static_cast<int32_t*>(prepared) + row * padded_K;
    for (int64_t k = 0; k < K; ++k) out[k] = q[k];
    for (int64_t k = K; k < padded_K; ++k) out[k] = 0;
  }
}

struct GemvScratch {
  int64_t columns;  // of a chunk
  size_t sums_offset, totals_offset, bytes;
};

template <typename Row>
GemvScratch GemvScratchLayout(int64_t num_columns) {
  GemvScratch layout;
  layout.columns = RoundUp(Min(num_columns, kGemvChunkColumns), kTile);
  const size_t columns = static_cast<size_t>(layout.columns);
  layout.sums_offset = static_cast<size_t>(kStepBytes * 256) * sizeof(typename Row::Value);
  layout.totals_offset = layout.sums_offset + RoundUp64(columns * sizeof(typename Row::Value));
  layout.bytes = layout.totals_offset + columns * sizeof(typename Row::Total);
  return layout;
}

template <typename Row>
size_t GemvScratchBytes(const Layer*, int64_t, int64_t num_columns) {
  return GemvScratchLayout<Row>(num_columns).bytes;
}

// sums (16,): what the low or high half of a byte stands for. x points at the half's first field,
// the next one stands `stride` inputs on.
template <typename Value>
void HalfByteSums(const Layer* layer, const Value* x, int64_t stride, Value* sums) {
  if (layer->storage == Storage::one_bit) {
    const Value zero_level = static_cast<Value>(layer->alphabet == Alphabet::binary_pm ? -1 : 0);
    sums[0] = (zero_level * x[0] + zero_level * x[stride]) +
              (zero_level * x[2 * stride] + zero_level * x[3 * stride]);
    for (int bits = 1; bits < 16; ++bits) {
      Value pair[2];
      for (int j = 0; j < 2; ++j) {
        const Value first = (bits >> (2 * j)) & 1 ? 1 : zero_level;
        const Value second = (bits >> (2 * j + 1)) & 1 ? 1 : zero_level;
        pair[j] = first * x[2 * j * stride] + second * x[(2 * j + 1) * stride];
      }
      sums[bits] = pair[0] + pair[1];
    }
    return;
  }
  constexpr int kLevels[4] = {-1, 0, 1, 1};
  for (int codes = 0; codes < 16; ++codes) {
    sums[codes] = static_cast<Value>(kLevels[codes & 3]) * x[0] +
                  static_cast<Value>(kLevels[codes >> 2]) * x[stride];
  }
}

template <typename Row>
void GemvChunk(const Layer* layer, const typename Row::Value* x, int64_t begin,
               int64_t padded_columns, int64_t num_columns, typename Row::Value* tables,
               typename Row::Value* sums, typename Row::Total* totals) {
  using Value = typename Row::Value;
  using Total = typename Row::Total;
  const int64_t block_bytes = layer->block_bytes;
  const int64_t step_bytes = Min(block_bytes, kStepBytes);
  const int64_t half_fields = layer->storage == Storage::one_bit ? 4 : 2;
  const int64_t blocks_per_group = BlocksPerGroup(layer);
  for (int64_t n = 0; n < padded_columns; ++n) sums[n] = 0;
  for (int64_t n = 0; n < padded_columns; ++n) totals[n] = 0;
  for (int64_t b = 0; b < layer->num_k_blocks; ++b) {
    for (int64_t first = 0; first < block_bytes; first += step_bytes) {
      for (int64_t i = 0; i < step_bytes; ++i) {
        Value low[16], high[16];
        const Value* fields = x + b * layer->block_size + first + i;
        HalfByteSums(layer, fields, block_bytes, low);
        HalfByteSums(layer, fields + half_fields * block_bytes, block_bytes, high);
        for (int h = 0; h < 16; ++h) {
          Value* row = tables + i * 256 + h * 16;
          for (int l = 0; l < 16; ++l) row[l] = high[h] + low[l];
        }
      }
      for (int64_t n = 0; n < padded_columns; n += kTile) {
        const uint8_t* codes = TileCodes(layer, (begin + n) / kTile, b) + first;
        const uint8_t* codes1 = codes + block_bytes;
        const uint8_t* codes2 = codes1 + block_bytes;
        const uint8_t* codes3 = codes2 + block_bytes;
        Value acc0 = 0, acc1 = 0, acc2 = 0, acc3 = 0;
        const Value* table = tables;
        for (int64_t i = 0; i < step_bytes; ++i, table += 256) {
          acc0 += table[codes[i]];
          acc1 += table[codes1[i]];
          acc2 += table[codes2[i]];
          acc3 += table[codes3[i]];
        }
        sums[n] += acc0;
        sums[n + 1] += acc1;
        sums[n + 2] += acc2;
        sums[n + 3] += acc3;
      }
    }
    if (PerGroup(layer) && ((b + 1) % blocks_per_group == 0 || b + 1 == layer->num_k_blocks)) {
      const float* scale = layer->scale + b / blocks_per_group * layer->N + begin;
      for (int64_t n = 0; n < num_columns; ++n) {
        totals[n] += static_cast<Total>(sums[n]) * static_cast<Total>(scale[n]);
      }
      for (int64_t n = 0; n < padded_columns; ++n) sums[n] = 0;
    }
  }
}

float FinishColumn(const Layer* layer, float sum, float total, float, int64_t n) {
  return (PerGroup(layer) ? total : sum * ColumnScale(layer, n)) + ColumnBias(layer, n);
}

float FinishColumn(const Layer* layer, int32_t sum, double total, float s, int64_t n) {
  const float bias = ColumnBias(layer, n);
  return PerGroup(layer) ? FinishInt8Groups(total, s, bias)
                         : FinishInt8(sum, s, ColumnScale(layer, n), bias);
}

template <typename Row>
void Gemv(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
          int64_t end, float* y, void* scratch) {
  using Value = typename Row::Value;
  constexpr bool kInt8 = sizeof(typename Row::Total) == sizeof(double);
  const GemvScratch layout = GemvScratchLayout<Row>(end - begin);
  char* base = static_cast<char*>(scratch);
  Value* tables = reinterpret_cast<Value*>(base);
  Value* sums = reinterpret_cast<Value*>(base + layout.sums_offset);
  auto* totals = reinterpret_cast<typename Row::Total*>(base + layout.totals_offset);
  const float* scales = reinterpret_cast<const float*>(static_cast<const char*>(prepared) +
                                                       PaddedRowsBytes(layer, rows));
  for (int64_t n = begin; n < end; n += layout.columns) {
    const int64_t num_columns = Min(layout.columns, end - n);
    for (int64_t row = 0; row < rows; ++row) {
      const Value* x = static_cast<const Value*>(prepared) + row * PaddedK(layer);
      GemvChunk<Row>(layer, x, n, RoundUp(num_columns, kTile), num_columns, tables, sums, totals);
      const float s = kInt8 ? scales[row] : 1.0f;
      for (int64_t c = 0; c < num_columns; ++c) {
        y[row * layer->N + n + c] = FinishColumn(layer, sums[c], totals[c], s, n + c);
      }
    }
  }
}

int64_t GemvDepth(const Layer* layer) {
  const int64_t blocks = Min(BlocksPerGroup(layer), layer->num_k_blocks);
  const int64_t step_bytes = Min(layer->block_bytes, kStepBytes);
  return 3 + step_bytes + blocks * (layer->block_bytes / step_bytes);
}

}  // namespace
}  // namespace portable

extern const Kernel packed_gemm_float_portable = {
    "packed_gemm_float_portable",
    IndexFormat::packed,
    Activation::float32,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemmMaxRows,
    /*column_step=*/portable::kTile,
    portable::LookupDepth,
    /*fixed_point=*/false,
    portable::GemmFloatPreparedBytes,
    portable::PrepareGemmFloat,
    portable::GemmScratchBytes<portable::FloatRows>,
    portable::GemmFloat,
};

extern const Kernel packed_gemm_int8_portable = {
    "packed_gemm_int8_portable",
    IndexFormat::packed,
    Activation::int8,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemmMaxRows,
    /*column_step=*/portable::kTile,
    ExactDepth,
    /*fixed_point=*/false,
    portable::GemmInt8PreparedBytes,
    portable::PrepareGemmInt8,
    portable::GemmScratchBytes<portable::Int8Rows>,
    portable::GemmInt8,
};

extern const Kernel packed_gemv_float_portable = {
    "packed_gemv_float_portable",
    IndexFormat::packed,
    Activation::float32,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemvMaxRows,
    /*column_step=*/portable::kTile,
    portable::GemvDepth,
    /*fixed_point=*/false,
    portable::PaddedRowsBytes,
    portable::PrepareGemvFloat,
    portable::GemvScratchBytes<portable::FloatRow>,
    portable::Gemv<portable::FloatRow>,
};

extern const Kernel packed_gemv_int8_portable = {
    "packed_gemv_int8_portable",
    IndexFormat::packed,
    Activation::int8,
    Isa::portable,
    /*accepts=*/nullptr,
    /*max_rows=*/portable::kGemvMaxRows,
    /*column_step=*/portable::kTile,
    ExactDepth,
    /*fixed_point=*/false,
    portable::GemvInt8PreparedBytes,
    portable::PrepareGemvInt8,
    portable::GemvScratchBytes<portable::Int8Row>,
    portable::Gemv<portable::Int8Row>,
};

}  // namespace onnx_ternary
