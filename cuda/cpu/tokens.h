// tokens.h - between the caller's tensors and scratch memory: tokens of four dtypes, weights, gates.
#pragma once

#include <string.h>

#include "../half.h"
#include "../launchers.h"
#include "buffer.h"

namespace nm::NM_ISA {

inline float widen(uint16_t bits) {  // bfloat16
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, 4);
  return x;
}

inline uint16_t narrow(float x) {  // to bfloat16, nearest even; a NaN stays one
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// One token [D] of q, k, v or dy, at `offset` numbers into the tensor.
template <class T>
inline void load_token(const void* tensor, int32_t dtype, int64_t offset, int D, T* out) {
  switch (dtype) {
    case NM_FLOAT32: {
      const float* in = static_cast<const float*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = T(in[j]);
      return;
    }
    case NM_FLOAT64: {
      const double* in = static_cast<const double*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = T(in[j]);
      return;
    }
    case NM_BFLOAT16: {
      const uint16_t* in = static_cast<const uint16_t*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = T(widen(in[j]));
      return;
    }
    default: {
      const uint16_t* in = static_cast<const uint16_t*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = T(widen_half(in[j]));
    }
  }
}

template <class T>
inline void store_token(const T* in, int32_t dtype, int64_t offset, int D, void* tensor) {
  switch (dtype) {
    case NM_FLOAT32: {
      float* out = static_cast<float*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = float(in[j]);
      return;
    }
    case NM_FLOAT64: {
      double* out = static_cast<double*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = double(in[j]);
      return;
    }
    case NM_BFLOAT16: {
      uint16_t* out = static_cast<uint16_t*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = narrow(float(in[j]));
      return;
    }
    default: {
      uint16_t* out = static_cast<uint16_t*>(tensor) + offset;
      for (int j = 0; j < D; j++) out[j] = narrow_half(float(in[j]));
    }
  }
}

// A caller's [D_out, D_in] of sample-and-head `which` as x @ W wants it, [D_in, D_out]; zeros where there is none.
template <class T>
inline void load_weights(const void* tensor, int64_t which, int into, int out, Buffer<T> W) {
  if (!tensor) {
    for (int i = 0; i < into; i++) fill(out, T(0), W[i]);
    return;
  }
  const T* from = static_cast<const T*>(tensor) + which * into * out;
  const int vectors = into / kLanes<T> * kLanes<T>;  // behind the caller's last number nothing may be read
  transpose(out, vectors, from, into, W.data, W.stride);
  for (int i = vectors; i < into; i++)
    for (int o = 0; o < out; o++) W[i][o] = from[int64_t(o) * into + i];
}

template <class T>
inline void store_weights(Buffer<T> W, int64_t which, int into, int out, void* tensor) {
  T* to = static_cast<T*>(tensor) + which * into * out;
  const int vectors = into / kLanes<T> * kLanes<T>;
  transpose(vectors, out, W.data, W.stride, to, into);
  for (int o = 0; o < out; o++)
    for (int i = vectors; i < into; i++) to[int64_t(o) * into + i] = W[i][o];
}

}  // namespace nm::NM_ISA
