// The decode kernels for `packed` on ARM: int8 activations, and float activations as 24-bit fixed
// point in three int8 digits. What a processor multiplies with is an `Ops` of the file that
// includes this one: widening multiplications (neon), sdot (neon_dotprod), smmla (neon_i8mm).
//
// Layout: span.h. A vector register holds 16 activations of one row, or 8 of two rows
// (Ops::kVectorRows); a span of a row is kChunks of them for each of the four fields of a code
// byte. Likewise a register of codes is a `unit` of one column or two. Activations are stored in
// the order in which the loop reads them.
//
// One scale per tensor or per column. Field 3 of a byte is one shift, field 0 one mask; fields 1
// and 2 are one mask each and stay where they are, at 4 and 16 times their value, so that a
// register of codes takes four instructions instead of six. All spans of field 2 come first, then
// the sums are shifted right by two (they are multiples of 16), then come the spans of field 1, a
// shift, and the spans of fields 0 and 3. One set of accumulators does, at the price of loading
// codes three times, from L1.
//
// Ranges. Codes are 0, 1, 2 (3 in damaged files only), activations are in [-128, 127]. A lane takes
// at most 32 products of a field and span (smmla; sdot 8): 32 * 48 * 128 for field 2 and code 3. A
// run is at most 8192 spans: 2^13 * 196608 = 1610612736 < 2^31. Shifted and joined by field 1,
// 402653184 + 2^13 * 32 * 12 * 128 = 805306368; shifted and joined by fields 0 and 3, 201326592 +
// 2^13 * 64 * 3 * 128 = 402653184. Sums of runs may wrap, but sum(code * q) - sum(q) = sum(level *
// q) is at most 128 K <= 2^31 - 128 in magnitude, and so exact modulo 2^32.
//
// Scales per group. Blocks are summed exactly, all fields at scale 1, weighted in float64 and added
// there in the order of the blocks. The three digits of a block are put together first: at most 128
// * 8355711 < 2^31 for sum(level * q), whatever wraps before.
//
// Fixed point: fixed_point.h; digits, scale and bias are combined in float64.
//
// prepared: q (row groups, digits of the rows, in the order of the loop) int8, zero past K
//           sums (rows, digits) int32: of q; with scales per group (rows, padded units), all digits
//           factors (rows,) float64: s, or 2^-e
//           digits of a row in order, before they are spread (digits, padded K) int8
// scratch:  scales of a strip | codes of a strip (4 tiles, spans, 128 bytes), unless the kernel
//           reads codes as they lie
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include "fixed_point.h"
#include "span_neon.h"

namespace onnx_ternary {
namespace neon {
namespace {

constexpr int64_t kRunSpans = 8192;
constexpr int64_t kFields = 4;

// Two chains of additions where there are few accumulators, to hide their latency: with smmla and
// sdot four a cycle, three cycles of latency want more than eight (llvm-mca, Neoverse V1).
template <typename Ops, int kVectors>
struct Chains {
  static constexpr int kCount = kVectors * Ops::kAccumulators <= 8 ? 2 : 1;
  static_assert(kVectors * Ops::kAccumulators * kCount <= 24, "accumulators fit the registers");
};

enum class Field { at_16, at_4, low, high };

template <Field kField>
OTN_ALWAYS_INLINE int8x16_t Unpack(uint8x16_t v) {
  if (kField == Field::at_16) return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(48)));
  if (kField == Field::at_4) return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(12)));
  if (kField == Field::low) return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(3)));
  return vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
}

// The registers of a chunk of a tile.
template <typename Ops>
OTN_ALWAYS_INLINE void LoadCodes(const uint8_t* codes, uint8x16_t* v) {
  OTN_UNROLL
  for (int i = 0; i < Ops::kRegisters; ++i) v[i] = vld1q_u8(codes + i * Ops::kRegisterBytes);
}

