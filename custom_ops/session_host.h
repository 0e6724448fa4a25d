// Threads and memory of the session that a Compute call runs in.
#pragma once

#include <onnxruntime_c_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "run.h"

namespace onnx_ternary {

// The number of threads of a session's pool, which the C API does not tell: how many bodies have
// been seen to run at the same time. Threads sleep, wake late or are busy elsewhere, so work is cut
// for all processors at first and now and then; cut too fine it costs little, too coarse it would
// leave threads idle for ever. Any thread may call.
class ThreadCount {
 public:
  // What the next call is to be cut for.
  int64_t Plan();
  void Saw(int64_t running);

 private:
  std::atomic<int64_t> calls_{0};
  std::atomic<int64_t> seen_{1};
};

// Scratch from the session's arena, threads from its pool, for the time of one Compute call.
class SessionHost : public Host {
 public:
  SessionHost(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* memory_info,
              ThreadCount* thread_count);
  ~SessionHost() override;
  SessionHost(const SessionHost&) = delete;
  SessionHost& operator=(const SessionHost&) = delete;

  void ParallelFor(size_t count, void (*body)(void*, size_t), void* context) override;
  int64_t NumThreads() override;
  void* Allocate(size_t bytes) override;
  void Free(void* memory) noexcept override;

 private:
  const OrtApi& api_;
  const OrtKernelContext* context_;
  OrtAllocator* allocator_ = nullptr;
  ThreadCount* thread_count_;
  int64_t num_threads_ = 0;
};

}  // namespace onnx_ternary
