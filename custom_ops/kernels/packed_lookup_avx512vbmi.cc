// Kernels for `packed`, AVX-512 with VBMI: lookup GEMM (float) with tables in registers. Lanes are
// sixteen columns. The 27 sums +-x0 +-x1 +-x2 of three inputs of one row, or the 32 sums of five
// inputs whose weights are bits, fill two registers; a permutation (vpermi2d) looks the patterns of
// sixteen columns up in them: 48 or 80 products per instruction, and one addition. Codes are read
// once for all rows of a tile, so this pays from a few rows on, where the tables of
// packed_lookup_avx512bw.cc, whose lanes are rows, would stay half empty.
//
// Layout: docs/index_format.md sections 2.1 and 2.3, read in spans of 128 inputs.
// Ternary patterns (any storage, span.h): 32 bytes of codes per column, eight dwords, field j
// of byte p input 32 j + p. Fields 0, 1 and 2 of a byte make a pattern; the field 3 that is left
// over makes patterns with those of the same byte of the next two dwords. A span has 44 patterns:
// byte i of dword w the inputs 4 w + i, 32 + 4 w + i and 64 + 4 w + i (32 patterns), the left-over
// inputs 96 + 4 w + i for w = 0, 1, 2 and 3, 4, 5 (8), and for w = 6, 7 (4, of two inputs).
// Binary patterns (1bit in blocks of 128): 16 bytes per column, four dwords, bit t of dword w input
// 16 (t mod 8) + 4 w + t / 8. Six patterns of five bits per dword; its bits 30 and 31 are left over
// and make two patterns more, of five and three inputs.
//
// Rows are 24-bit fixed point, q = round(x * 2^e) with e = 23 - floor(log2(absmax)), so the largest
// inputs keep all their bits: |q| < 2^24, and an input is off by at most 2^-e / 2 <= absmax *
// 2^-24. The sum of a span is exact: |.| <= 128 (2^24 - 1) < 2^31. It is rounded to float32 once,
// brought back by 2^-e (exact: q and x are multiples of the smallest subnormal float32 in these
// units), weighted where scales are per group, and added to the sums of the spans before it: the
// longest chain of additions is the number of spans.
//
// prepared: q (rows, num_spans, 128) int32, zero past K | -e (rows,) float32
// scratch:  tables (44 or 26 patterns, 4 rows, 32) int32 | codes (blocks of 64 or 16 columns, 11 or
//           5 dwords, columns) uint32 | scales (columns,) float32 | sums (rows, columns) float32
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "common/span_avx512.h"
#include "kernel_list.h"

