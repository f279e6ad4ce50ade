// processor.h - which of the instruction sets that the kernels are compiled for this processor and system can run.
//
// AVX-512's own bfloat16 products are not among them: where it was measured, on a processor with AMX, _mm512_dpbf16_ps
// gave half the rate of float32 multiply-adds.
#pragma once

#include <string.h>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nm {

// Tile registers are not part of a process's state until it asks for them, once, on behalf of all its threads.
static inline bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__) && defined(SYS_arch_prctl)
  const long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

// The names are NM_ISA's.
static inline bool processor_has(const char* instruction_set) {
  if (strcmp(instruction_set, "portable") == 0) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (strcmp(instruction_set, "avx2") == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (strcmp(instruction_set, "avx512") == 0) return avx512;
  if (strcmp(instruction_set, "amx") == 0)
    return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
           __builtin_cpu_supports("amx-bf16") && request_tiles();
#endif
  return false;
}

}  // namespace nm
