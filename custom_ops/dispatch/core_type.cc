// Cores with i8mm on which smmla is slower than sdot. Sources, read 2026-11-28; the order of the
// table is that of the list:
//
//   Apple M2: peak of a performance core, smmla 347 and sdot 426 GOPS.
//     github.com/pigirons/cpufp, benchmark_result/arm64/Apple_Silicon_M2_Max.md
//   Apple M3: eight shapes on an M3 Max, smmla 10 to 25 % slower everywhere, 220 against 279 GMAC/s
//     (github.com/JustVugg/colibri/issues/136); level within 2 % on an M3 Pro from L1
//     (github.com/robertknight/rten/pull/827), "slightly slower" in products (rten/issues/685).
//   Qualcomm Oryon (Snapdragon X and 8 Elite): peak, smmla 442 and sdot 511 GOPS.
//     cpufp, benchmark_result/arm64/Qualcomm_Snapdragon_X_Elite_X1E80100.md
//
// Not in the table, because smmla was measured to be level or faster: Apple M4 (477 and 472 GOPS,
// cpufp), Neoverse V2 (1.6 times as fast, rten/pull/827), Cortex-A720 and A520 (twice, cpufp).
//
// Parts of MIDR_EL1: Linux, arch/arm64/include/asm/cputype.h; for Apple m1n1, src/midr.h. Families:
// mach/machine.h. A virtual machine may show another part, and then i8mm is used.
#include "dispatch/core_type.h"

#include <atomic>

#if defined(__aarch64__) || defined(_M_ARM64)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif
#endif

namespace onnx_ternary {
namespace {

enum class IdKind : uint8_t { part, apple_family };

struct SlowCore {
  const char* name;
  IdKind kind;
  uint32_t id;
};

// Bits of MIDR_EL1 that tell a design: implementer (31..24) and part (15..4), without revisions.
constexpr uint32_t kDesign = 0xff00fff0u;
constexpr uint32_t Part(uint32_t implementer, uint32_t part) {
  return implementer << 24 | part << 4;
}
constexpr uint32_t kQualcomm = 0x51;
constexpr uint32_t kApple = 0x61;

constexpr SlowCore kSlowI8mm[] = {
    {"Apple M2", IdKind::apple_family, 0xda33d83d},
    {"Apple M2", IdKind::part, Part(kApple, 0x032)},
    {"Apple M2", IdKind::part, Part(kApple, 0x033)},
    {"Apple M2 Pro", IdKind::part, Part(kApple, 0x034)},
    {"Apple M2 Pro", IdKind::part, Part(kApple, 0x035)},
    {"Apple M2 Max", IdKind::part, Part(kApple, 0x038)},
    {"Apple M2 Max", IdKind::part, Part(kApple, 0x039)},
    {"Apple M3", IdKind::apple_family, 0xfa33415e},
    {"Apple M3 Pro", IdKind::apple_family, 0x5f4dea93},
    {"Apple M3 Max", IdKind::apple_family, 0x72015832},
    {"Apple M3", IdKind::part, Part(kApple, 0x042)},
    {"Apple M3", IdKind::part, Part(kApple, 0x043)},
    {"Apple M3 Pro", IdKind::part, Part(kApple, 0x044)},
    {"Apple M3 Pro", IdKind::part, Part(kApple, 0x045)},
    {"Apple M3 Max", IdKind::part, Part(kApple, 0x048)},
    {"Apple M3 Max", IdKind::part, Part(kApple, 0x049)},
    {"Qualcomm Oryon", IdKind::part, Part(kQualcomm, 0x001)},
};

#if (defined(__aarch64__) || defined(_M_ARM64)) && defined(__linux__)

// The core this runs on answers; all cores of the processors in the table are in it. Since Linux
// 4.11 the kernel answers the instruction, and says so with HWCAP_CPUID.
CoreIds DetectCore() {
  CoreIds ids;
  if ((getauxval(AT_HWCAP) >> 11 & 1) == 0) return ids;
  uint64_t midr = 0;
  __asm__("mrs %0, MIDR_EL1" : "=r"(midr));
  ids.midr = static_cast<uint32_t>(midr);
  return ids;
}

#elif (defined(__aarch64__) || defined(_M_ARM64)) && defined(__APPLE__)

CoreIds DetectCore() {
  CoreIds ids;
  uint32_t family = 0;
  size_t size = sizeof family;
  if (sysctlbyname("hw.cpufamily", &family, &size, nullptr, 0) == 0) ids.apple_family = family;
  return ids;
}

#elif (defined(__aarch64__) || defined(_M_ARM64)) && defined(_WIN32)

// Windows keeps MIDR_EL1 of every processor as "CP 4000" in the registry.
CoreIds DetectCore() {
  CoreIds ids;
  uint64_t midr = 0;
  DWORD size = sizeof midr;
  if (RegGetValueA(HKEY_LOCAL_MACHINE, "HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0",
                   "CP 4000", RRF_RT_REG_QWORD, nullptr, &midr, &size) == ERROR_SUCCESS) {
    ids.midr = static_cast<uint32_t>(midr);
  }
  return ids;
}

#else

CoreIds DetectCore() { return {}; }

#endif

// Both ids, MIDR_EL1 in the upper half; 0 where nothing is forced.
std::atomic<uint64_t> g_forced{0};

}  // namespace

const char* CoreWithSlowI8mm(const CoreIds& ids) {
  for (const SlowCore& core : kSlowI8mm) {
    const uint32_t id = core.kind == IdKind::part ? ids.midr & kDesign : ids.apple_family;
    if (id == core.id) return core.name;
  }
  return nullptr;
}

CoreIds ProcessorCore() {
  static const CoreIds detected = DetectCore();
  const uint64_t forced = g_forced.load(std::memory_order_acquire);
  if (forced == 0) return detected;
  CoreIds ids;
  ids.midr = static_cast<uint32_t>(forced >> 32);
  ids.apple_family = static_cast<uint32_t>(forced);
  return ids;
}

bool PassedOver(Isa isa) {
#if defined(OTN_EMULATE) && defined(OTN_SANITIZE)
  // What a sanitized library selects is what users run; emulated kernels run there when forced.
  if (isa == Isa::avxvnni || isa == Isa::amx_int8) return true;
#endif
  return isa == Isa::neon_i8mm && CoreWithSlowI8mm(ProcessorCore()) != nullptr;
}

void ForceCore(const CoreIds& ids) {
  g_forced.store(uint64_t{ids.midr} << 32 | ids.apple_family, std::memory_order_release);
}

}  // namespace onnx_ternary
