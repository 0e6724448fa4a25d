// Runtime detection: CPUID for what the processor has, XGETBV for what the operating system saves
// on a context switch (a processor with AVX2 under a system that does not save ymm must not use
// it, and likewise AVX-512 and zmm). Bits: Intel SDM volume 2A, CPUID leaves 1 and 7. On ARM the
// operating system answers.
#include "dispatch/cpu_features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define OTN_X86_64 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define OTN_AARCH64 1
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

// Rows of instruction_sets.inc for this architecture.
#if defined(OTN_X86_64)
#define OTN_ON_x86_64(statement) statement
#define OTN_ON_aarch64(statement)
#elif defined(OTN_AARCH64)
#define OTN_ON_x86_64(statement)
#define OTN_ON_aarch64(statement) statement
#endif

#if defined(OTN_X86_64)

struct CpuidRegisters {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidRegisters Cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidRegisters r;
#if defined(_MSC_VER) && !defined(__clang__)
  int out[4];
  __cpuidex(out, static_cast<int>(leaf), static_cast<int>(subleaf));
  r.eax = static_cast<uint32_t>(out[0]);
  r.ebx = static_cast<uint32_t>(out[1]);
  r.ecx = static_cast<uint32_t>(out[2]);
  r.edx = static_cast<uint32_t>(out[3]);
#else
  __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// Only where CPUID reports OSXSAVE.
uint64_t EnabledStates() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  // _xgetbv needs a target flag in gcc; the instruction itself does not.
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

CpuFeatureSet Detect() {
  CpuFeatureSet features;
  const uint32_t highest_leaf = Cpuid(0, 0).eax;
  if (highest_leaf < 7) return features;
  const CpuidRegisters leaf1 = Cpuid(1, 0);
  const CpuidRegisters leaf7 = Cpuid(7, 0);
  const CpuidRegisters leaf7_1 = leaf7.eax >= 1 ? Cpuid(7, 1) : CpuidRegisters();
  const auto bit = [](uint32_t word, int position) { return ((word >> position) & 1u) != 0; };
  const uint64_t xmm_and_ymm = 6;
  const bool osxsave = bit(leaf1.ecx, 27);
  const bool ymm = osxsave && bit(leaf1.ecx, 28) && (EnabledStates() & xmm_and_ymm) == xmm_and_ymm;
  // Opmask registers, upper halves of zmm0-15, zmm16-31.
  const uint64_t zmm_states = 0xe0;
  const bool zmm = ymm && (EnabledStates() & zmm_states) == zmm_states;
  // The configuration of tiles and their data.
  const uint64_t tile_states = 0x60000;
  const bool tiles = zmm && (EnabledStates() & tile_states) == tile_states;
#define OTN_CPU_FEATURE(name, architecture, test) OTN_ON_##architecture(features.name = test);
#include "dispatch/instruction_sets.inc"
  return features;
}

#elif defined(OTN_AARCH64)

#if defined(__linux__)

// HWCAP_ASIMDDP and HWCAP2_I8MM of the kernel's interface, spelled out: older headers lack the
// second.
bool HasDotprod() { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
bool HasI8mm() { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }

#elif defined(__APPLE__)

bool HasFeature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool HasDotprod() { return HasFeature("hw.optional.arm.FEAT_DotProd"); }
bool HasI8mm() { return HasFeature("hw.optional.arm.FEAT_I8MM"); }

#elif defined(_WIN32)

// PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE and PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE, spelled out:
// older headers lack them, and older systems say no.
bool HasDotprod() { return IsProcessorFeaturePresent(43) != 0; }
bool HasI8mm() { return IsProcessorFeaturePresent(66) != 0; }

#else

bool HasDotprod() { return false; }
bool HasI8mm() { return false; }

#endif

CpuFeatureSet Detect() {
  CpuFeatureSet features;
#define OTN_CPU_FEATURE(name, architecture, test) OTN_ON_##architecture(features.name = test);
#include "dispatch/instruction_sets.inc"
  return features;
}

#else

CpuFeatureSet Detect() { return {}; }

#endif

}  // namespace

const CpuFeatureSet& CpuFeatureFlags() {
  static const CpuFeatureSet features = Detect();
  return features;
}

}  // namespace onnx_ternary