// acc (vectors, accumulators) += field * q for one field of a chunk. Four vectors at a time: their
// activations are loaded before the first is needed, and products of one accumulator stand apart,
// which processors that issue in order need.
template <typename Ops, int kVectors>
OTN_ALWAYS_INLINE void AddProducts(const int8x16_t* field, const int8_t* q,
                                   int32x4_t (*acc)[Ops::kAccumulators]) {
  constexpr int kFirst = kVectors < 4 ? kVectors : 4;
  int8x16_t a[kFirst];
  OTN_UNROLL
  for (int w = 0; w < kFirst; ++w) {
    a[w] = vld1q_s8(q + w * 16);
    OTN_IN_REGISTER(a[w]);  // not two in one instruction, which takes six cycles on a Cortex-A55
  }
  OTN_UNROLL
  for (int step = 0; step < Ops::kSteps; ++step) {
    OTN_UNROLL
    for (int w = 0; w < kFirst; ++w) Ops::Dot(step, acc[w], a[w], field);
  }
  if constexpr (kVectors > kFirst) {
    AddProducts<Ops, kVectors - kFirst>(field, q + kFirst * 16, acc + kFirst);
  }
}

template <typename Ops, Field kField, int kVectors>
OTN_ALWAYS_INLINE void AddChunk(const uint8x16_t* v, const int8_t* q,
                                int32x4_t (*acc)[Ops::kAccumulators]) {
  int8x16_t field[Ops::kRegisters];
  OTN_UNROLL
  for (int i = 0; i < Ops::kRegisters; ++i) field[i] = Unpack<kField>(v[i]);
  AddProducts<Ops, kVectors>(field, q, acc);
}

// The loop over the spans of a run for one field, or for the two at scale 1.
template <typename Ops, Field kField, int kVectors, int kChains>
OTN_ALWAYS_INLINE void AddField(const uint8_t* codes, const int8_t* q, int64_t num_spans,
                                int32x4_t (*acc)[kVectors][Ops::kAccumulators]) {
  for (int64_t span = 0; span < num_spans; ++span, codes += kTileSpanBytes) {
    OTN_UNROLL
    for (int h = 0; h < Ops::kChunks; ++h) {
      uint8x16_t v[Ops::kRegisters];
      LoadCodes<Ops>(codes + h * Ops::kChunkBytes, v);
      AddChunk<Ops, kField, kVectors>(v, q, acc[h % kChains]);
      q += kVectors * 16;
      if (kField != Field::low) continue;
      AddChunk<Ops, Field::high, kVectors>(v, q, acc[h % kChains]);
      q += kVectors * 16;
    }
  }
}

template <int kCount>
OTN_ALWAYS_INLINE void Quarter(int32x4_t* acc) {
  OTN_UNROLL
  for (int i = 0; i < kCount; ++i) acc[i] = vshrq_n_s32(acc[i], 2);
}

// acc (vectors, accumulators): sum(code * q) over a run, lane by lane.
template <typename Ops, int kVectors>
OTN_ALWAYS_INLINE void DotRun(const uint8_t* codes, const int8_t* at_16, const int8_t* at_4,
                              const int8_t* at_1, int64_t num_spans,
                              int32x4_t (*acc)[Ops::kAccumulators]) {
  constexpr int kChains = Chains<Ops, kVectors>::kCount;
  constexpr int kAcc = Ops::kAccumulators;
  constexpr int kCount = kChains * kVectors * kAcc;
  int32x4_t chains[kChains][kVectors][kAcc];
  OTN_UNROLL
  for (int i = 0; i < kCount; ++i) (&chains[0][0][0])[i] = vdupq_n_s32(0);
  AddField<Ops, Field::at_16, kVectors, kChains>(codes, at_16, num_spans, chains);
  Quarter<kCount>(&chains[0][0][0]);
  AddField<Ops, Field::at_4, kVectors, kChains>(codes, at_4, num_spans, chains);
  Quarter<kCount>(&chains[0][0][0]);
  AddField<Ops, Field::low, kVectors, kChains>(codes, at_1, num_spans, chains);
  OTN_UNROLL
  for (int i = 0; i < kVectors * kAcc; ++i) {
    const int32x4_t first = (&chains[0][0][0])[i];
    (&acc[0][0])[i] = kChains == 1 ? first : vaddq_s32(first, (&chains[kChains - 1][0][0])[i]);
  }
}

