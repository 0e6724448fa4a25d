#include "session_host.h"

#include <algorithm>
#include <new>
#include <thread>

#include "ort_status.h"

namespace onnx_ternary {
namespace {

constexpr int64_t kTrials = 32;
constexpr int64_t kRetry = 64;

int64_t Processors() {
  static const int64_t processors = std::max<int64_t>(1, std::thread::hardware_concurrency());
  return processors;
}

}  // namespace

int64_t ThreadCount::Plan() {
  const int64_t call = calls_.fetch_add(1, std::memory_order_relaxed);
  const int64_t seen = seen_.load(std::memory_order_relaxed);
  return call < kTrials || call % kRetry == 0 ? std::max(Processors(), seen) : seen;
}

void ThreadCount::Saw(int64_t running) {
  int64_t seen = seen_.load(std::memory_order_relaxed);
  while (running > seen && !seen_.compare_exchange_weak(seen, running)) {
  }
}

SessionHost::SessionHost(const OrtApi& api, const OrtKernelContext* context,
                         const OrtMemoryInfo* memory_info, ThreadCount* thread_count)
    : api_(api), context_(context), thread_count_(thread_count) {
  Check(api_, api_.KernelContext_GetAllocator(context, memory_info, &allocator_));
}

SessionHost::~SessionHost() { api_.ReleaseAllocator(allocator_); }

void SessionHost::ParallelFor(size_t count, void (*body)(void*, size_t), void* context) {
  struct Watched {
    void (*body)(void*, size_t);
    void* context;
    ThreadCount* thread_count;
    std::atomic<int64_t> running{0};
  };
  Watched watched{body, context, thread_count_};
  // One batch per item: threads take the next item when they are free.
  Check(api_, api_.KernelContext_ParallelFor(
                  context_,
                  [](void* raw, size_t item) {
                    Watched& watched = *static_cast<Watched*>(raw);
                    watched.thread_count->Saw(watched.running.fetch_add(1) + 1);
                    watched.body(watched.context, item);
                    watched.running.fetch_sub(1);
                  },
                  count, count, &watched));
}

int64_t SessionHost::NumThreads() {
  if (num_threads_ == 0) num_threads_ = thread_count_->Plan();
  return num_threads_;
}

void* SessionHost::Allocate(size_t bytes) {
  void* memory = allocator_->Alloc(allocator_, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void SessionHost::Free(void* memory) noexcept { allocator_->Free(allocator_, memory); }

}  // namespace onnx_ternary
