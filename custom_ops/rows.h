// Rows of X and Y: their element types, and what kind of numbers they hold.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onnx_ternary {

enum class ElementType : uint8_t { float32, bfloat16 };

inline size_t ElementBytes(ElementType type) { return type == ElementType::float32 ? 4 : 2; }

// x: K elements of `type`; out (K,).
void LoadRow(ElementType type, const void* x, int64_t K, float* out);

// values (count,); out: as many elements of `type`.
void StoreRow(ElementType type, const float* values, int64_t count, void* out);

// spread: magnitudes that lie too far apart for fixed-point kernels. ieee: NaN, inf, or magnitudes
// whose sums could overflow.
enum class RowKind : uint8_t { ordinary, spread, ieee };

// x: (K,).
RowKind ClassifyRow(const float* x, int64_t K);

}  // namespace onnx_ternary
