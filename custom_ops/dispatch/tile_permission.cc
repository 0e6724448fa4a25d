// arch_prctl(2): ARCH_REQ_XCOMP_PERM, for the state component XTILEDATA. EPERM and ENOSYS come from
// filters, EINVAL from Linux before 5.16, EBUSY and ENOSPC where an alternate signal stack is too
// small for tiles.
#include "dispatch/tile_permission.h"

#include <atomic>
#include <cerrno>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace onnx_ternary {
namespace {

constexpr int kUnknown = -1;

// The system's answer, 0 or an error, and what tests say in its place.
std::atomic<int> g_answer{kUnknown};
std::atomic<int> g_forced{kUnknown};

int RequestTiles() {
#if defined(OTN_EMULATE)
  return 0;  // the tiles are memory
#elif defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023;
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
#else
  return ENOSYS;
#endif
}

}  // namespace

bool IsaPermitted(Isa isa) {
  if (isa != Isa::amx_int8) return true;
  const int forced = g_forced.load(std::memory_order_acquire);
  if (forced != kUnknown) return forced == 0;
  int answer = g_answer.load(std::memory_order_acquire);
  if (answer == kUnknown) {
    answer = RequestTiles();
    g_answer.store(answer, std::memory_order_release);
  }
  return answer == 0;
}

void ForceTilePermission(int error) { g_forced.store(error, std::memory_order_release); }

}  // namespace onnx_ternary