// The same for one vector: fewer accumulators, so all fields in one loop, which loads codes once.
template <typename Ops>
OTN_ALWAYS_INLINE void DotRunOfOne(const uint8_t* codes, const int8_t* at_16, const int8_t* at_4,
                                   const int8_t* at_1, int64_t num_spans,
                                   int32x4_t (*acc)[Ops::kAccumulators]) {
  constexpr int kAcc = Ops::kAccumulators;
  constexpr int kRegisters = Ops::kRegisters;
  int32x4_t scale1[kAcc], scale4[kAcc], scale16[kAcc];
  OTN_UNROLL
  for (int i = 0; i < kAcc; ++i) scale1[i] = scale4[i] = scale16[i] = vdupq_n_s32(0);
  uint8x16_t v[kRegisters];
  LoadCodes<Ops>(codes, v);
  for (int64_t span = 0; span < num_spans; ++span) {
    const uint8_t* next = span + 1 < num_spans ? codes + kTileSpanBytes : codes;
    OTN_UNROLL
    for (int h = 0; h < Ops::kChunks; ++h) {
      AddChunk<Ops, Field::at_16, 1>(v, at_16 + h * 16, &scale16);
      AddChunk<Ops, Field::at_4, 1>(v, at_4 + h * 16, &scale4);
      AddChunk<Ops, Field::low, 1>(v, at_1 + h * 32, &scale1);
      AddChunk<Ops, Field::high, 1>(v, at_1 + h * 32 + 16, &scale1);
      LoadCodes<Ops>(h + 1 < Ops::kChunks ? codes + (h + 1) * Ops::kChunkBytes : next, v);
    }
    codes = next;
    at_16 += Ops::kChunks * 16;
    at_4 += Ops::kChunks * 16;
    at_1 += Ops::kChunks * 32;
  }
  OTN_UNROLL
  for (int i = 0; i < kAcc; ++i) {
    acc[0][i] = vsraq_n_s32(vsraq_n_s32(scale1[i], scale4[i], 2), scale16[i], 4);
  }
}

// sums (vector rows, 4) = sum(code * q) over all spans of one column tile, modulo 2^32.
// q: fields 2 (num_spans, chunks, vectors, 16) | 1 (the same) | 0 and 3 (num_spans, chunks, 2,
// vectors, 16). Out of line: benchmarks/count_kernels.py finds the loop by its name.
template <typename Ops, int kVectors>
OTN_NEVER_INLINE void DotTile(const uint8_t* codes, const int8_t* q, int64_t num_spans,
                              int32_t* sums) {
  constexpr int64_t kFieldBytes = Ops::kChunks * kVectors * 16;  // of a span
  memset(sums, 0, sizeof(int32_t) * kTile * kVectors * Ops::kVectorRows);
  for (int64_t first = 0; first < num_spans; first += kRunSpans) {
    const int64_t count = Min(num_spans - first, kRunSpans);
    const uint8_t* run = codes + first * kTileSpanBytes;
    const int8_t* at_16 = q + first * kFieldBytes;
    const int8_t* at_4 = at_16 + num_spans * kFieldBytes;
    const int8_t* at_1 = q + (2 * num_spans + 2 * first) * kFieldBytes;
    int32x4_t acc[kVectors][Ops::kAccumulators];
    if constexpr (kVectors == 1) {
      DotRunOfOne<Ops>(run, at_16, at_4, at_1, count, acc);
    } else {
      DotRun<Ops, kVectors>(run, at_16, at_4, at_1, count, acc);
    }
    for (int w = 0; w < kVectors; ++w) {
      Ops::AddSums(acc[w], sums + w * Ops::kVectorRows * kTile);
    }
  }
}

