// The instructions that AMX adds, on eight tiles of 16 rows of 64 bytes, and how codes become a
// tile with AVX-512 and GFNI. Test builds (OTN_EMULATE), whose processors have neither, get plain
// C++.
//
// Tiles are named by number, 0 to 7, constants. Configuring them and releasing them goes around a
// call: an operating system saves tiles that are in use at every context switch.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <stdint.h>
#include <string.h>

#include "intrinsics_avx512.h"
#include "scalar.h"

namespace onnx_ternary {
namespace amx_int8 {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kRowBytes = 64;
constexpr int64_t kTileBytes = kTileRows * kRowBytes;

#if defined(OTN_EMULATE)

struct Tile {
  uint8_t bytes[kTileRows][kRowBytes];
};

Tile* Tiles() {
  static thread_local Tile tiles[8];
  return tiles;
}

// A real processor refuses tiles that are not configured; so do these.
bool* TilesConfigured() {
  static thread_local bool configured = false;
  return &configured;
}

inline void ConfigureTiles() { *TilesConfigured() = true; }
inline void ReleaseTiles() { *TilesConfigured() = false; }

inline Tile* TileOf(int number) {
  if (!*TilesConfigured()) __builtin_trap();
  return Tiles() + number;
}

inline void ZeroTile(int number) { memset(TileOf(number), 0, sizeof(Tile)); }

inline void LoadTile(int number, const void* from, int64_t stride) {
  Tile* tile = TileOf(number);
  for (int64_t r = 0; r < kTileRows; ++r) {
    memcpy(tile->bytes[r], (const char*)from + r * stride, (size_t)kRowBytes);
  }
}

inline void StoreTile(int number, void* to, int64_t stride) {
  const Tile* tile = TileOf(number);
  for (int64_t r = 0; r < kTileRows; ++r) {
    memcpy((char*)to + r * stride, tile->bytes[r], (size_t)kRowBytes);
  }
}

// sums (16, 16) int32 += signed (16, 64) times codes, whose row k holds inputs 4 k to 4 k + 3 of
// sixteen columns; int32 wraps.
inline void DotTiles(int sums_number, int signed_number, int codes_number) {
  Tile* sums = TileOf(sums_number);
  const Tile* a = TileOf(signed_number);
  const Tile* b = TileOf(codes_number);
  for (int64_t m = 0; m < kTileRows; ++m) {
    uint32_t row[16];
    memcpy(row, sums->bytes[m], sizeof row);
    for (int64_t k = 0; k < kTileRows; ++k) {
      for (int64_t n = 0; n < 16; ++n) {
        for (int64_t i = 0; i < 4; ++i) {
          row[n] += (uint32_t)((int32_t)(int8_t)a->bytes[m][4 * k + i] * b->bytes[k][4 * n + i]);
        }
      }
    }
    memcpy(sums->bytes[m], row, sizeof row);
  }
}

#define OTN_TILE_ZERO(tile) onnx_ternary::amx_int8::ZeroTile(tile)
#define OTN_TILE_LOAD(tile, from, stride) onnx_ternary::amx_int8::LoadTile(tile, from, stride)
#define OTN_TILE_STORE(tile, to, stride) onnx_ternary::amx_int8::StoreTile(tile, to, stride)
#define OTN_TILE_DOT(sums, a, b) onnx_ternary::amx_int8::DotTiles(sums, a, b)

// Codes of 128 inputs of sixteen columns: columns (4 tiles of four columns), each (4, 32) bytes as
// in span.h. out: two tiles of codes, inputs 0 to 63 and 64 to 127, 64-byte aligned.
inline void DecodeSpan(const uint8_t* const* columns, uint8_t* out) {
  for (int64_t n = 0; n < 16; ++n) {
    for (int64_t byte = 0; byte < 32; ++byte) {
      const uint8_t codes = columns[n / 4][n % 4 * 32 + byte];
      for (int64_t field = 0; field < 4; ++field) {
        const int64_t row = field % 2 * 8 + byte / 4;
        out[field / 2 * kTileBytes + row * kRowBytes + n * 4 + byte % 4] =
            (uint8_t)(codes >> 2 * field & 3);
      }
    }
  }
}

#else

struct TileConfiguration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfiguration) == 64, "palette 1 of Intel's manual");

