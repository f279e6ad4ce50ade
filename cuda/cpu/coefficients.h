// coefficients.h - the gates of a chunk to the weights of its gradients, and gradients back to the gates.
//
// Recurrences over the tokens of a chunk, without a division: gates of exactly 0 and products that underflow are right.
// Letters as in neuralmem/ops/neural_memory/README.md; D here is the README's D, and write = D diag(theta).
#pragma once

#include "../launchers.h"
#include "buffer.h"

namespace nm::NM_ISA {

// One chunk of one sample and head, C tokens. Matrices are [C, C], zero above the diagonal while the gates are finite.
template <class T>
struct Coefficients {
  bool momentum;
  T *theta, *eta, *keep, *real;  // [C]: gates with the mask put in; real is 1 or 0
  T *beta, *gamma, *decay;       // [C]
  T *last, *push;                // [C]: what the chunk's end keeps of each gradient, in W and in S
  Buffer<T> over_momentum;       // E
  Buffer<T> over_weights;        // D
  Buffer<T> write;

  // Of a matrix whose rows nobody asks for again, all rows lie on top of each other: E and D matter to a backward pass
  // only, and a decoded token needs no more of `write` than its last row.
  void take(Arena& arena, int capacity, bool with_momentum, nm_pass pass) {
    momentum = with_momentum;
    const auto matrix = [&](bool whole) {
      return whole ? arena.buffer<T>(capacity, capacity) : Buffer<T>{arena.row<T>(capacity), 0};
    };
    T** rows[] = {&theta, &eta, &keep, &real, &beta, &gamma, &decay, &last, &push};
    for (T** row : rows) *row = arena.row<T>(capacity);
    write = matrix(pass != NM_DECODE);
    over_weights = matrix(pass == NM_BACKWARD);
    if (momentum) over_momentum = matrix(pass == NM_BACKWARD);
  }

  // theta, eta, keep and real of C tokens are set.
  void compute(int C) {
    for (int t = 0; t < C; t++) {
      beta[t] = keep[t] * (t ? beta[t - 1] : T(1));
      if (momentum) {
        decay[t] = eta[t] * (t ? decay[t - 1] : T(1));
        gamma[t] = keep[t] * (t ? gamma[t - 1] : T(0)) + real[t] * decay[t];
        next_row(over_momentum, t, C, eta[t]);
        over_momentum[t][t] = 1;
      }
      next_row(over_weights, t, C, keep[t]);
      if (momentum) {
        add_scaled(C, real[t], over_momentum[t], over_weights[t]);
      } else {
        over_weights[t][t] = 1;
      }
      multiply(C, over_weights[t], theta, write[t]);
    }
    copy_row(C, write[C - 1], last);
    if (momentum) multiply(C, over_momentum[C - 1], theta, push);
  }

 private:
  static void next_row(Buffer<T> m, int t, int C, T factor) {
    if (t) {
      scale(C, factor, m[t - 1], m[t]);
    } else {
      fill(C, T(0), m[0]);
    }
  }
};

// Gradients of the coefficients, then of the gates.
template <class T>
struct CoefficientGradients {
  T *beta, *gamma, *decay, *last, *push;  // [C]; of `decay` only the last entry is ever read
  Buffer<T> write;                        // [C, C], zero above the diagonal
  T *theta, *eta, *alpha;                 // [C], the result
  T *along_weights, *along_momentum;      // [C]: the running rows of the reverse recurrences

  void take(Arena& arena, int capacity) {
    T** rows[] = {&beta, &gamma, &decay, &last, &push, &theta, &eta, &alpha, &along_weights, &along_momentum};
    for (T** row : rows) *row = arena.row<T>(capacity);
    write = arena.buffer<T>(capacity, capacity);
  }

  void clear(int C) {
    T* rows[] = {beta, gamma, decay, last, push, theta, along_weights, along_momentum};
    for (T* row : rows) fill(C, T(0), row);
    for (int t = 0; t < C; t++) fill(C, T(0), write[t]);
  }

  void compute(const Coefficients<T>& c, int C) {
    add_scaled(C, T(1), last, write[C - 1]);
    T beta_ahead = 0, gamma_ahead = 0, decay_ahead = 0;
    if (c.momentum) {
      multiply(C, push, c.theta, along_momentum);
      accumulate_product(C, push, c.over_momentum[C - 1], theta);
      decay_ahead = decay[C - 1];
    }
    for (int t = C - 1; t >= 0; t--) {
      // Here the *_ahead and along_* hold what row t + 1 sends back to row t.
      accumulate_product(C, write[t], c.over_weights[t], theta);
      accumulate_product(C, write[t], c.theta, along_weights);
      beta_ahead += beta[t];
      T to_keep = beta_ahead * (t ? c.beta[t - 1] : T(1));
      beta_ahead *= c.keep[t];
      if (c.momentum) {
        gamma_ahead += gamma[t];
        if (t) to_keep += gamma_ahead * c.gamma[t - 1];
        decay_ahead += c.real[t] * gamma_ahead;
        gamma_ahead *= c.keep[t];
        T to_eta = decay_ahead * (t ? c.decay[t - 1] : T(1));
        decay_ahead *= c.eta[t];
        add_scaled(C, c.real[t], along_weights, along_momentum);
        if (t) to_eta += dot(t, along_momentum, c.over_momentum[t - 1]);
        scale(C, c.eta[t], along_momentum, along_momentum);
        // E[t, t] is the constant 1, and row t - 1 has no column t.
        along_momentum[t] = 0;
        eta[t] = c.real[t] != 0 ? to_eta : T(0);
      }
      if (t) to_keep += dot(t, along_weights, c.over_weights[t - 1]);
      scale(C, c.keep[t], along_weights, along_weights);
      along_weights[t] = 0;
      alpha[t] = c.real[t] != 0 ? -to_keep : T(0);
      if (c.real[t] == 0) theta[t] = 0;
    }
  }
};

}  // namespace nm::NM_ISA