// acc (vectors, accumulators) += all fields at scale 1 of one chunk. q: (4 fields, vectors, 16).
template <typename Ops, int kVectors>
OTN_ALWAYS_INLINE void AddAllFields(const uint8_t* codes, const int8_t* q,
                                    int32x4_t (*acc)[Ops::kAccumulators]) {
  uint8x16_t v[Ops::kRegisters];
  LoadCodes<Ops>(codes, v);
  OTN_UNROLL
  for (int j = 0; j < kFields; ++j) {
    int8x16_t field[Ops::kRegisters];
    OTN_UNROLL
    for (int i = 0; i < Ops::kRegisters; ++i) {
      field[i] = j == 0   ? Unpack<Field::low>(v[i])
                 : j == 1 ? Unpack<Field::low>(vshrq_n_u8(v[i], 2))
                 : j == 2 ? Unpack<Field::low>(vshrq_n_u8(v[i], 4))
                          : Unpack<Field::high>(v[i]);
    }
    AddProducts<Ops, kVectors>(field, q + j * kVectors * 16, acc);
  }
}

// totals (rows,) += scale * sum(level * q) over all blocks of one column tile.
// q: (num_spans, chunks, 4 fields, vectors, 16); unit_sums: (rows, padded units); scales: (padded
// units, 4).
//
// kWhole: blocks are spans. Otherwise several chunks may belong to a block, or several blocks to a
// chunk.
template <typename Ops, int kDigits, int kRows, bool kWhole>
OTN_NEVER_INLINE void DotTileGroups(const Layer* layer, const uint8_t* codes, const int8_t* q,
                                    const int32_t* unit_sums, const float* scales, Wide* totals) {
  constexpr int kAcc = Ops::kAccumulators;
  constexpr int kDigitVectors = kRows / Ops::kVectorRows;
  constexpr int kVectors = kDigits * kDigitVectors;
  const int64_t num_chunks = NumSpans(layer) * Ops::kChunks;
  const int64_t num_sums = PaddedUnits(layer);
  const int64_t block_chunks = kWhole ? Ops::kChunks : Ops::BlockChunks(layer->block_size);
  const int64_t chunk_blocks = kWhole ? 1 : Ops::ChunkBlocks(layer->block_size);
  Wide total[kRows];
  OTN_UNROLL
  for (int r = 0; r < kRows; ++r) total[r] = totals[r];
  for (int64_t chunk = 0; chunk < num_chunks;) {
    int32x4_t acc[kVectors][kAcc];
    OTN_UNROLL
    for (int i = 0; i < kVectors * kAcc; ++i) (&acc[0][0])[i] = vdupq_n_s32(0);
    OTN_UNROLL4
    for (int64_t i = 0; i < block_chunks; ++i, ++chunk, q += kFields * kVectors * 16) {
      AddAllFields<Ops, kVectors>(
          codes + chunk / Ops::kChunks * kTileSpanBytes + chunk % Ops::kChunks * Ops::kChunkBytes,
          q, acc);
    }
    OTN_UNROLL
    for (int w = 0; w < kDigitVectors; ++w) {
      OTN_UNROLL
      for (int i = 0; i < kAcc; ++i) {
        OTN_UNROLL
        for (int d = 1; d < kDigits; ++d) {
          const int32x4_t digit = acc[d * kDigitVectors + w][i];
          acc[w][i] = vaddq_s32(acc[w][i], d == 1 ? vshlq_n_s32(digit, 8) : vshlq_n_s32(digit, 16));
        }
      }
      Ops::AddBlocks(chunk_blocks, acc[w], unit_sums + w * Ops::kVectorRows * num_sums, num_sums,
                     scales, total + w * Ops::kVectorRows);
    }
    unit_sums += chunk_blocks;
    scales += chunk_blocks * kTile;
  }
  OTN_UNROLL
  for (int r = 0; r < kRows; ++r) totals[r] = total[r];
}

