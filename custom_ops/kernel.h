// What a kernel is: plain data and function pointers. Files compiled for one instruction set
// include C headers and intrinsics only, and all they define but the records has internal linkage:
// a weak C++ symbol compiled for AVX2 could be picked by the linker for code that runs everywhere,
// and two processors may share one template.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "layer.h"

namespace onnx_ternary {

enum class Isa : uint8_t {
#define OTN_ISA(name, architecture, needs, detected, flags, msvc_flags) name,
#include "dispatch/instruction_sets.inc"
};

// A kernel computes Y = X @ W (+ bias) for a tile of rows, columns split between calls.
//
//   call      what one Run() adds to the layer
//   x         (rows, K) float32, row-major, contiguous
//   y         (rows, N) float32, row-major, contiguous; one compute() writes columns [begin, end)
//   prepared  what depends on call and x alone (quantized rows, transposes); written by one
//             prepare() before any compute() of the tile, then read by all
//   scratch   private to one compute()
//
// prepared_bytes and scratch_bytes are asked once, for the largest tile and the widest column
// range; calls with fewer rows or columns get the same memory, so neither may need more.
//
// prepared and scratch are 64-byte aligned. The result of a column depends neither on begin and end
// nor on which thread runs the call. Nothing throws and nothing allocates.
struct Kernel {
  const char* name;
  IndexFormat index_format;
  Activation activation;
  Isa isa;

  // Whether the kernel can serve a layer of its index format and activation (block size, storage,
  // alphabet, algorithm). Null: every one.
  bool (*accepts)(const Layer* layer);

  int64_t max_rows;     // of a tile
  int64_t column_step;  // begin and end are multiples of it (end may be N)

  // Length of the longest chain of float32 additions for this layer, T of docs/op_spec.md.
  int64_t (*addition_depth)(const Layer* layer);
  // Rows are rounded to fixed point relative to their largest magnitude, so rows with an extreme
  // crest factor go to another kernel.
  bool fixed_point;

  size_t (*prepared_bytes)(const Layer* layer, int64_t rows);
  void (*prepare)(const Layer* layer, const Call* call, const float* x, int64_t rows,
                  void* prepared);
  size_t (*scratch_bytes)(const Layer* layer, int64_t rows, int64_t num_columns);
  void (*compute)(const Layer* layer, const float* x, int64_t rows, const void* prepared,
                  int64_t begin, int64_t end, float* y, void* scratch);

  // Reads Layer::block_scales: serves no layer with scales per group that lacks them.
  bool reads_block_scales = false;
};

}  // namespace onnx_ternary
