// emulated.cpp - the CUDA entry points of launchers.h as a shared library for processors: same kernels, same host code,
// run by the emulator. tests/native/emulated.py compiles it and calls it through ctypes. Not part of the package.
#include "../gpu/backward_host.h"
#include "../gpu/decode.h"
#include "../gpu/memory_host.h"
#include "device_call.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT const char *nm_cuda_reason(const nm_problem *p, int compute_capability) {
  return cuda_reason(*p, compute_capability);
}
EXPORT int64_t nm_cuda_forward_workspace(const nm_problem *p) { return forward_workspace(*p); }
EXPORT int64_t nm_cuda_backward_workspace(const nm_problem *p) { return backward::workspace_bytes(*p); }

EXPORT int nm_cuda_forward(const nm_problem *p, const nm_forward *out, void *workspace, void *) {
  Launcher launch;
  forward(launch, *p, *out, workspace, group_chunks(*p));
  return launch.error;
}
EXPORT int nm_cuda_backward(const nm_problem *p, const nm_backward *out, void *workspace, void *) {
  Launcher launch;
  backward::run(launch, *p, *out, workspace);
  return launch.error;
}
EXPORT int nm_cuda_decode(const nm_problem *p, const nm_decode *out, void *workspace, void *) {
  Launcher launch;
  decode(launch, *p, *out, workspace);
  return launch.error;
}

extern "C" {
// Memory for a tensor, full of NaN, that ends where an unmapped page begins.
EXPORT void *emulated_take(int64_t bytes, void **owner) {
  Guarded *memory = new Guarded(bytes);
  *owner = memory;
  return memory->data;
}
EXPORT void emulated_give_back(void *owner) { delete (Guarded *)owner; }

// In which order threads run, and what is broken on purpose: see simt_emulator.h. A race ends the process with 3.
EXPORT void emulated_schedule(unsigned seed) { sim::schedule = seed; }
EXPORT void emulated_drop_barrier(int number) { sim::dropped_barrier = number; }
EXPORT void emulated_wrong_lane() { sim::wrong_lane = true; }
EXPORT int64_t emulated_faults() { return sim::faults; }
}
