// How the SIMD kernels for `packed` read codes, activations and scales: span by span.
//
// Layout: docs/index_format.md sections 2.1 and 2.3. A span is 128 inputs of four columns: one
// block, or several smaller ones (units). 2-bit codes in blocks of 128 are read as they lie: 32
// bytes per column and span; bits 2j..2j+1 of byte i are the code (level + 1) of input 32 j + i;
// tiles of four columns are one stream: (column tile, span, 4 columns, 32 bytes). Smaller blocks
// and bits are brought to that form: byte i of block b (B/4 bytes) of a column goes to byte (B/4) b
// + i of its 32, so field j of that byte is input B b + (B/4) j + i of the span. Codes may lie at
// any address (memory-mapped files).
//
// C headers and internal linkage only.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "scalar.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kSpan = 128;      // inputs
constexpr int64_t kSpanBytes = 32;  // codes of one column
constexpr int64_t kTile = 4;        // columns
constexpr int64_t kTileSpanBytes = kTile * kSpanBytes;

inline int64_t NumSpans(const Layer* layer) {
  return (layer->num_k_blocks * layer->block_size + kSpan - 1) / kSpan;
}

inline int64_t SpanUnits(const Layer* layer) { return kSpan / layer->block_size; }

// Units of all spans, also those of the last one past the last block.
inline int64_t PaddedUnits(const Layer* layer) { return NumSpans(layer) * SpanUnits(layer); }

inline bool AsIs(const Layer* layer) {
  return layer->storage == Storage::two_bit && layer->block_size == kSpan;
}

// Bytes of codes of a column tile.
inline int64_t TileBytes(const Layer* layer) {
  return layer->num_k_blocks * kTile * layer->block_bytes;
}

// Codes of the tile at column n.
inline const uint8_t* TileStart(const Layer* layer, int64_t n) {
  return layer->codes + n / kTile * TileBytes(layer);
}

// Codes of a span of a tile where they lie, or a copy in `padded` (kTileSpanBytes,) with zeros past
// the last block of the tile. Such zeros are some code, which meets activations of zero.
inline const uint8_t* WholeSpan(const Layer* layer, const uint8_t* tile_codes, int64_t span,
                                uint8_t* padded) {
  const int64_t unit_bytes = kTile * layer->block_bytes;
  const int64_t span_bytes = SpanUnits(layer) * unit_bytes;
  const int64_t left = (layer->num_k_blocks - span * SpanUnits(layer)) * unit_bytes;
  const uint8_t* source = tile_codes + span * span_bytes;
  if (left < span_bytes) {
    memset(padded, 0, (size_t)kTileSpanBytes);
    memcpy(padded, source, (size_t)left);
    source = padded;
  }
  return source;
}

// Activations of a span in the order of the fields; q and out do not overlap.
inline void OrderSpan(const Layer* layer, const int8_t* q, int8_t* out) {
  const int64_t quarter = layer->block_size / 4;
  for (int64_t field = 0; field < 4; ++field) {
    for (int64_t u = 0; u < SpanUnits(layer); ++u, out += quarter) {
      memcpy(out, q + u * layer->block_size + field * quarter, (size_t)quarter);
    }
  }
}

// Scales per group are copied four tiles (a cache line) at a time to scratch, (tiles, units, 4
// columns), zero past the last unit: read in place, the groups of a column lie N floats apart and
// evict each other from L1 where N is a multiple of a power of two (GEMV 1.3 to 2 times slower at
// N = 2560, AVX2).
constexpr int64_t kStripTiles = 4;

inline size_t StripBytes(const Layer* layer) {
  return PerGroup(layer) ? (size_t)(PaddedUnits(layer) * kStripTiles * kTile) * sizeof(float) : 0;
}

// Four floats, of which the first `count` lie at p; the others become zero.
inline void CopyFour(const float* p, int64_t count, float* out) {
  if (count >= kTile) {
    memcpy(out, p, kTile * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < kTile; ++i) out[i] = i < count ? p[i] : 0.0f;
}

// The strip of the tiles from column n on.
[[maybe_unused]] OTN_NEVER_INLINE void FillStrip(const Layer* layer, int64_t n, float* strip) {
  const int64_t num_units = PaddedUnits(layer);
  const int64_t group_units = layer->group_size / layer->block_size;
  const float* row = layer->scale + n;
  for (int64_t u = 0, in_group = 0; u < num_units; ++u) {
    for (int64_t t = 0; t < kStripTiles && n + t * kTile < layer->N; ++t) {
      const int64_t columns_left = layer->N - n - t * kTile;
      CopyFour(row + t * kTile, u < layer->num_k_blocks ? columns_left : 0,
               strip + (t * num_units + u) * kTile);
    }
    if (++in_group == group_units) {
      in_group = 0;
      row += layer->N;
    }
  }
}

// Scales of the tile at column n, (units, 4); fills the strip at the first tile of each.
inline const float* StripScales(const Layer* layer, int64_t begin, int64_t n, float* strip) {
  const int64_t tile = (n - begin) / kTile % kStripTiles;
  if (tile == 0) FillStrip(layer, n, strip);
  return strip + tile * PaddedUnits(layer) * kTile;
}

}  // namespace
}  // namespace onnx_ternary
