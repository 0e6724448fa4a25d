// Small numbers that all kernels ask for, and the plainest entries of their records. C headers and
// internal linkage only: every file that includes this compiles it for its own instruction set.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../../layer.h"

// What keeps accumulators of its caller must be part of the caller: clang leaves larger functions
// out of line, and the accumulators in memory (161 instead of 368 GMAC/s for eight int8 rows, Zen
// 5). What stands beside a loop that needs all registers must not.
#if defined(__GNUC__)
#define OTN_ALWAYS_INLINE inline __attribute__((always_inline))
#define OTN_NEVER_INLINE __attribute__((noinline))
#else
#define OTN_ALWAYS_INLINE __forceinline
#define OTN_NEVER_INLINE __declspec(noinline)
#endif

namespace onnx_ternary {
namespace {

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }
inline size_t RoundUp64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

inline bool PerGroup(const Layer* layer) { return layer->scale_kind == ScaleKind::per_group; }

// Of any scale kind.
inline float GroupScale(const Layer* layer, int64_t group, int64_t n) {
  switch (layer->scale_kind) {
    case ScaleKind::per_tensor:
      return layer->scale[0];
    case ScaleKind::per_column:
      return layer->scale[n];
    case ScaleKind::per_group:
      break;
  }
  return layer->scale[group * layer->N + n];
}

// Not for scales per group.
inline float ColumnScale(const Layer* layer, int64_t n) {
  return layer->scale[layer->scale_kind == ScaleKind::per_column ? n : 0];
}

inline float ColumnBias(const Layer* layer, int64_t n) {
  return layer->bias ? layer->bias[n] : 0.0f;
}

// T of docs/op_spec.md of kernels that add integers, or float64 where scales are per group.
inline int64_t ExactDepth(const Layer*) { return 0; }

inline size_t NothingPrepared(const Layer*, int64_t) { return 0; }
inline void PrepareNothing(const Layer*, const Call*, const float*, int64_t, void*) {}
inline size_t NoScratch(const Layer*, int64_t, int64_t) { return 0; }

}  // namespace
}  // namespace onnx_ternary
