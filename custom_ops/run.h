// Y = X @ W + bias for any number of rows: chooses kernels, cuts rows in tiles and columns in
// parts, and keeps rows that a fast kernel must not see from it. Shared by the op and the C API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel.h"
#include "rows.h"

namespace onnx_ternary {

// What a call gets from its surroundings. Allocate throws std::bad_alloc and gives memory of any
// alignment.
class Host {
 public:
  virtual ~Host() = default;
  // Runs body(context, i) for 0 <= i < count, in any order and on any thread; body does not throw.
  virtual void ParallelFor(size_t count, void (*body)(void*, size_t), void* context) = 0;
  // How many bodies ParallelFor runs at the same time: what work is cut for, never what it gives.
  virtual int64_t NumThreads() { return 1; }
  virtual void* Allocate(size_t bytes) = 0;
  virtual void Free(void* memory) noexcept = 0;
};

// One thread, the process's heap.
class HeapHost : public Host {
 public:
  void ParallelFor(size_t count, void (*body)(void*, size_t), void* context) override {
    for (size_t i = 0; i < count; ++i) body(context, i);
  }
  void* Allocate(size_t bytes) override { return ::operator new(bytes); }
  void Free(void* memory) noexcept override { ::operator delete(memory); }
};

class RunError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct RunRequest {
  ElementType type;
  const void* x;  // (rows, K), aligned for its type
  void* y;        // (rows, N)
  int64_t rows;
  // Null: the selection table, with rows that are not ordinary kept apart.
  const Kernel* kernel = nullptr;
  // Column parts per tile; 0: as many as run.cc finds best.
  int64_t num_parts = 0;
};

// Throws RunError (no kernel), std::bad_alloc, or what host throws. The kernels that ran are added
// to `used`, each once, where it is not null.
void Run(const Layer& layer, const RunRequest& request, Host* host,
         std::vector<const Kernel*>* used);

}  // namespace onnx_ternary
