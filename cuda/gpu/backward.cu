// backward.cu - the C launchers of launchers.h for backward in CUDA. All of the work is in the headers, which a CPU
// test shares.
#include "backward_host.h"

int64_t nm_cuda_backward_workspace(const nm_problem *p) { return backward::workspace_bytes(*p); }

int nm_cuda_backward(const nm_problem *p, const nm_backward *out, void *workspace, void *stream) {
  if (p->keep_every < 1) return cudaErrorInvalidValue;  // forward has kept no boundaries
  Launcher launch{(cudaStream_t)stream};
  backward::run(launch, *p, *out, workspace);
  return launch.error;
}