#if defined(__GNUC__)
// Statements of our own: those of gcc 12's header do not say what memory they read.
inline void LoadConfiguration(const TileConfiguration& configuration) {
  __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
}
#define OTN_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define OTN_TILE_LOAD(tile, from, stride)                             \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                 \
                   :                                                  \
                   : "r"((const void*)(from)), "r"((int64_t)(stride)) \
                   : "memory")
#define OTN_TILE_STORE(tile, to, stride)                      \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)"     \
                   :                                          \
                   : "r"((void*)(to)), "r"((int64_t)(stride)) \
                   : "memory")
#define OTN_TILE_DOT(sums, a, b) \
  __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sums : :)
#else
inline void LoadConfiguration(const TileConfiguration& configuration) {
  _tile_loadconfig(&configuration);
}
#define OTN_TILE_ZERO(tile) _tile_zero(tile)
#define OTN_TILE_LOAD(tile, from, stride) _tile_loadd(tile, from, (size_t)(stride))
#define OTN_TILE_STORE(tile, to, stride) _tile_stored(tile, to, (size_t)(stride))
#define OTN_TILE_DOT(sums, a, b) _tile_dpbsud(sums, a, b)
#endif

inline void ConfigureTiles() {
  TileConfiguration configuration;
  memset(&configuration, 0, sizeof configuration);
  configuration.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    configuration.row_bytes[tile] = (uint16_t)kRowBytes;
    configuration.rows[tile] = (uint8_t)kTileRows;
  }
  LoadConfiguration(configuration);
}

inline void ReleaseTiles() { _tile_release(); }

// The bits 2 field and 2 field + 1 of every byte, at the lowest places.
template <int kField>
OTN_ALWAYS_INLINE __m512i Field(__m512i codes) {
  // Byte 7 - i of a matrix of bits says which bits make bit i.
  constexpr uint64_t kMatrix = 1ull << (2 * kField + 56) | 1ull << (2 * kField + 1 + 48);
  return kField == 0
             ? _mm512_and_si512(codes, _mm512_set1_epi8(3))
             : _mm512_gf2p8affine_epi64_epi8(codes, _mm512_set1_epi64((long long)kMatrix), 0);
}

// As above. The dwords of sixteen columns are transposed, 24 shuffles, so that a register holds
// four inputs of every column and field; a field of it is a row of a tile.
OTN_ALWAYS_INLINE void DecodeSpan(const uint8_t* const* columns, uint8_t* out) {
  // Dword w of column c of a tile of four is dword 8 c + w.
  const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i high =
      _mm512_setr_epi32(4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31);
  __m512i words[2][4];  // dwords 0 to 3, 4 to 7 of four columns in every 128 bits
  for (int t = 0; t < 4; ++t) {
    const __m512i a = _mm512_loadu_si512(columns[t]), b = _mm512_loadu_si512(columns[t] + 64);
    words[0][t] = _mm512_permutex2var_epi32(a, low, b);
    words[1][t] = _mm512_permutex2var_epi32(a, high, b);
  }
  for (int h = 0; h < 2; ++h) {
    const __m512i* w = words[h];
    const __m512i a = _mm512_shuffle_i64x2(w[0], w[1], 0x44);
    const __m512i b = _mm512_shuffle_i64x2(w[0], w[1], 0xee);
    const __m512i c = _mm512_shuffle_i64x2(w[2], w[3], 0x44);
    const __m512i d = _mm512_shuffle_i64x2(w[2], w[3], 0xee);
    const __m512i rows[4] = {_mm512_shuffle_i64x2(a, c, 0x88), _mm512_shuffle_i64x2(a, c, 0xdd),
                             _mm512_shuffle_i64x2(b, d, 0x88), _mm512_shuffle_i64x2(b, d, 0xdd)};
    for (int i = 0; i < 4; ++i) {
      uint8_t* row = out + (4 * h + i) * kRowBytes;
      _mm512_store_si512(row, Field<0>(rows[i]));
      _mm512_store_si512(row + 8 * kRowBytes, Field<1>(rows[i]));
      _mm512_store_si512(row + kTileBytes, Field<2>(rows[i]));
      _mm512_store_si512(row + kTileBytes + 8 * kRowBytes, Field<3>(rows[i]));
    }
  }
}

#endif

}  // namespace
}  // namespace amx_int8
}  // namespace onnx_ternary
