// launch.h - how host code starts a kernel: on a stream, or in the emulator, by the very same call.
//
//   Launcher launch;  launch(kernel<...>, blocks, shared_bytes, arguments);  launch.error
//
// A kernel takes one struct by value and runs with kThreads threads unless told otherwise. After an error nothing more
// is launched.
#pragma once

#include "tile.h"

#ifdef __CUDACC__

struct Launcher {
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaSuccess;

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), int64_t blocks, int shared_bytes, Arguments arguments,
                  int block_threads = kThreads) {
    if (error != cudaSuccess || blocks == 0) return;
    // Beyond 48 KB a kernel has to ask.
    if (shared_bytes > 48 * 1024)
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
    if (error != cudaSuccess) return;
    kernel<<<(unsigned)blocks, block_threads, shared_bytes, stream>>>(arguments);
    error = cudaGetLastError();
  }
};

#else

struct Launcher {
  int error = 0;

  template <class Arguments>
  void operator()(void (*kernel)(Arguments), int64_t blocks, int shared_bytes, Arguments arguments,
                  int block_threads = kThreads) {
    sim::launch(blocks, block_threads, shared_bytes, [=] { kernel(arguments); });
  }
};

#endif
