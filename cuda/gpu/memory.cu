// memory.cu - the C launchers of launchers.h for CUDA. All of the work is in the headers, which a CPU test shares.
#include "../launchers.h"

#include "decode.h"
#include "memory_host.h"

const char *nm_cuda_reason(const nm_problem *p, int compute_capability) { return cuda_reason(*p, compute_capability); }

int64_t nm_cuda_forward_workspace(const nm_problem *p) { return forward_workspace(*p); }

int nm_cuda_forward(const nm_problem *p, const nm_forward *out, void *workspace, void *stream) {
  Launcher launch{(cudaStream_t)stream};
  forward(launch, *p, *out, workspace, group_chunks(*p));
  return launch.error;
}

int nm_cuda_decode(const nm_problem *p, const nm_decode *out, void *workspace, void *stream) {
  Launcher launch{(cudaStream_t)stream};
  decode(launch, *p, *out, workspace);
  return launch.error;
}

int nm_cuda_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return -1;
  if (cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) return -1;
  return 10 * major + minor;
}

const char *nm_cuda_error(int error) { return cudaGetErrorString((cudaError_t)error); }
