// reference.h - the op's definition in double precision, sharing no code with the kernels.
//
// token_loop is neuralmem/ops/neural_memory/README.md, Definition: two layers, weight matrices, one token after the
// other. Inputs are doubles that the kernels' types hold exactly, so they carry no error.
#pragma once

#include <math.h>
#include <stdint.h>

#include <functional>
#include <random>
#include <vector>

#include "../launchers.h"

namespace reference {

using Numbers = std::vector<double>;
using Round = std::function<double(double)>;

struct Sizes {
  int B = 1, T = 1, H = 1, D = 64, hidden = 64, chunk = 16;
  bool momentum = true, norm = true, residual = true;
  int activation = NM_SILU;
  bool mask = false, reset = false, exact_gates = false;  // exact_gates: some are 0 or 1
  double forget = .02;  // the largest alpha. Long streams need less: near-zero weights make the norm chaotic
};

struct Inputs {
  Sizes s;
  Numbers q, k, v, theta, eta, alpha;                   // [B, T, H, D], [B, T, H]
  Numbers w1, w2, s1, s2;                               // [B, H, hidden, D], [B, H, D, hidden]
  Numbers first_w1, first_w2, first_s1, first_s2;       // for resets
  Numbers gain, bias;                                   // [H, D]
  std::vector<uint8_t> mask, reset;                     // [B, T]
};

struct Outputs {
  Numbers y, w1, w2, s1, s2;
};

struct Activated {
  double value, slope;
};

inline Activated activate(int kind, double z) {
  if (kind == NM_IDENTITY) return {z, 1.};
  if (kind == NM_SILU) {
    const double s = 1. / (1. + exp(-z));
    return {z * s, s * (1. + z * (1. - s))};
  }
  if (kind == NM_GELU) {
    const double share = .5 * erfc(-z / sqrt(2.)), density = exp(-.5 * z * z) / sqrt(2. * M_PI);
    return {z * share, share + z * density};
  }
  const double scale = sqrt(2. / M_PI), t = tanh(scale * (z + .044715 * z * z * z));
  return {.5 * z * (1. + t), .5 * (1. + t) + .5 * z * (1. - t * t) * scale * (1. + 3. * .044715 * z * z)};
}

// Tokens representable after `round`, everything else in float. Settings in which the memory stays alive and stable.
inline Inputs make_inputs(const Sizes &s, unsigned seed, const Round &round) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  auto fill = [&](int64_t count, auto draw) {
    Numbers x(count);
    for (double &value : x) value = (float)draw();
    return x;
  };
  Inputs in;
  in.s = s;
  const int64_t tokens = int64_t(s.B) * s.T * s.H, state = int64_t(s.B) * s.H * s.hidden * s.D;
  auto token = [&] { return round(normal(random) / sqrt(.25 * s.D)); };
  in.q = fill(tokens * s.D, token), in.k = fill(tokens * s.D, token), in.v = fill(tokens * s.D, token);
  const double rate = (s.norm ? 2. : 1.5) / s.chunk;
  in.theta = fill(tokens, [&] { return rate * (s.exact_gates && uniform(random) < .1 ? 0. : uniform(random)); });
  in.eta = fill(s.momentum ? tokens : 0, [&] {
    const double x = uniform(random);
    return s.exact_gates && x < .2 ? (x < .1 ? 0. : 1.) : .3 + .6 * uniform(random);
  });
  in.alpha = fill(tokens, [&] {
    const double x = uniform(random);
    return s.exact_gates && x < .15 ? (x < .02 ? 1. : 0.) : s.forget * uniform(random);
  });
  auto first = [&] { return normal(random) / sqrt(double(s.D)); };
  auto second = [&] { return normal(random) / sqrt(double(s.hidden)); };
  in.w1 = fill(state, first), in.w2 = fill(state, second);
  const int64_t pushed = s.momentum ? state : 0;
  in.s1 = fill(pushed, [&] { return .05 * first(); }), in.s2 = fill(pushed, [&] { return .05 * second(); });
  if (s.reset) {
    in.first_w1 = fill(state, first), in.first_w2 = fill(state, second);
    in.first_s1 = fill(pushed, [&] { return .05 * first(); });
    in.first_s2 = fill(pushed, [&] { return .05 * second(); });
    in.reset.assign(s.B * s.T, 0);
    for (int b = 0; b < s.B; b++)
      for (int t = 0; t < s.T; t += s.chunk) in.reset[b * s.T + t] = t / s.chunk % 2 == (b + 1) % 2;
  }
  if (s.mask) {
    in.mask.resize(s.B * s.T);
    for (uint8_t &m : in.mask) m = uniform(random) < .7;
  }
  if (s.norm) {
    in.gain = fill(s.H * s.D, [&] { return 1. + .2 * normal(random); });
    in.bias = fill(s.H * s.D, [&] { return .2 * normal(random); });
  }
  return in;
}

