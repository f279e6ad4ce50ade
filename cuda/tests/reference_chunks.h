// reference_chunks.h - the chunked equations in double precision, with a rounding for operands.
//
// `round` is applied to every factor of a matrix product. With the identity chunk_form must agree with token_loop; with
// a rounding it shows what error operands of that type bring along, and so what may be asked of a kernel.
#pragma once

#include "reference.h"

namespace reference {

struct Coefficients {
  Numbers beta, gamma, write, push;  // [n], [n], [n, n], [n]
  double decay;
};

// By the sums and products of the definition, term by term.
inline Coefficients coefficients(const Walk &w, int first, int n) {
  auto keep = [&](int t) { return w.writes(first + t) ? 1. - w.in.alpha[w.gate(first + t)] : 1.; };
  auto eta = [&](int t) { return !w.s.momentum ? 0. : w.writes(first + t) ? w.in.eta[w.gate(first + t)] : 1.; };
  auto product = [](auto factor, int after, int upto) {
    double x = 1.;
    for (int j = after + 1; j <= upto; j++) x *= factor(j);
    return x;
  };
  Coefficients c{Numbers(n), Numbers(n), Numbers(n * n), Numbers(n), product(eta, -1, n - 1)};
  for (int t = 0; t < n; t++) {
    c.beta[t] = product(keep, -1, t);
    for (int s = -1; s <= t; s++) {
      double sum = 0.;
      for (int r = std::max(s, 0); r <= t; r++)
        if (w.writes(first + r)) sum += product(keep, r, t) * product(eta, s, r);
      const double theta = s < 0 || !w.writes(first + s) ? 0. : w.in.theta[w.gate(first + s)];
      if (s < 0) c.gamma[t] = sum;
      else c.write[t * n + s] = sum * theta;
      if (s >= 0 && t == n - 1) c.push[s] = product(eta, s, t) * theta;
    }
  }
  return c;
}

inline Outputs chunk_form(const Inputs &in, const Round &round) {
  auto rounded = [&](Numbers x) {
    for (double &value : x) value = round(value);
    return x;
  };
  return over_chunks(in, [&](Walk &w, int first, Numbers &y) {
    const Sizes &s = w.s;
    const int D = s.D, hidden = s.hidden, n = std::min(s.chunk, s.T - first);
    const Coefficients c = coefficients(w, first, n);
    const Numbers q = w.rows(in.q, first, n), k = w.rows(in.k, first, n), v = w.rows(in.v, first, n);
    const Numbers w1 = rounded(w.w1), w2 = rounded(w.w2), s1 = rounded(w.s1), s2 = rounded(w.s2);

    Numbers z(n * hidden), e(n * D), dz(n * hidden);
    add_nt(z, k, w1, n, hidden, D);
    Numbers a = z;
    for (double &x : a) x = round(activate(s.activation, x).value);
    add_nt(e, a, w2, n, D, hidden);
    for (int t = 0; t < n; t++) w.gradient(&e[t * D], &k[t * D], &v[t * D]);
    e = rounded(e);
    add_nn(dz, e, w2, n, hidden, D);
    for (int i = 0; i < n * hidden; i++) dz[i] = round(dz[i] * activate(s.activation, z[i]).slope);

    auto by_rows = [&](const Numbers &x, const Numbers &scale) {
      Numbers out = x;
      const int width = (int)x.size() / n;
      for (size_t i = 0; i < out.size(); i++) out[i] *= scale[i / width];
      return out;
    };
    // x W_t^T for every row t of x; in layer 2 the rows of x are scaled as operands, in layer 1 the products are.
    auto read = [&](const Numbers &x, const Numbers &weight, const Numbers &momentum, const Numbers &inputs,
                    const Numbers &deltas, int from, int to, bool scale_operand) {
      Numbers u(n * to), m(n * to), scores(n * n);
      if (scale_operand) add_nt(u, rounded(by_rows(x, c.beta)), weight, n, to, from);
      else add_nt(u, x, weight, n, to, from), u = by_rows(u, c.beta);
      if (s.momentum) {
        if (scale_operand) add_nt(m, rounded(by_rows(x, c.gamma)), momentum, n, to, from);
        else add_nt(m, x, momentum, n, to, from), m = by_rows(m, c.gamma);
      }
      add_nt(scores, x, inputs, n, n, from);
      for (int i = 0; i < n * n; i++) scores[i] = round(scores[i] * c.write[i]);
      add_nn(m, scores, deltas, n, to, n, -1.);
      for (int i = 0; i < n * to; i++) u[i] += m[i];
      return u;
    };
    Numbers x = read(q, w1, s1, k, dz, D, hidden, false);
    for (double &value : x) value = round(activate(s.activation, value).value);
    x = read(x, w2, s2, a, e, hidden, D, true);
    for (int t = 0; t < n; t++) {
      w.normalise(&x[t * D]);
      for (int i = 0; i < D; i++) y[w.gate(first + t) * D + i] = w.answer(x[t * D + i], i, q[t * D + i]);
    }

    const Numbers last(c.write.end() - n, c.write.end());
    auto update = [&](Numbers &weight, Numbers &momentum, const Numbers &deltas, const Numbers &inputs,
                      int rows, int columns) {
      auto written = [&](const Numbers &scale) {
        Numbers g(rows * columns);
        add_nn(g, transposed(rounded(by_rows(deltas, scale)), n, rows), inputs, rows, columns, n);
        return g;
      };
      const Numbers g = written(last), p = s.momentum ? written(c.push) : Numbers();
      for (size_t i = 0; i < weight.size(); i++) {
        weight[i] = c.beta[n - 1] * weight[i] - g[i];
        if (s.momentum) {
          weight[i] += c.gamma[n - 1] * momentum[i];
          momentum[i] = c.decay * momentum[i] - p[i];
        }
      }
    };
    update(w.w1, w.s1, dz, k, hidden, D);
    update(w.w2, w.s2, e, a, D, hidden);
  });
}

}  // namespace reference