// ---------------------------------------------------------------------------------------------
// Activations

// digits (3, padded K) int8, balanced, base 256, the lowest first. Returns 2^-e.
inline double FixedPointRow(const Layer* layer, const float* x, int64_t padded_K, int8_t* digits) {
  const int64_t K = layer->K;
  const int e = FixedPointExponent(AbsMax(x, K));
  const TwoFactors factors = FactorsOfPower(e);
  for (int64_t k = 0; k < padded_K; k += 16) {
    int32x4_t rest[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t left = K - k - 4 * i;
      const float32x4_t v = left > 0 ? LoadFloats(x + k + 4 * i, left) : vdupq_n_f32(0.0f);
      rest[i] =
          vcvtnq_s32_f32(vmulq_n_f32(vmulq_n_f32(v, factors.first), factors.second));  // to nearest
    }
    for (int d = 0; d < 3; ++d) {
      // The low byte, read as int8, is the digit; (rest + 128) >> 8 takes it off.
      const int16x8_t low =
          vuzp1q_s16(vreinterpretq_s16_s32(rest[0]), vreinterpretq_s16_s32(rest[1]));
      const int16x8_t high =
          vuzp1q_s16(vreinterpretq_s16_s32(rest[2]), vreinterpretq_s16_s32(rest[3]));
      vst1q_s8(digits + d * padded_K + k,
               vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high)));
      for (int i = 0; i < 4; ++i) rest[i] = vrshrq_n_s32(rest[i], 8);
    }
  }
  return PowerOfTwo(-e);
}

// How many rows share an unpack: kMost, or kMostGroups with scales per group.
template <typename Ops, int kDigits>
int64_t GroupRows(const Layer* layer) {
  if (kDigits == 1) return PerGroup(layer) ? Ops::kInt8GroupsRows : Ops::kInt8Rows;
  return PerGroup(layer) ? Ops::kFloatGroupsRows : Ops::kFloatRows;
}

struct Prepared {
  int64_t num_sums;  // of a row
  size_t sums_offset, factors_offset, in_order_offset, bytes;
};

template <typename Ops, int kDigits>
Prepared PreparedLayout(const Layer* layer, int64_t rows) {
  const size_t padded_rows = (size_t)RoundUp(rows, Ops::kVectorRows);
  const size_t row_bytes = (size_t)(kDigits * NumSpans(layer) * kSpan);
  Prepared layout;
  layout.num_sums = PerGroup(layer) ? PaddedUnits(layer) : kDigits;
  layout.sums_offset = padded_rows * row_bytes;
  layout.factors_offset =
      layout.sums_offset + RoundUp64(padded_rows * (size_t)layout.num_sums * sizeof(int32_t));
  layout.in_order_offset = layout.factors_offset + RoundUp64((size_t)rows * sizeof(double));
  layout.bytes = layout.in_order_offset + row_bytes;
  return layout;
}

template <typename Ops, int kDigits>
size_t PreparedBytes(const Layer* layer, int64_t rows) {
  return PreparedLayout<Ops, kDigits>(layer, rows).bytes;
}

// Spreads one digit of one row of a group: q (of the group) in the order of the loop. digit:
// (padded K,); vector: of the group's num_vectors; part: of the vector's rows.
template <typename Ops>
void Spread(const Layer* layer, const int8_t* digit, int64_t num_vectors, int64_t vector,
            int64_t part, int8_t* q) {
  constexpr int64_t kPiece = 16 / Ops::kVectorRows;
  const int64_t num_spans = NumSpans(layer);
  const int64_t field_bytes = num_spans * Ops::kChunks * num_vectors * 16;
  const int64_t place = vector * 16 + part * kPiece;
  for (int64_t span = 0; span < num_spans; ++span) {
    int8_t ordered[kSpan];
    OrderSpan(layer, digit + span * kSpan, ordered);
    for (int64_t h = 0; h < Ops::kChunks; ++h) {
      const int64_t chunk = span * Ops::kChunks + h;
      for (int64_t j = 0; j < kFields; ++j) {
        int64_t at = (chunk * kFields + j) * num_vectors * 16;
        if (!PerGroup(layer)) {
          at = j == 2   ? chunk * num_vectors * 16
               : j == 1 ? field_bytes + chunk * num_vectors * 16
                        : 2 * field_bytes + (2 * chunk + (j == 3)) * num_vectors * 16;
        }
        memcpy(q + at + place, ordered + j * kSpanBytes + h * kPiece, (size_t)kPiece);
      }
    }
  }
}

