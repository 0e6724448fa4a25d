// A few numbers side by side, for the portable kernels: 32 or 64 bytes held in 16-byte vectors,
// which every baseline has (SSE2, NEON). gcc and clang get their generic vectors, because they keep
// plain arrays that live across a loop in memory; other compilers get arrays.
#pragma once

#include <stdint.h>
#include <string.h>

namespace onnx_ternary {
namespace portable {

template <typename Value, int kLanes>
struct Lanes {
  static constexpr int kPerVector = static_cast<int>(16 / sizeof(Value));
  static constexpr int kVectors = kLanes / kPerVector;
  static_assert(kLanes % kPerVector == 0, "whole vectors");

#if defined(__GNUC__)
  typedef Value Vector __attribute__((vector_size(16)));
  static Vector Plus(Vector a, Vector b) { return a + b; }
  static Vector Minus(Vector a, Vector b) { return a - b; }
  static Vector Times(Vector a, Vector b) { return a * b; }
#else
  struct Vector {
    Value value[kPerVector];
  };
  static Vector Plus(Vector a, const Vector& b) {
    for (int i = 0; i < kPerVector; ++i) a.value[i] = static_cast<Value>(a.value[i] + b.value[i]);
    return a;
  }
  static Vector Minus(Vector a, const Vector& b) {
    for (int i = 0; i < kPerVector; ++i) a.value[i] = static_cast<Value>(a.value[i] - b.value[i]);
    return a;
  }
  static Vector Times(Vector a, const Vector& b) {
    for (int i = 0; i < kPerVector; ++i) a.value[i] = static_cast<Value>(a.value[i] * b.value[i]);
    return a;
  }
#endif

  Vector vector[kVectors];

  static Lanes Zero() {
    Lanes result;
    memset(&result, 0, sizeof result);
    return result;
  }
  static Lanes Load(const Value* p) {
    Lanes result;
    memcpy(&result, p, sizeof result);
    return result;
  }
  void Store(Value* p) const { memcpy(p, this, sizeof *this); }
  void Add(const Lanes& other) {
    for (int i = 0; i < kVectors; ++i) vector[i] = Plus(vector[i], other.vector[i]);
  }
  void Subtract(const Lanes& other) {
    for (int i = 0; i < kVectors; ++i) vector[i] = Minus(vector[i], other.vector[i]);
  }
  void AddProduct(const Lanes& a, const Lanes& b) {
    for (int i = 0; i < kVectors; ++i) {
      vector[i] = Plus(vector[i], Times(a.vector[i], b.vector[i]));
    }
  }
};

// Y from an exact int8 sum, each operation rounded to float32 (docs/op_spec.md).
inline float FinishInt8(int32_t sum, float s, float scale, float bias) {
  return static_cast<float>(sum) / s * scale + bias;
}
// With scales per group: total is the float64 sum of group sums times scales, which may lie outside
// float32.
inline float FinishInt8Groups(double total, float s, float bias) {
  return static_cast<float>(total / static_cast<double>(s)) + bias;
}

}  // namespace portable
}  // namespace onnx_ternary