// Small dense algebra. Row-major; C [m, n] += x A [m, k] B, where B is [k, n] or, for _nt, [n, k].
inline void add_nn(Numbers &c, const Numbers &a, const Numbers &b, int m, int n, int k, double x = 1.) {
  for (int i = 0; i < m; i++)
    for (int l = 0; l < k; l++) {
      const double factor = x * a[i * k + l];
      if (factor != 0.)
        for (int j = 0; j < n; j++) c[i * n + j] += factor * b[l * n + j];
    }
}
inline Numbers transposed(const Numbers &a, int rows, int columns) {
  Numbers t(a.size());
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) t[j * rows + i] = a[i * columns + j];
  return t;
}
inline void add_nt(Numbers &c, const Numbers &a, const Numbers &b, int m, int n, int k, double x = 1.) {
  add_nn(c, a, transposed(b, n, k), m, n, k, x);
}

// One sample and head: slices of the inputs and its running state.
struct Walk {
  const Inputs &in;
  const Sizes &s;
  int b, h;
  Numbers w1, w2, s1, s2;

  Walk(const Inputs &inputs, int sample, int head) : in(inputs), s(inputs.s), b(sample), h(head) {
    w1 = slice(in.w1), w2 = slice(in.w2), s1 = slice(in.s1), s2 = slice(in.s2);
  }
  Numbers slice(const Numbers &x) const {
    if (x.empty()) return {};
    const int64_t size = int64_t(s.hidden) * s.D, at = (int64_t(b) * s.H + h) * size;
    return Numbers(x.begin() + at, x.begin() + at + size);
  }
  int64_t gate(int t) const { return (int64_t(b) * s.T + t) * s.H + h; }
  Numbers rows(const Numbers &x, int t, int count) const {
    Numbers out;
    for (int i = t; i < t + count; i++)
      out.insert(out.end(), x.begin() + gate(i) * s.D, x.begin() + (gate(i) + 1) * s.D);
    return out;
  }
  bool writes(int t) const { return in.mask.empty() || in.mask[b * s.T + t]; }
  void maybe_reset(int t) {
    if (in.reset.empty() || !in.reset[b * s.T + t]) return;
    w1 = slice(in.first_w1), w2 = slice(in.first_w2), s1 = slice(in.first_s1), s2 = slice(in.first_s2);
  }
  double gain(int c) const { return s.norm ? in.gain[h * s.D + c] : 1.; }
  double bias(int c) const { return s.norm ? in.bias[h * s.D + c] : 0.; }

  // f [D] to what the norm makes of it; returns 1 / sigma.
  double normalise(double *f) const {
    if (!s.norm) return 1.;
    double mean = 0., square = 0.;
    for (int c = 0; c < s.D; c++) mean += f[c] / s.D;
    for (int c = 0; c < s.D; c++) square += (f[c] - mean) * (f[c] - mean) / s.D;
    const double rstd = 1. / sqrt(square + 1e-6);
    for (int c = 0; c < s.D; c++) f[c] = (f[c] - mean) * rstd;
    return rstd;
  }
  double answer(double hat, int c, double x) const { return hat * gain(c) + bias(c) + (s.residual ? x : 0.); }

  // f [D] of one token to the loss's gradient with respect to f.
  void gradient(double *f, const double *k, const double *v) const {
    const double rstd = normalise(f);
    Numbers u(s.D);
    double mean = 0., along = 0.;
    for (int c = 0; c < s.D; c++) {
      u[c] = 2. * (answer(f[c], c, k[c]) - v[c]) * gain(c);
      mean += u[c] / s.D, along += u[c] * f[c] / s.D;
    }
    for (int c = 0; c < s.D; c++) f[c] = s.norm ? rstd * (u[c] - mean - f[c] * along) : u[c];
  }
};

