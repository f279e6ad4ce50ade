// slopes.h - activations over the rows of a chunk, forward and in second order.
#pragma once

#include "activation.h"
#include "buffer.h"

namespace nm::NM_ISA {

// Calls run with the activation's functor.
template <class F>
inline void with_activation(int32_t activation, F run) {
  switch (activation) {
    case NM_SILU: return run(Silu());
    case NM_GELU: return run(Gelu());
    case NM_GELU_TANH: return run(GeluTanh());
    default: return run(Identity());
  }
}

// value = act(z), slope = act'(z); [rows, columns]. A slope without memory is not computed.
template <class T>
inline void activate(int32_t activation, int rows, int columns, Buffer<T> z, Buffer<T> value, Buffer<T> slope) {
  with_activation(activation, [&](auto act) {
    for (int t = 0; t < rows; t++)
      for (int j = 0; j < columns; j += kLanes<T>) {
        if (!slope.data) {
          store(value[t] + j, act.value(load(z[t] + j)));
          continue;
        }
        Vec<T> a, s;
        act.value_slope(load(z[t] + j), a, s);
        store(value[t] + j, a);
        store(slope[t] + j, s);
      }
  });
}

// Of delta = back * act'(z): d holds the gradient of delta and becomes that of back; dz = d * back * act''(z).
template <class T>
inline void differentiate_slope(int32_t activation, int rows, int columns, Buffer<T> z, Buffer<T> back, Buffer<T> d,
                                Buffer<T> dz) {
  with_activation(activation, [&](auto act) {
    for (int t = 0; t < rows; t++)
      for (int j = 0; j < columns; j += kLanes<T>) {
        Vec<T> a, s, curve;
        act.value_slope_curve(load(z[t] + j), a, s, curve);
        const Vec<T> ddelta = load(d[t] + j);
        store(dz[t] + j, ddelta * load(back[t] + j) * curve);
        store(d[t] + j, ddelta * s);
      }
  });
}

}  // namespace nm::NM_ISA