namespace onnx_ternary {
namespace avx512vbmi {
namespace {

using namespace avx512;

constexpr int64_t kLanes = 16;
constexpr int64_t kWide = 4;     // registers of columns side by side
constexpr int64_t kRowTile = 4;  // rows whose tables are in L1 together
constexpr int64_t kMaxRows = 64;
constexpr int64_t kTilesAhead = 16;
constexpr int64_t kBlock = kWide * kLanes;
constexpr int64_t kTableRow = 32;  // sums per pattern

// Patterns of a span: dwords that hold kWordPatterns each, kShift bits apart, and a last one with
// kLastPatterns.
struct Ternary {
  static constexpr int kWords = 11;
  static constexpr int kByteWords = 8;  // the others hold the left-over fields
  static constexpr int kWordPatterns = 4;
  static constexpr int kLastPatterns = 4;
  static constexpr int kShift = 8;
};

struct Binary {
  static constexpr int kWords = 5;
  static constexpr int kWordPatterns = 6;
  static constexpr int kLastPatterns = 2;
  static constexpr int kShift = 5;
};

template <typename Scheme>
constexpr int64_t NumPatterns() {
  return (Scheme::kWords - 1) * Scheme::kWordPatterns + Scheme::kLastPatterns;
}
// Sums and codes of a chunk of columns stay in L2.
constexpr int64_t kSumsBytes = 640 << 10;
constexpr int64_t kMostColumns = 4096;

// A group of scales must be whole spans.
bool Accepts(const Layer* layer) { return !PerGroup(layer) || layer->group_size % kSpan == 0; }

bool TakesBits(const Layer* layer) {
  return layer->storage == Storage::one_bit && layer->block_size == kSpan;
}

int64_t MostColumns(int64_t rows) {
  return Min(kSumsBytes / (int64_t)sizeof(float) / rows, kMostColumns) / kBlock * kBlock;
}

int64_t ChunkColumns(int64_t rows, int64_t num_columns) {
  const int64_t most = MostColumns(rows);
  const int64_t num_chunks = (num_columns + most - 1) / most;
  return RoundUp((num_columns + num_chunks - 1) / num_chunks, kBlock);
}

struct Prepared {
  size_t exponents_offset, bytes;
};

Prepared PreparedLayout(const Layer* layer, int64_t rows) {
  Prepared layout;
  layout.exponents_offset = (size_t)(rows * NumSpans(layer) * kSpan) * sizeof(int32_t);
  layout.bytes = layout.exponents_offset + RoundUp64((size_t)rows * sizeof(float));
  return layout;
}

size_t PreparedBytes(const Layer* layer, int64_t rows) { return PreparedLayout(layer, rows).bytes; }

struct Scratch {
  size_t codes_offset, scales_offset, sums_offset, bytes;
};

template <typename Scheme>
Scratch ScratchLayout(int64_t columns, int64_t num_sums) {
  Scratch layout;
  layout.codes_offset = (size_t)(NumPatterns<Scheme>() * kRowTile * kTableRow) * sizeof(int32_t);
  layout.scales_offset =
      layout.codes_offset + (size_t)(columns * Scheme::kWords) * sizeof(uint32_t);
  layout.sums_offset = layout.scales_offset + (size_t)columns * sizeof(float);
  layout.bytes = layout.sums_offset + (size_t)num_sums * sizeof(float);
  return layout;
}

size_t ScratchBytes(const Layer*, int64_t rows, int64_t num_columns) {
  // Ternary patterns need more. Chunks of fewer rows are wider, up to as many sums.
  const int64_t columns = RoundUp(num_columns, kBlock);
  const int64_t num_sums = Min(rows * columns, kSumsBytes / (int64_t)sizeof(float));
  return ScratchLayout<Ternary>(Min(columns, kMostColumns), num_sums).bytes;
}

// floor(log2(absmax of x)), below any float32's for a row of zeros.
int AbsMaxExponent(const float* x, int64_t count) {
  const int32_t bits = AbsMaxBits(x, count);
  if (bits >= 1 << 23) return (bits >> 23) - 127;
  int exponent = -150;  // subnormal
  for (int32_t left = bits; left > 0; left >>= 1) ++exponent;
  return exponent;
}

void Prepare(const Layer* layer, const Call*, const float* x, int64_t rows, void* prepared) {
  const int64_t K = layer->K;
  const int64_t num_spans = NumSpans(layer);
  // Fours of inputs of a span move together to the places of their fields.
  const int64_t quarter = layer->block_size / 4;
  int64_t place[kSpan / 4];
  for (int64_t four = 0; four < kSpan / 4; ++four) {
    const int64_t block = 4 * four / layer->block_size, in_block = 4 * four % layer->block_size;
    place[four] = in_block / quarter * (kSpan / 4) + block * quarter + in_block % quarter;
  }
  int32_t* q = (int32_t*)prepared;
  float* exponents = (float*)((char*)prepared + PreparedLayout(layer, rows).exponents_offset);
  for (int64_t row = 0; row < rows; ++row) {
    const int exponent = 23 - AbsMaxExponent(x + row * K, K);
    exponents[row] = (float)-exponent;
    const __m512 power = _mm512_set1_ps((float)exponent);
    for (int64_t k = 0; k < num_spans * kSpan; k += kSpan, q += kSpan) {
      for (int64_t i = 0; i < kSpan; i += kLanes) {
        const __m512 v = _mm512_maskz_loadu_ps(FirstSixteen(K - k - i), x + row * K + k + i);
        const __m512i rounded = _mm512_cvtps_epi32(_mm512_scalef_ps(v, power));
        const int64_t* at = place + i / 4;
        _mm_store_si128((__m128i*)(q + at[0]), _mm512_castsi512_si128(rounded));
        _mm_store_si128((__m128i*)(q + at[1]), _mm512_extracti32x4_epi32(rounded, 1));
        _mm_store_si128((__m128i*)(q + at[2]), _mm512_extracti32x4_epi32(rounded, 2));
        _mm_store_si128((__m128i*)(q + at[3]), _mm512_extracti32x4_epi32(rounded, 3));
      }
    }
  }
}

// The sums of a, b and c by pattern d0 + 3 d1 + 9 d2, digits 0, 1, 2 meaning -1, 0, 1; five more
// that no pattern reaches.
OTN_ALWAYS_INLINE void BuildTable(__m512i a, __m512i b, __m512i c, __m512i* table) {
  const __m512i zero = _mm512_setzero_si512();
  // Lane l: pattern l mod 9 of a and b.
  const __m512i of_a = _mm512_mask_sub_epi32(_mm512_maskz_mov_epi32(0x4924, a), 0x9249, zero, a);
  const __m512i of_b = _mm512_mask_sub_epi32(_mm512_maskz_mov_epi32(0x81c0, b), 0x0e07, zero, b);
  const __m512i low = _mm512_add_epi32(of_a, of_b);
  const __m512i high = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(7, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0), low);
  _mm512_store_si512(table, _mm512_mask_sub_epi32(low, 0x01ff, low, c));
  _mm512_store_si512(table + 1, _mm512_mask_add_epi32(high, 0x07fc, high, c));
}

// Tables of a span: (patterns, kRows, 32). q: rows of 128, `stride` apart.
template <int kRows>
void BuildTables(Ternary, const Layer*, const int32_t* q, int64_t stride, int32_t* tables) {
  __m512i* table = (__m512i*)tables;
  const auto build = [&](int64_t first, int64_t step, bool three) {
    for (int64_t i = first; i < first + Ternary::kWordPatterns; ++i) {
      OTN_UNROLL16
      for (int r = 0; r < kRows; ++r, table += 2) {
        const int32_t* row = q + r * stride + i;
        BuildTable(_mm512_set1_epi32(row[0]), _mm512_set1_epi32(row[step]),
                   three ? _mm512_set1_epi32(row[2 * step]) : _mm512_setzero_si512(), table);
      }
    }
  };
  for (int64_t w = 0; w < Ternary::kByteWords; ++w) build(4 * w, 32, true);
  build(96, 4, true);
  build(108, 4, true);
  build(120, 4, false);
}

// The inputs of a binary pattern.
struct BinaryInputs {
  uint8_t input[26][5];
  int count[26];
};

constexpr BinaryInputs MakeBinaryInputs() {
  BinaryInputs inputs = {};
  const auto add = [&](int pattern, int word, int bit) {
    inputs.input[pattern][inputs.count[pattern]++] = (uint8_t)(16 * (bit % 8) + 4 * word + bit / 8);
  };
  for (int word = 0; word < 4; ++word) {
    for (int bit = 0; bit < 30; ++bit) add(6 * word + bit / 5, word, bit);
    for (int bit = 30; bit < 32; ++bit) add(24 + (2 * word + bit - 30) / 5, word, bit);
  }
  return inputs;
}

constexpr BinaryInputs kBinaryInputs = MakeBinaryInputs();

// As above, bits meaning 0 and 1 (alphabet binary_01) or -1 and 1.
template <int kRows>
void BuildTables(Binary, const Layer* layer, const int32_t* q, int64_t stride, int32_t* tables) {
  static constexpr __mmask16 kOnes[4] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};  // lanes whose bit is set
  const __m512i zero = _mm512_setzero_si512();
  const __m512i minus = _mm512_set1_epi32(layer->alphabet == Alphabet::binary_01 ? 0 : -1);
  __m512i* table = (__m512i*)tables;
  for (int64_t p = 0; p < NumPatterns<Binary>(); ++p) {
    for (int r = 0; r < kRows; ++r, table += 2) {
      __m512i x[5], low = zero;
      OTN_UNROLL16
      for (int i = 0; i < 5; ++i) {
        x[i] = i < kBinaryInputs.count[p]
                   ? _mm512_set1_epi32(q[r * stride + kBinaryInputs.input[p][i]])
                   : zero;
      }
      OTN_UNROLL16
      for (int i = 0; i < 4; ++i) {
        // x or, where the bit is not set, 0 or -x.
        const __m512i unset = _mm512_and_si512(_mm512_sub_epi32(zero, x[i]), minus);
        low = _mm512_add_epi32(low, _mm512_mask_mov_epi32(unset, kOnes[i], x[i]));
      }
      const __m512i unset = _mm512_and_si512(_mm512_sub_epi32(zero, x[4]), minus);
      _mm512_store_si512(table, _mm512_add_epi32(low, unset));
      _mm512_store_si512(table + 1, _mm512_add_epi32(low, x[4]));
    }
  }
}

// By three fields of two bits, the pattern d0 + 3 d1 + 9 d2; digit 3 (damaged files only) counts as
// 0, so that every pattern is below 27.
__m512i PatternOfFields() {
  const __m128i two = _mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 3, 6, 7, 8, 6, 0, 1, 2, 0);
  const __m512i third = _mm512_inserti64x4(
      _mm512_castsi256_si512(_mm256_setr_m128i(_mm_setzero_si128(), _mm_set1_epi8(9))),
      _mm256_setr_m128i(_mm_set1_epi8(18), _mm_setzero_si128()), 1);
  return _mm512_add_epi8(_mm512_broadcast_i32x4(two), third);
}

