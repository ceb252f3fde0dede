#include "kernels/amx.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe {
namespace {

#if defined(__x86_64__) && defined(__linux__)
bool ProcessorHasTiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (edx & bit_AMX_TILE) != 0 && (edx & bit_AMX_INT8) != 0;
}

/// The tiles' 8 KiB are saved with a thread only where a process has asked for it (Linux, "Using XSTATE features in
/// user space applications").
bool MayUseTiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
void Configure(const AmxConfiguration& configuration) { asm volatile("ldtilecfg %0" : : "m"(configuration)); }
void Release() { asm volatile("tilerelease"); }
#else
bool ProcessorHasTiles() { return false; }
bool MayUseTiles() { return false; }
void Configure(const AmxConfiguration&) {}
void Release() {}
#endif

}  // namespace

bool AmxIsUsable() {
  static const bool usable = ProcessorHasTiles() && MayUseTiles();
  return usable;
}

AmxRegisters::AmxRegisters(const AmxConfiguration& configuration) { Configure(configuration); }
AmxRegisters::~AmxRegisters() { Release(); }

}  // namespace moe
