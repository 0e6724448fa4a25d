// What the NEON kernels for `packed` share: codes of every block size and storage in the form of
// span.h, the activation rules, scales, and how Y is made.
//
// C headers and intrinsics only, internal linkage only.
#pragma once

#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

#include "../../layer.h"
#include "magnitude.h"
#include "quantize_absmax.h"
#include "quantize_row.h"
#include "span.h"

// Keeps a value of a long loop in its register, and what is done with it in its order.
#if defined(__GNUC__)
#define OTN_IN_REGISTER(v) __asm__ volatile("" : "+w"(v))
#define OTN_IN_GENERAL_REGISTER(v) __asm__ volatile("" : "+r"(v))
#else
#define OTN_IN_REGISTER(v) (void)(v)
#define OTN_IN_GENERAL_REGISTER(v) (void)(v)
#endif
#if defined(__clang__)
#define OTN_UNROLL _Pragma("unroll")
#define OTN_UNROLL4 _Pragma("unroll 4")
#elif defined(__GNUC__)
#define OTN_UNROLL _Pragma("GCC unroll 32")
#define OTN_UNROLL4 _Pragma("GCC unroll 4")
#else
#define OTN_UNROLL
#define OTN_UNROLL4
#endif

namespace onnx_ternary {
namespace neon {
namespace {

// Four vectors of words, rows and columns exchanged.
OTN_ALWAYS_INLINE void Transpose4x4(uint32x4_t* r) {
  const uint64x2_t low01 = vreinterpretq_u64_u32(vtrn1q_u32(r[0], r[1]));
  const uint64x2_t high01 = vreinterpretq_u64_u32(vtrn2q_u32(r[0], r[1]));
  const uint64x2_t low23 = vreinterpretq_u64_u32(vtrn1q_u32(r[2], r[3]));
  const uint64x2_t high23 = vreinterpretq_u64_u32(vtrn2q_u32(r[2], r[3]));
  r[0] = vreinterpretq_u32_u64(vzip1q_u64(low01, low23));
  r[1] = vreinterpretq_u32_u64(vzip1q_u64(high01, high23));
  r[2] = vreinterpretq_u32_u64(vzip2q_u64(low01, low23));
  r[3] = vreinterpretq_u32_u64(vzip2q_u64(high01, high23));
}

// ---------------------------------------------------------------------------------------------
// Codes

// 64 bytes, in which pieces of `piece_bytes` of the four columns take turns: those of each column
// side by side.
inline void GatherColumns(int64_t piece_bytes, const uint8_t* source, uint8x16_t* columns) {
  if (piece_bytes == 16) {
    for (int c = 0; c < kTile; ++c) columns[c] = vld1q_u8(source + c * 16);
  } else if (piece_bytes == 8) {
    // One load of bytes per register pair, then words: a load of 64-bit words wants aligned memory.
    uint64x2_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vreinterpretq_u64_u8(vld1q_u8(source + i * 16));
    columns[0] = vreinterpretq_u8_u64(vzip1q_u64(v[0], v[2]));
    columns[1] = vreinterpretq_u8_u64(vzip2q_u64(v[0], v[2]));
    columns[2] = vreinterpretq_u8_u64(vzip1q_u64(v[1], v[3]));
    columns[3] = vreinterpretq_u8_u64(vzip2q_u64(v[1], v[3]));
  } else if (piece_bytes == 4) {
    uint32x4_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vreinterpretq_u32_u8(vld1q_u8(source + i * 16));
    Transpose4x4(v);
    for (int c = 0; c < kTile; ++c) columns[c] = vreinterpretq_u8_u32(v[c]);
  } else {
    // Two bytes: the same pieces twice as far apart as those of four, then neighbors.
    uint16x8_t v[4];
    for (int i = 0; i < 4; ++i) v[i] = vreinterpretq_u16_u8(vld1q_u8(source + i * 16));
    // Each register: c0 c1 c2 c3 c0 c1 c2 c3 (units 2 i and 2 i + 1).
    for (int c = 0; c < kTile; ++c) {
      const uint16x8_t even0 = vuzp1q_u16(v[0], v[1]), odd0 = vuzp2q_u16(v[0], v[1]);
      const uint16x8_t even1 = vuzp1q_u16(v[2], v[3]), odd1 = vuzp2q_u16(v[2], v[3]);
      const uint16x8_t first = c % 2 ? odd0 : even0, second = c % 2 ? odd1 : even1;
      columns[c] =
          vreinterpretq_u8_u16(c / 2 ? vuzp2q_u16(first, second) : vuzp1q_u16(first, second));
    }
  }
}

// Pieces of `piece_bytes` of a and b in turns, 32 bytes.
inline void Interleave(int64_t piece_bytes, uint8x16_t a, uint8x16_t b, uint8x16_t* halves) {
  if (piece_bytes == 16) {
    halves[0] = a;
    halves[1] = b;
  } else if (piece_bytes == 8) {
    const uint64x2_t x = vreinterpretq_u64_u8(a), y = vreinterpretq_u64_u8(b);
    halves[0] = vreinterpretq_u8_u64(vzip1q_u64(x, y));
    halves[1] = vreinterpretq_u8_u64(vzip2q_u64(x, y));
  } else if (piece_bytes == 4) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    halves[0] = vreinterpretq_u8_u32(vzip1q_u32(x, y));
    halves[1] = vreinterpretq_u8_u32(vzip2q_u32(x, y));
  } else {
    const uint16x8_t x = vreinterpretq_u16_u8(a), y = vreinterpretq_u16_u8(b);
    halves[0] = vreinterpretq_u8_u16(vzip1q_u16(x, y));
    halves[1] = vreinterpretq_u8_u16(vzip2q_u16(x, y));
  }
}

// One span of the tile's codes in the form of 2-bit blocks of 128: columns (4, 2 halves).
inline void ExpandSpan(const Layer* layer, const uint8_t* tile_codes, int64_t span,
                       uint8x16_t (*columns)[2]) {
  uint8_t padded[kTileSpanBytes];
  const uint8_t* source = WholeSpan(layer, tile_codes, span, padded);
  if (AsIs(layer)) {
    for (int i = 0; i < 2 * kTile; ++i) columns[i / 2][i % 2] = vld1q_u8(source + i * 16);
    return;
  }
  if (layer->storage == Storage::two_bit) {
    for (int half = 0; half < 2; ++half) {
      uint8x16_t v[kTile];
      GatherColumns(layer->block_bytes, source + half * 64, v);
      for (int c = 0; c < kTile; ++c) columns[c][half] = v[c];
    }
    return;
  }
  // Even bits and odd ones, the two halves of a 2-bit block, at the places of 2-bit codes. Level +
  // 1 is twice the bit, or one more than the bit.
  const uint8x16_t mask = vdupq_n_u8(0x55);
  const bool from_zero = layer->alphabet == Alphabet::binary_01;
  uint8x16_t v[kTile];
  GatherColumns(layer->block_bytes, source, v);
  for (int c = 0; c < kTile; ++c) {
    const uint8x16_t even = vandq_u8(v[c], mask);
    const uint8x16_t odd = vandq_u8(vshrq_n_u8(v[c], 1), mask);
    Interleave(layer->block_bytes, vaddq_u8(even, from_zero ? mask : even),
               vaddq_u8(odd, from_zero ? mask : odd), columns[c]);
  }
}

// ---------------------------------------------------------------------------------------------
// Activations

// Sum of int8 values, exact: num_bytes is a multiple of 16, at most 2^24.
inline int32_t SumBytes(const int8_t* q, int64_t num_bytes) {
  int32x4_t sum = vdupq_n_s32(0);
  for (int64_t i = 0; i < num_bytes; i += 16) sum = vpadalq_s16(sum, vpaddlq_s8(vld1q_s8(q + i)));
  return vaddvq_s32(sum);
}

inline float AbsMax(const float* x, int64_t count) {
  const int32x4_t magnitude = vdupq_n_s32(0x7fffffff);
  int32x4_t max_bits = vdupq_n_s32(0);
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    max_bits = vmaxq_s32(max_bits, vandq_s32(vreinterpretq_s32_f32(vld1q_f32(x + k)), magnitude));
  }
  return FloatOfBits(LargestBits(x + k, count - k, vmaxvq_s32(max_bits)));
}

// ---------------------------------------------------------------------------------------------
// Scales and Y

// Four floats of which the first `count` lie in the array; the others are zero.
inline float32x4_t LoadFloats(const float* p, int64_t count) {
  if (count >= 4) return vld1q_f32(p);
  float buffer[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return vld1q_f32(buffer);
}

inline void StoreFloats(float* p, float32x4_t v, int64_t count) {
  if (count >= 4) {
    vst1q_f32(p, v);
    return;
  }
  float buffer[4];
  vst1q_f32(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// Scales of columns n..n+3; not for scales per group.
inline float32x4_t LoadScale(const Layer* layer, int64_t n) {
  if (layer->scale_kind == ScaleKind::per_tensor) return vdupq_n_f32(layer->scale[0]);
  return LoadFloats(layer->scale + n, layer->N - n);
}

inline float32x4_t LoadBias(const Layer* layer, int64_t n) {
  return layer->bias ? LoadFloats(layer->bias + n, layer->N - n) : vdupq_n_f32(0.0f);
}

// Four columns in float64.
struct Wide {
  float64x2_t low, high;
};

inline Wide WidenF32(float32x4_t v) {
  return {vcvt_f64_f32(vget_low_f32(v)), vcvt_high_f64_f32(v)};
}

inline Wide WidenS32(int32x4_t v) {
  return {vcvtq_f64_s64(vmovl_s32(vget_low_s32(v))), vcvtq_f64_s64(vmovl_high_s32(v))};
}

inline float32x4_t Narrow(Wide v) { return vcvt_high_f32_f64(vcvt_f32_f64(v.low), v.high); }

// total += scale * (sum - the unit's activations) for four columns.
inline void AddUnit(Wide* total, int32x4_t sum, int32_t unit_sum, Wide scale) {
  const Wide exact = WidenS32(vsubq_s32(sum, vdupq_n_s32(unit_sum)));
  total->low = vfmaq_f64(total->low, exact.low, scale.low);
  total->high = vfmaq_f64(total->high, exact.high, scale.high);
}

// Y = sum / s * scale + bias, each operation rounded to float32 (docs/op_spec.md).
inline float32x4_t FinishInt8(const Layer* layer, int32x4_t sum, float s, int64_t n) {
  const float32x4_t quotient = vdivq_f32(vcvtq_f32_s32(sum), vdupq_n_f32(s));
  return vaddq_f32(vmulq_f32(quotient, LoadScale(layer, n)), LoadBias(layer, n));
}

// In float64: weighted sums of groups may lie outside float32.
inline float32x4_t FinishGroupsInt8(const Layer* layer, Wide total, float s, int64_t n) {
  const float64x2_t divisor = vdupq_n_f64((double)s);
  const Wide y = {vdivq_f64(total.low, divisor), vdivq_f64(total.high, divisor)};
  return vaddq_f32(Narrow(y), LoadBias(layer, n));
}

// Y = total * unit + bias.
inline float32x4_t FinishFloat(const Layer* layer, Wide total, double unit, int64_t n) {
  const float64x2_t factor = vdupq_n_f64(unit);
  const Wide bias = WidenF32(LoadBias(layer, n));
  const Wide y = {vaddq_f64(vmulq_f64(total.low, factor), bias.low),
                  vaddq_f64(vmulq_f64(total.high, factor), bias.high)};
  return Narrow(y);
}

}  // namespace
}  // namespace neon
}  // namespace onnx_ternary