template <typename Ops, int kDigits>
void Prepare(const Layer* layer, const Call* call, const float* x, int64_t rows, void* prepared) {
  const Prepared layout = PreparedLayout<Ops, kDigits>(layer, rows);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  const int64_t group_rows = GroupRows<Ops, kDigits>(layer);
  char* base = (char*)prepared;
  int32_t* sums = (int32_t*)(base + layout.sums_offset);
  double* factors = (double*)(base + layout.factors_offset);
  int8_t* digits = (int8_t*)(base + layout.in_order_offset);
  for (int64_t row = 0; row < RoundUp(rows, Ops::kVectorRows); ++row) {
    int32_t* row_sums = sums + row * layout.num_sums;
    if (row >= rows) {  // beside the last row
      memset(digits, 0, (size_t)(kDigits * padded_K));
    } else if (kDigits == 1) {
      factors[row] = (double)QuantizeRow(layer, call, x + row * layer->K, digits);
      memset(digits + layer->K, 0, (size_t)(padded_K - layer->K));
    } else {
      factors[row] = FixedPointRow(layer, x + row * layer->K, padded_K, digits);
    }
    const int64_t first = row / group_rows * group_rows;
    const int64_t digit_vectors =
        RoundUp(Min(rows - first, group_rows), Ops::kVectorRows) / Ops::kVectorRows;
    memset(row_sums, 0, (size_t)layout.num_sums * sizeof(int32_t));
    for (int d = 0; d < kDigits; ++d) {
      const int8_t* digit = digits + d * padded_K;
      Spread<Ops>(layer, digit, kDigits * digit_vectors,
                  d * digit_vectors + (row - first) / Ops::kVectorRows, row % Ops::kVectorRows,
                  (int8_t*)base + first * kDigits * padded_K);
      if (!PerGroup(layer)) {
        row_sums[d] = SumBytes(digit, padded_K);
        continue;
      }
      for (int64_t u = 0; u < layout.num_sums; ++u) {
        row_sums[u] += SumBytes(digit + u * layer->block_size, layer->block_size) * (1 << 8 * d);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The product

template <typename Ops>
size_t ScratchBytes(const Layer* layer, int64_t, int64_t) {
  const size_t codes = (size_t)(kStripTiles * NumSpans(layer) * kTileSpanBytes);
  return RoundUp64(StripBytes(layer)) + (Ops::ReadsAsIs(layer) ? 0 : codes);
}

// A group of rows and a tile of columns.
struct Place {
  const Layer* layer;
  const uint8_t* codes;
  const float* scales;  // null without scales per group
  const int8_t* q;
  const int32_t* sums;
  const double* factors;
  int64_t rows, n, end;
  float* y;  // of the first row
};

template <typename Ops, int kDigits, int kRows>
void ComputeRows(const Place& place) {
  const Layer* layer = place.layer;
  constexpr int kVectors = kDigits * kRows / Ops::kVectorRows;
  int32_t dot[kDigits * kRows * kTile];
  DotTile<Ops, kVectors>(place.codes, place.q, NumSpans(layer), dot);
  for (int64_t r = 0; r < place.rows; ++r) {
    int32x4_t sums[kDigits];
    for (int d = 0; d < kDigits; ++d) {
      sums[d] = vsubq_s32(vld1q_s32(dot + (d * kRows + r) * kTile),
                          vdupq_n_s32(place.sums[r * kDigits + d]));
    }
    float32x4_t y;
    if (kDigits == 1) {
      y = FinishInt8(layer, sums[0], (float)place.factors[r], place.n);
    } else {
      Wide total = WidenS32(sums[kDigits - 1]);
      for (int d = kDigits - 2; d >= 0; --d) {
        const Wide digit = WidenS32(sums[d]);
        total.low = vaddq_f64(vmulq_n_f64(total.low, 256.0), digit.low);
        total.high = vaddq_f64(vmulq_n_f64(total.high, 256.0), digit.high);
      }
      const Wide scale = WidenF32(LoadScale(layer, place.n));
      total.low = vmulq_f64(total.low, scale.low);
      total.high = vmulq_f64(total.high, scale.high);
      y = FinishFloat(layer, total, place.factors[r], place.n);
    }
    StoreFloats(place.y + r * layer->N + place.n, y, place.end - place.n);
  }
}

// SmallBlockOps: for blocks smaller than a span, where lanes of accumulators go to several blocks.
template <typename Ops, int kDigits, int kRows, typename SmallBlockOps = Ops>
void ComputeRowsGroups(const Place& place) {
  const Layer* layer = place.layer;
  Wide totals[kRows];
  for (int r = 0; r < kRows; ++r) totals[r].low = totals[r].high = vdupq_n_f64(0.0);
  const auto dot = layer->block_size == kSpan ? DotTileGroups<Ops, kDigits, kRows, true>
                                              : DotTileGroups<SmallBlockOps, kDigits, kRows, false>;
  dot(layer, place.codes, place.q, place.sums, place.scales, totals);
  for (int64_t r = 0; r < place.rows; ++r) {
    const float32x4_t y = kDigits == 1
                              ? FinishGroupsInt8(layer, totals[r], (float)place.factors[r], place.n)
                              : FinishFloat(layer, totals[r], place.factors[r], place.n);
    StoreFloats(place.y + r * layer->N + place.n, y, place.end - place.n);
  }
}

typedef void (*ComputeFunction)(const Place&);

// functions[i] is that of (i + 1) * kVectorRows rows.
template <typename Ops, int kDigits>
void Compute(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
             int64_t end, float* y, void* scratch) {
  const Prepared layout = PreparedLayout<Ops, kDigits>(layer, rows);
  const int64_t padded_K = NumSpans(layer) * kSpan;
  const int64_t tile_bytes = NumSpans(layer) * kTileSpanBytes;
  const int64_t group_rows = GroupRows<Ops, kDigits>(layer);
  const ComputeFunction* functions = Ops::template Functions<kDigits>(PerGroup(layer));
  const char* base = (const char*)prepared;
  float* strip = (float*)scratch;
  uint8_t* expanded = (uint8_t*)scratch + RoundUp64(StripBytes(layer));
  // A strip of columns at a time, whose codes stay in L1 while the rows pass.
  for (int64_t n = begin; n < end; n += kStripTiles * kTile) {
    const int64_t strip_end = Min(n + kStripTiles * kTile, end);
    const uint8_t* codes = TileStart(layer, n);
    const float* scales = PerGroup(layer) ? StripScales(layer, n, n, strip) : nullptr;
    if (!Ops::ReadsAsIs(layer)) {
      for (int64_t m = n; m < strip_end; m += kTile) {
        Ops::Expand(layer, TileStart(layer, m), expanded + (m - n) / kTile * tile_bytes);
      }
      codes = expanded;
    }
    for (int64_t row = 0; row < rows; row += group_rows) {
      Place place;
      place.layer = layer;
      place.q = (const int8_t*)base + row * kDigits * padded_K;
      place.sums = (const int32_t*)(base + layout.sums_offset) + row * layout.num_sums;
      place.factors = (const double*)(base + layout.factors_offset) + row;
      place.rows = Min(rows - row, group_rows);
      place.end = end;
      place.y = y + row * layer->N;
      const ComputeFunction compute = functions[(place.rows - 1) / Ops::kVectorRows];
      for (int64_t t = 0; n + t * kTile < strip_end; ++t) {
        place.n = n + t * kTile;
        place.codes = codes + t * tile_bytes;
        place.scales = scales ? scales + t * PaddedUnits(layer) * kTile : nullptr;
        compute(place);
      }
    }
  }
}

// Codes in blocks of 128 are read as they lie, codes of smaller blocks expanded.
inline void ExpandTile(const Layer* layer, const uint8_t* tile_codes, uint8_t* expanded) {
  for (int64_t span = 0; span < NumSpans(layer); ++span, expanded += kTileSpanBytes) {
    uint8x16_t columns[kTile][2];
    ExpandSpan(layer, tile_codes, span, columns);
    for (int i = 0; i < 2 * kTile; ++i) vst1q_u8(expanded + i * 16, columns[i / 2][i % 2]);
  }
}

// What an Ops has in common where a register is 16 inputs of one column or row.
struct OneColumnOps {
  static constexpr int kVectorRows = 1;
  static constexpr int kRegisters = 4;
  static constexpr int64_t kRegisterBytes = 32;  // from one to the next
  static constexpr int kAccumulators = 4;        // of a vector: one per column
  static constexpr int kChunks = 2;
  static constexpr int64_t kChunkBytes = 16;
  static constexpr int kSteps = 1;  // of a product

  static bool ReadsAsIs(const Layer* layer) { return AsIs(layer); }
  static void Expand(const Layer* layer, const uint8_t* tile_codes, uint8_t* expanded) {
    ExpandTile(layer, tile_codes, expanded);
  }
  static int64_t BlockChunks(int64_t block_size) { return block_size == kSpan ? 2 : 1; }
  static int64_t ChunkBlocks(int64_t block_size) {
    return block_size == kSpan ? 1 : 64 / block_size;
  }

  // sums (4,) += the lanes of each accumulator.
  static OTN_ALWAYS_INLINE void AddSums(const int32x4_t* acc, int32_t* sums) {
    const int32x4_t all = vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
    vst1q_s32(sums, vaddq_s32(vld1q_s32(sums), all));
  }

  // The blocks of a chunk: a lane is 16 inputs.
  static OTN_ALWAYS_INLINE void AddBlocks(int64_t num_blocks, const int32x4_t* acc,
                                          const int32_t* unit_sums, int64_t, const float* scales,
                                          Wide* total) {
    const auto add = [&](int block, int32x4_t sum) {
      AddUnit(total, sum, unit_sums[block], WidenF32(vld1q_f32(scales + block * kTile)));
    };
    if (num_blocks == 4) {
      const int64x2_t even01 = vreinterpretq_s64_s32(vtrn1q_s32(acc[0], acc[1]));
      const int64x2_t odd01 = vreinterpretq_s64_s32(vtrn2q_s32(acc[0], acc[1]));
      const int64x2_t even23 = vreinterpretq_s64_s32(vtrn1q_s32(acc[2], acc[3]));
      const int64x2_t odd23 = vreinterpretq_s64_s32(vtrn2q_s32(acc[2], acc[3]));
      add(0, vreinterpretq_s32_s64(vzip1q_s64(even01, even23)));
      add(1, vreinterpretq_s32_s64(vzip1q_s64(odd01, odd23)));
      add(2, vreinterpretq_s32_s64(vzip2q_s64(even01, even23)));
      add(3, vreinterpretq_s32_s64(vzip2q_s64(odd01, odd23)));
      return;
    }
    const int32x4_t ab = vpaddq_s32(acc[0], acc[1]), cd = vpaddq_s32(acc[2], acc[3]);
    if (num_blocks == 2) {
      add(0, vuzp1q_s32(ab, cd));
      add(1, vuzp2q_s32(ab, cd));
      return;
    }
    add(0, vpaddq_s32(ab, cd));
  }
};

}  // namespace
}  // namespace neon
}  // namespace onnx_ternary