// Fields 3 of v0, v1 and v2, byte by byte, as fields 0, 1 and 2; what is above them is undefined.
__m512i LeftOver(__m512i v0, __m512i v1, __m512i v2) {
  const int select = 0xca;  // bits of the second where the first has ones, else of the third
  const __m512i two = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), _mm512_srli_epi16(v0, 6),
                                                _mm512_srli_epi16(v1, 4), select);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(15), two, _mm512_srli_epi16(v2, 2), select);
}

// Patterns of a span, sixteen columns of tiles of which `num_tiles` exist: out (11, `stride`
// registers apart).
template <bool kAsIs>
void Transcode(Ternary, const Decoder& decoder, __m512i pattern_of_fields, const uint8_t* tiles,
               int64_t num_tiles, int64_t span, __m512i* out, int64_t stride) {
  constexpr int kByteWords = Ternary::kByteWords, kWords = Ternary::kWords;
  // Dwords 0..3 and 4..7 of four columns, the columns of a dword side by side.
  const __m512i order = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i order4 = _mm512_add_epi32(order, _mm512_set1_epi32(4));
  __m512i half[2][4];
  OTN_UNROLL16
  for (int t = 0; t < 4; ++t) {
    if (t < num_tiles) {
      __m512i v01, v23;
      const uint8_t* tile = tiles + t * decoder.tile_bytes;
      LoadSpan<kAsIs>(decoder, tile, span, &v01, &v23);
      // Tiles lie too far apart for the processor to see where this goes.
      const char* ahead =
          (const char*)tile + kTilesAhead * decoder.tile_bytes + span * decoder.span_bytes;
      _mm_prefetch(ahead, _MM_HINT_T0);
      _mm_prefetch(ahead + 64, _MM_HINT_T0);
      half[0][t] = _mm512_permutex2var_epi32(v01, order, v23);
      half[1][t] = _mm512_permutex2var_epi32(v01, order4, v23);
    } else {
      half[0][t] = half[1][t] = _mm512_setzero_si512();
    }
  }
  __m512i word[kByteWords];
  OTN_UNROLL16
  for (int h = 0; h < 2; ++h) {
    const __m512i low01 = _mm512_shuffle_i32x4(half[h][0], half[h][1], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(half[h][0], half[h][1], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(half[h][2], half[h][3], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(half[h][2], half[h][3], 0xee);
    word[4 * h] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    word[4 * h + 1] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    word[4 * h + 2] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    word[4 * h + 3] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
  const __m512i left_over[kWords - kByteWords] = {
      LeftOver(word[0], word[1], word[2]), LeftOver(word[3], word[4], word[5]),
      LeftOver(word[6], word[7], _mm512_setzero_si512())};
  // vpermb looks at the lower six bits only.
  OTN_UNROLL16
  for (int w = 0; w < kWords; ++w) {
    const __m512i fields = w < kByteWords ? word[w] : left_over[w - kByteWords];
    _mm512_store_si512(out + w * stride, _mm512_permutexvar_epi8(fields, pattern_of_fields));
  }
}

template <bool kAsIs>
void Transcode(Binary, const Decoder& decoder, __m512i, const uint8_t* tiles, int64_t num_tiles,
               int64_t span, __m512i* out, int64_t stride) {
  __m512i tile[4];  // (4 columns, 4 dwords)
  OTN_UNROLL16
  for (int t = 0; t < 4; ++t) {
    tile[t] = t < num_tiles
                  ? _mm512_loadu_si512(tiles + t * decoder.tile_bytes + span * decoder.span_bytes)
                  : _mm512_setzero_si512();
  }
  // Dwords 0 and 1, and 2 and 3, of eight columns, the columns of a dword side by side.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i order2 = _mm512_add_epi32(order, _mm512_set1_epi32(2));
  __m512i word[4];
  OTN_UNROLL16
  for (int h = 0; h < 2; ++h) {
    const __m512i which = h ? order2 : order;
    const __m512i first = _mm512_permutex2var_epi32(tile[0], which, tile[1]);
    const __m512i second = _mm512_permutex2var_epi32(tile[2], which, tile[3]);
    word[2 * h] = _mm512_shuffle_i64x2(first, second, 0x44);
    word[2 * h + 1] = _mm512_shuffle_i64x2(first, second, 0xee);
  }
  __m512i left_over = _mm512_srli_epi32(word[0], 30);
  OTN_UNROLL16
  for (int w = 0; w < 4; ++w) {
    _mm512_store_si512(out + w * stride, word[w]);
    if (w > 0) {
      left_over = _mm512_or_si512(
          left_over, _mm512_slli_epi32(_mm512_srli_epi32(word[w], 30), (unsigned)(2 * w)));
    }
  }
  _mm512_store_si512(out + 4 * stride, left_over);
}

// acc += v. gcc 12 gathers the looked-up sums first and spills them (2.9 instead of 5.6 G lookups
// per second, Zen 5).
#if defined(__GNUC__)
#define OTN_ADD_LOOKUP(acc, v) __asm__ volatile("vpaddd %1, %0, %0" : "+v"(acc) : "v"(v))
#else
#define OTN_ADD_LOOKUP(acc, v) (acc) = _mm512_add_epi32((acc), (v))
#endif

// The next kPatterns patterns of a dword.
template <typename Scheme, int kPatterns, int kRows, int kRegisters>
OTN_ALWAYS_INLINE const __m512i* LookupWord(const __m512i* table, const __m512i* word,
                                            __m512i (&acc)[kRows][kRegisters]) {
  __m512i pattern[kRegisters];
  OTN_UNROLL16
  for (int c = 0; c < kRegisters; ++c) pattern[c] = _mm512_load_si512(word + c);
  OTN_UNROLL16
  for (int i = 0; i < kPatterns; ++i) {
    OTN_UNROLL16
    for (int r = 0; r < kRows; ++r, table += 2) {
      const __m512i low = _mm512_load_si512(table), high = _mm512_load_si512(table + 1);
      OTN_UNROLL16
      for (int c = 0; c < kRegisters; ++c) {
        const __m512i looked_up = _mm512_permutex2var_epi32(low, pattern[c], high);
        OTN_ADD_LOOKUP(acc[r][c], looked_up);
      }
    }
    OTN_UNROLL16
    for (int c = 0; c < kRegisters; ++c) {
      pattern[c] = _mm512_srli_epi32(pattern[c], Scheme::kShift);
    }
  }
  return table;
}

// Adds a span to sums (kRows, kRegisters * 16), rows `stride` apart, weighted by scales (columns,)
// where it is not null.
template <typename Scheme, int kRows, int kRegisters>
void LookupSpan(const int32_t* tables, const uint32_t* codes, const float* exponents,
                const float* scales, float* sums, int64_t stride) {
  __m512i acc[kRows][kRegisters];
  OTN_UNROLL16
  for (int r = 0; r < kRows; ++r) {
    OTN_UNROLL16
    for (int c = 0; c < kRegisters; ++c) acc[r][c] = _mm512_setzero_si512();
  }
  const __m512i* table = (const __m512i*)tables;
  const __m512i* word = (const __m512i*)codes;
  for (int w = 0; w < Scheme::kWords - 1; ++w, word += kRegisters) {
    table = LookupWord<Scheme, Scheme::kWordPatterns>(table, word, acc);
  }
  LookupWord<Scheme, Scheme::kLastPatterns>(table, word, acc);
  OTN_UNROLL16
  for (int r = 0; r < kRows; ++r) {
    const __m512 exponent = _mm512_set1_ps(exponents[r]);
    OTN_UNROLL16
    for (int c = 0; c < kRegisters; ++c) {
      float* sum = sums + r * stride + c * kLanes;
      const __m512 span = _mm512_scalef_ps(_mm512_cvtepi32_ps(acc[r][c]), exponent);
      const __m512 before = _mm512_load_ps(sum);
      _mm512_store_ps(sum, scales
                               ? _mm512_fmadd_ps(span, _mm512_load_ps(scales + c * kLanes), before)
                               : _mm512_add_ps(span, before));
    }
  }
}

struct Chunk {
  const Layer* layer;
  const Decoder* decoder;
  const uint8_t* tiles;
  int64_t num_columns;
  uint32_t* codes;      // patterns of a span
  const float* scales;  // of a span, or null
};

struct RowTile {
  const int32_t* q;  // rows q_stride apart
  int64_t q_stride;
  const float* exponents;
  float* sums;  // rows stride apart
  int64_t stride;
};

// Where the patterns of a span come from: an earlier tile of rows, or the layer.
enum class Patterns { ready, as_is, brought };

template <typename Scheme, int kRows, int kRegisters, Patterns kPatterns>
OTN_ALWAYS_INLINE void AddBlock(const Chunk& chunk, const RowTile& rows, __m512i pattern_of_fields,
                                int64_t span, const int32_t* tables, int64_t n) {
  uint32_t* codes = chunk.codes + n * Scheme::kWords;
  if (kPatterns != Patterns::ready) {
    for (int64_t c = 0; c < kRegisters; ++c) {
      const int64_t tile = n / kTile + c * (kLanes / kTile);
      Transcode<kPatterns == Patterns::as_is>(Scheme(), *chunk.decoder, pattern_of_fields,
                                              chunk.tiles + tile * chunk.decoder->tile_bytes,
                                              (chunk.num_columns + kTile - 1) / kTile - tile, span,
                                              (__m512i*)codes + c, kRegisters);
    }
  }
  LookupSpan<Scheme, kRows, kRegisters>(tables, codes, rows.exponents,
                                        chunk.scales ? chunk.scales + n : nullptr, rows.sums + n,
                                        rows.stride);
}

// What a span adds to the sums of all columns of a chunk, blocks of 64, then of 16.
template <typename Scheme, int kRows, Patterns kPatterns>
void AddSpan(const Chunk& chunk, const RowTile& rows, int64_t span, int32_t* tables) {
  const __m512i pattern_of_fields = PatternOfFields();
  BuildTables<kRows>(Scheme(), chunk.layer, rows.q + span * kSpan, rows.q_stride, tables);
  const int64_t padded = RoundUp(chunk.num_columns, kLanes);
  int64_t n = 0;
  for (; n + kBlock <= padded; n += kBlock) {
    AddBlock<Scheme, kRows, kWide, kPatterns>(chunk, rows, pattern_of_fields, span, tables, n);
  }
  for (; n < padded; n += kLanes) {
    AddBlock<Scheme, kRows, 1, kPatterns>(chunk, rows, pattern_of_fields, span, tables, n);
  }
}

using AddSpanFunction = void (*)(const Chunk&, const RowTile&, int64_t, int32_t*);

// Y from sums, with scale (unless already applied) and bias.
void StoreRow(const Layer* layer, const float* sums, int64_t begin, int64_t num_columns, float* y) {
  for (int64_t n = 0; n < num_columns; n += kLanes) {
    const __mmask16 valid = FirstSixteen(num_columns - n);
    const int64_t column = begin + n;
    const ScaleAndBias columns = LoadScaleAndBias(layer, column, valid);
    _mm512_mask_storeu_ps(y + column, valid,
                          _mm512_fmadd_ps(_mm512_load_ps(sums + n), columns.scale, columns.bias));
  }
}

template <typename Scheme>
void ComputeOf(const Layer* layer, int64_t rows, const void* prepared, int64_t begin, int64_t end,
               float* y, void* scratch) {
  static constexpr AddSpanFunction kAddSpan[3][kRowTile] = {
      {AddSpan<Scheme, 1, Patterns::ready>, AddSpan<Scheme, 2, Patterns::ready>,
       AddSpan<Scheme, 3, Patterns::ready>, AddSpan<Scheme, 4, Patterns::ready>},
      {AddSpan<Scheme, 1, Patterns::as_is>, AddSpan<Scheme, 2, Patterns::as_is>,
       AddSpan<Scheme, 3, Patterns::as_is>, AddSpan<Scheme, 4, Patterns::as_is>},
      {AddSpan<Scheme, 1, Patterns::brought>, AddSpan<Scheme, 2, Patterns::brought>,
       AddSpan<Scheme, 3, Patterns::brought>, AddSpan<Scheme, 4, Patterns::brought>}};
  const Decoder decoder = MakeDecoder(layer);
  const int64_t num_spans = NumSpans(layer);
  const int32_t* q = (const int32_t*)prepared;
  const float* exponents =
      (const float*)((const char*)prepared + PreparedLayout(layer, rows).exponents_offset);
  const int64_t stride = ChunkColumns(rows, end - begin);
  const Scratch layout = ScratchLayout<Scheme>(stride, rows * stride);
  char* base = (char*)scratch;
  int32_t* tables = (int32_t*)base;
  float* scales = (float*)(base + layout.scales_offset);
  float* sums = (float*)(base + layout.sums_offset);
  const int64_t num_row_tiles = (rows + kRowTile - 1) / kRowTile;
  for (int64_t n = begin; n < end; n += stride) {
    const Chunk chunk = {layer,
                         &decoder,
                         layer->codes + n / kTile * decoder.tile_bytes,
                         Min(stride, end - n),
                         (uint32_t*)(base + layout.codes_offset),
                         PerGroup(layer) ? scales : nullptr};
    memset(sums, 0, (size_t)(rows * stride) * sizeof(float));
    if (chunk.scales) memset(scales, 0, (size_t)stride * sizeof(float));
    for (int64_t span = 0; span < num_spans; ++span) {
      if (chunk.scales && span * kSpan % layer->group_size == 0) {
        memcpy(scales, layer->scale + span * kSpan / layer->group_size * layer->N + n,
               (size_t)chunk.num_columns * sizeof(float));
      }
      for (int64_t t = 0; t < num_row_tiles; ++t) {
        const int64_t row = rows * t / num_row_tiles;  // as even as they get
        const int64_t tile_rows = rows * (t + 1) / num_row_tiles - row;
        const RowTile tile = {q + row * num_spans * kSpan, num_spans * kSpan, exponents + row,
                              sums + row * stride, stride};
        const Patterns patterns = t > 0         ? Patterns::ready
                                  : AsIs(layer) ? Patterns::as_is
                                                : Patterns::brought;
        kAddSpan[(int)patterns][tile_rows - 1](chunk, tile, span, tables);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      StoreRow(layer, sums + row * stride, n, chunk.num_columns, y + row * layer->N);
    }
  }
}

void Compute(const Layer* layer, const float*, int64_t rows, const void* prepared, int64_t begin,
             int64_t end, float* y, void* scratch) {
  (TakesBits(layer) ? ComputeOf<Binary> : ComputeOf<Ternary>)(layer, rows, prepared, begin, end, y,
                                                              scratch);
}

// The rounding of each span and its addition.
int64_t Depth(const Layer* layer) { return NumSpans(layer) + 1; }

}  // namespace
}  // namespace avx512vbmi

extern const Kernel packed_gemm_float_4x64_avx512vbmi = {
    "packed_gemm_float_4x64_avx512vbmi",
    IndexFormat::packed,
    Activation::float32,
    Isa::avx512vbmi,
    avx512vbmi::Accepts,
    /*max_rows=*/avx512vbmi::kMaxRows,
    /*column_step=*/kTile,
    avx512vbmi::Depth,
    /*fixed_point=*/true,
    avx512vbmi::PreparedBytes,
    avx512vbmi::Prepare,
    avx512vbmi::ScratchBytes,
    avx512vbmi::Compute,
};

}  // namespace onnx_ternary
