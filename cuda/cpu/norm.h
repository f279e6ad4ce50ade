// norm.h - the memory's way out (LayerNorm, residual), the error that is learned from, and the gradients of both.
//
// One row is one token of D numbers. Closed forms: neuralmem/ops/neural_memory/README.md, "Gradients at the anchor".
#pragma once

#include <math.h>

#include "buffer.h"

namespace nm::NM_ISA {

constexpr double kNormEps = 1e-6;

// What the memory does after its last product; gain and bias [D] are NULL without norm.
template <class T>
struct Way {
  int D;
  bool residual;
  const T *gain, *bias;
};

// hat = (f - mean) rstd; returns rstd.
template <class T>
inline T normalise(int n, const T* f, T* hat) {
  const T mean = total(n, f) / T(n);
  for (int j = 0; j < n; j += kLanes<T>) store(hat + j, load(f + j) - mean);
  const T rstd = T(1) / T(sqrt(double(dot(n, hat, hat) / T(n)) + kNormEps));
  scale(n, rstd, hat, hat);
  return rstd;
}

// out = factor (x - mean(x) - hat mean(hat x)): LayerNorm's backward when factor is rstd.
template <class T>
inline void project(int n, T factor, const T* x, const T* hat, T* out) {
  const T mean = total(n, x) / T(n), along = dot(n, x, hat) / T(n);
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, factor * (load(x + j) - mean - along * load(hat + j)));
}

// y = M(x) from f = f(x). `hat` receives the normalised f; returns its rstd.
template <class T>
inline T leave(const Way<T>& way, const T* f, const T* x, T* hat, T* y) {
  T rstd = 1;
  if (way.gain) {
    rstd = normalise(way.D, f, hat);
    for (int j = 0; j < way.D; j += kLanes<T>)
      store(y + j, load(hat + j) * load(way.gain + j) + load(way.bias + j));
  } else {
    copy_row(way.D, f, y);
  }
  if (way.residual) add_scaled(way.D, T(1), x, y);
  return rstd;
}

// df from dy, and what gain and bias receive; the residual's share of dx is dy itself.
template <class T>
inline void leave_gradient(const Way<T>& way, const T* dy, const T* hat, T rstd, T* df, T* dgain, T* dbias) {
  if (!way.gain) return copy_row(way.D, dy, df);
  accumulate_product(way.D, dy, hat, dgain);
  add_scaled(way.D, T(1), dy, dbias);
  multiply(way.D, dy, way.gain, df);
  project(way.D, rstd, df, hat, df);
}

// The gradient of |M(k) - v|^2 with respect to f. `twice` receives 2 (M(k) - v). Returns rstd.
template <class T>
inline T error_gradient(const Way<T>& way, const T* f, const T* k, const T* v, T* hat, T* twice, T* delta) {
  const T rstd = leave(way, f, k, hat, twice);
  for (int j = 0; j < way.D; j += kLanes<T>) store(twice + j, T(2) * (load(twice + j) - load(v + j)));
  if (!way.gain) {
    copy_row(way.D, twice, delta);
  } else {
    multiply(way.D, twice, way.gain, delta);
    project(way.D, rstd, delta, hat, delta);
  }
  return rstd;
}

// From u, the gradient of error_gradient's delta: df, dv, and what is added to dk, dgain, dbias. With P the projection
// of `project`, delta = rstd P(gain twice). `spare` holds 3 rows of D.
template <class T>
inline void error_gradient_gradient(const Way<T>& way, const T* u, const T* hat, const T* twice, T rstd, T* df, T* dk,
                                    T* dv, T* dgain, T* dbias, Buffer<T> spare) {
  const int D = way.D;
  if (!way.gain) {
    scale(D, T(2), u, df);
    scale(D, T(-2), u, dv);
    if (way.residual) add_scaled(D, T(2), u, dk);
    return;
  }
  T *dG = spare[0], *G = spare[1], *dhat = spare[2];  // G = gain twice
  project(D, rstd, u, hat, dG);
  multiply(D, way.gain, twice, G);
  project(D, T(1), G, hat, dhat);
  const T drstd = dot(D, u, dhat);
  const T along_G = dot(D, G, hat) / T(D), along_u = dot(D, u, hat) / T(D);
  for (int j = 0; j < D; j += kLanes<T>) {
    const Vec<T> dR = T(2) * load(way.gain + j) * load(dG + j), n = load(hat + j);  // R = M(k) - v
    store(dhat + j, load(way.gain + j) * dR - rstd * (along_G * load(u + j) + along_u * load(G + j)));
    store(dgain + j, load(dgain + j) + load(dG + j) * load(twice + j) + dR * n);
    store(dbias + j, load(dbias + j) + dR);
    store(dv + j, -dR);
    if (way.residual) store(dk + j, load(dk + j) + dR);
  }
  project(D, rstd, dhat, hat, df);
  add_scaled(D, -drstd * rstd * rstd / T(D), hat, df);
}

}  // namespace nm::NM_ISA
