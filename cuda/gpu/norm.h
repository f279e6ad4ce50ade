// norm.h - LayerNorm over the rows of a matrix in registers.
#pragma once

#include "tile.h"

// Every row of y to mean 0 and variance 1; rstd: what its deviations were multiplied with. exchange as for sum_rows.
// The variance is taken from centred values, in a second sum.
template <class C>
DEVICE_FN void normalise_rows(C &y, float (&rstd)[C::kSlots], float *exchange) {
  float mean[C::kSlots] = {};
  C::each([&](int, int, int i) { mean[C::slot(i)] += y.value[i] + y.value[i + 1]; });
  sum_rows<C>(mean, exchange);
  UNROLL for (int s = 0; s < C::kSlots; s++) rstd[s] = 0.f;
  C::each([&](int, int, int i) {
    const int s = C::slot(i);
    y.value[i] -= mean[s] / C::kN, y.value[i + 1] -= mean[s] / C::kN;
    rstd[s] += y.value[i] * y.value[i] + y.value[i + 1] * y.value[i + 1];
  });
  sum_rows<C>(rstd, exchange);
  UNROLL for (int s = 0; s < C::kSlots; s++) rstd[s] = inverse_square_root(rstd[s] / C::kN + 1e-6f);
  C::each([&](int, int, int i) { y.value[i] *= rstd[C::slot(i)], y.value[i + 1] *= rstd[C::slot(i)]; });
}