inline void put(Outputs &out, const Walk &w) {
  const int64_t at = (int64_t(w.b) * w.s.H + w.h) * w.s.hidden * w.s.D;
  std::copy(w.w1.begin(), w.w1.end(), out.w1.begin() + at), std::copy(w.w2.begin(), w.w2.end(), out.w2.begin() + at);
  std::copy(w.s1.begin(), w.s1.end(), out.s1.begin() + at), std::copy(w.s2.begin(), w.s2.end(), out.s2.begin() + at);
}

using Step = std::function<void(Walk &, int first, Numbers &y)>;  // y of the whole call

inline Outputs over_chunks(const Inputs &in, const Step &chunk) {
  Outputs out{Numbers(in.q.size()), in.w1, in.w2, in.s1, in.s2};
  for (int b = 0; b < in.s.B; b++)
    for (int h = 0; h < in.s.H; h++) {
      Walk w(in, b, h);
      for (int t = 0; t < in.s.T; t += in.s.chunk) {
        w.maybe_reset(t);
        chunk(w, t, out.y);
      }
      put(out, w);
    }
  return out;
}

inline Outputs token_loop(const Inputs &in) {
  return over_chunks(in, [&](Walk &w, int first, Numbers &y) {
    const Sizes &s = w.s;
    const int D = s.D, hidden = s.hidden, end = std::min(first + s.chunk, s.T);
    const Numbers anchor1 = w.w1, anchor2 = w.w2;
    auto evaluate = [&](const Numbers &w1, const Numbers &w2, const Numbers &x, Numbers &a, Numbers &slope) {
      Numbers z(hidden), f(D);
      add_nt(z, x, w1, 1, hidden, D);
      a.resize(hidden), slope.resize(hidden);
      for (int i = 0; i < hidden; i++) a[i] = activate(s.activation, z[i]).value;
      for (int i = 0; i < hidden; i++) slope[i] = activate(s.activation, z[i]).slope;
      add_nt(f, a, w2, 1, D, hidden);
      return f;
    };
    for (int t = first; t < end; t++) {
      Numbers a, slope;
      if (w.writes(t)) {
        const Numbers k = w.rows(in.k, t, 1), v = w.rows(in.v, t, 1);
        Numbers e = evaluate(anchor1, anchor2, k, a, slope), dz(hidden);
        w.gradient(e.data(), k.data(), v.data());
        add_nn(dz, e, anchor2, 1, hidden, D);
        for (int i = 0; i < hidden; i++) dz[i] *= slope[i];
        const double theta = in.theta[w.gate(t)], keep = 1. - in.alpha[w.gate(t)];
        auto update = [&](Numbers &weight, Numbers &momentum, const Numbers &rows, const Numbers &columns) {
          const int n = (int)columns.size();
          for (size_t i = 0; i < weight.size(); i++) {
            const double g = rows[i / n] * columns[i % n];
            if (s.momentum) momentum[i] = in.eta[w.gate(t)] * momentum[i] - theta * g;
            weight[i] = keep * weight[i] + (s.momentum ? momentum[i] : -theta * g);
          }
        };
        update(w.w1, w.s1, dz, k);
        update(w.w2, w.s2, e, a);
      }
      const Numbers q = w.rows(in.q, t, 1);
      Numbers f = evaluate(w.w1, w.w2, q, a, slope);
      w.normalise(f.data());
      for (int c = 0; c < D; c++) y[w.gate(t) * D + c] = w.answer(f[c], c, q[c]);
    }
  });
}

// sqrt(sum (x - y)^2 / sum y^2), infinite for NaN.
inline double relative_error(const Numbers &x, const Numbers &y) {
  double difference = 0., square = 0.;
  for (size_t i = 0; i < y.size(); i++) difference += (x[i] - y[i]) * (x[i] - y[i]), square += y[i] * y[i];
  const double error = y.empty() ? 0. : sqrt(difference / (square > 0. ? square : 1.));
  return error == error ? error : INFINITY;
}

}  // namespace reference
