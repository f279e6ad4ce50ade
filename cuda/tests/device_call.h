// device_call.h - a reference problem as the kernels see it: typed tensors, each right before an unmapped page.
//
// Reading or writing past the end of any tensor or of the workspace is then a crash. What is not given is NaN. With
// -DNM_ON_GPU the memory is the host's, but a GPU can reach it, and the entry points of launchers.h are called.
#pragma once

#include <sys/mman.h>

#include <memory>
#include <vector>

#include "../gpu/simt.h"
#include "reference.h"

#ifdef NM_ON_GPU
// Of CUDA's runtime, whose header brings vector types that simt.h has too.
extern "C" int cudaMalloc(void **, size_t);
extern "C" int cudaMemset(void *, int, size_t);
extern "C" int cudaFree(void *);
extern "C" int cudaMallocHost(void **, size_t);
extern "C" int cudaFreeHost(void *);
extern "C" int cudaDeviceSynchronize();

struct Guarded {
  uint8_t *data = nullptr;

  explicit Guarded(size_t bytes) {
    if (cudaMallocHost((void **)&data, bytes + 1)) abort();
    memset(data, 0xff, bytes);
  }
  ~Guarded() { cudaFreeHost(data); }
  Guarded(const Guarded &) = delete;
};
// Memory that only kernels touch: the GPU's own, which its tools watch.
struct Scratch {
  uint8_t *data = nullptr;

  explicit Scratch(size_t bytes) {
    if (cudaMalloc((void **)&data, bytes) || cudaMemset(data, 0xff, bytes)) abort();
  }
  ~Scratch() { cudaFree(data); }
  Scratch(const Scratch &) = delete;
};
#else
// `bytes` of memory, aligned to 16 bytes, filled with NaN.
struct Guarded {
  static constexpr size_t kPage = 4096;
  size_t bytes, mapped;
  uint8_t *map, *data;

  explicit Guarded(size_t size) : bytes((size + 15) / 16 * 16), mapped((bytes + kPage - 1) / kPage * kPage + kPage) {
    map = (uint8_t *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + mapped - kPage, kPage, PROT_NONE)) abort();
    data = map + mapped - kPage - bytes;
    memset(data, 0xff, bytes);
  }
  ~Guarded() { munmap(map, mapped); }
  Guarded(const Guarded &) = delete;
};
using Scratch = Guarded;
#endif

template <class T>
double to_double(T x) {
  return to_float(x);
}
template <class T>
T from_double(double x) {
  return to_op<T>((float)x);
}
template <>
inline float from_double<float>(double x) {
  return (float)x;
}

template <class Op>
double round_to(double x) {
  return to_float(to_op<Op>((float)x));
}

template <class Op>
struct DeviceCall {
  std::vector<std::unique_ptr<Guarded>> memory;
  nm_problem problem{};

  void *take(size_t bytes) {
    memory.push_back(std::make_unique<Guarded>(bytes));
    return memory.back()->data;
  }
  template <class T>
  T *tensor(const reference::Numbers &x) {
    if (x.empty()) return nullptr;
    T *data = (T *)take(x.size() * sizeof(T));
    for (size_t i = 0; i < x.size(); i++) data[i] = from_double<T>(x[i]);
    return data;
  }
  const uint8_t *flags(const std::vector<uint8_t> &x) {
    if (x.empty()) return nullptr;
    uint8_t *data = (uint8_t *)take(x.size());
    memcpy(data, x.data(), x.size());
    return data;
  }

  explicit DeviceCall(const reference::Inputs &in, int keep_every = 0) {
    const reference::Sizes &s = in.s;
    nm_problem &p = problem;
    p.B = s.B, p.T = s.T, p.H = s.H, p.D = s.D, p.layers = 2;
    p.widths[0] = p.widths[2] = s.D, p.widths[1] = s.hidden;
    p.chunk_size = s.chunk, p.keep_every = keep_every;
    p.dtype = sizeof(Op) == 2 && std::is_same<Op, bf16>::value ? NM_BFLOAT16 : NM_FLOAT16;
    p.activation = s.activation, p.residual = s.residual;
    p.q = tensor<Op>(in.q), p.k = tensor<Op>(in.k), p.v = tensor<Op>(in.v);
    p.theta = tensor<float>(in.theta), p.eta = tensor<float>(in.eta), p.alpha = tensor<float>(in.alpha);
    p.weights[0] = tensor<float>(in.w1), p.weights[1] = tensor<float>(in.w2);
    p.momentum[0] = tensor<float>(in.s1), p.momentum[1] = tensor<float>(in.s2);
    p.first_weights[0] = tensor<float>(in.first_w1), p.first_weights[1] = tensor<float>(in.first_w2);
    p.first_momentum[0] = tensor<float>(in.first_s1), p.first_momentum[1] = tensor<float>(in.first_s2);
    p.gain = tensor<float>(in.gain), p.bias = tensor<float>(in.bias);
    p.write_mask = flags(in.mask), p.reset = flags(in.reset);
  }
};

template <class T>
reference::Numbers numbers(const void *data, size_t count) {
  reference::Numbers x(count);
  for (size_t i = 0; i < count; i++) x[i] = to_double(((const T *)data)[i]);
  return x;
}
