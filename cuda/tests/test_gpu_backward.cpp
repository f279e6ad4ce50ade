// build: -O1 -std=c++17 -Wall -Wextra
// test_gpu_backward.cpp - the parts of backward that no product rounds, in the emulator, as exactly as fp32 allows:
// gate gradients and the activations' second derivatives. Backward as a whole: tests/native/test_gpu_backward.py.
//
// Every coefficient is affine in every single gate, so the gradient with respect to a gate is the loss at 1 minus the
// loss at 0: exact, by a reference that knows nothing of reverse recurrences.
#include <random>
#include <string>
#include <vector>

#include "../gpu/backward_activation.h"
#include "../gpu/backward_gates.h"
#include "../gpu/launch.h"

using Numbers = std::vector<double>;

static int failures = 0;

static void check(const char *what, double error, double allowed) {
  if (error <= allowed) return;
  printf("FAIL %s: %.3g, allowed %.3g\n", what, error, allowed);
  failures++;
}

struct Case {
  int tokens, rows;
  bool momentum, mask;
  Numbers theta, eta, alpha;           // [tokens]
  std::vector<uint8_t> writes;
  Numbers dwrite, dpush, dbeta, dgamma;  // [tokens, tokens] and [tokens]
  double dleft;                        // of the last token

  // The sum of every coefficient times its gradient, from the definition: product after product.
  double loss() const {
    const int n = tokens;
    Numbers a(n), m(n), h(n), s(n);
    for (int t = 0; t < n; t++) {
      m[t] = writes[t], a[t] = writes[t] ? 1 - alpha[t] : 1, s[t] = writes[t] ? theta[t] : 0;
      h[t] = writes[t] && momentum ? eta[t] : 1;
    }
    double total = 0;
    for (int t = 0; t < n; t++) {
      for (int from = -1; from <= t; from++) {  // -1: the state before the chunk
        double in_weights = 0, in_momentum = 1, kept = 1;
        for (int r = t; r >= (from < 0 ? 0 : from); r--) {  // what is in the momentum at r enters the weights there
          in_momentum = 1;
          for (int j = from + 1; j <= r; j++) in_momentum *= h[j];
          if (momentum) in_weights += kept * m[r] * in_momentum;
          else if (r == from) in_weights = kept;
          kept *= a[r];
        }
        in_momentum = 1;
        for (int j = from + 1; j <= t; j++) in_momentum *= h[j];
        if (from >= 0) total += dwrite[t * n + from] * in_weights * s[from];
        if (from >= 0 && momentum && t == n - 1) total += dpush[from] * in_momentum * s[from];
        if (from < 0) total += dbeta[t] * kept;
        if (from < 0 && momentum) total += dgamma[t] * in_weights + (t == n - 1 ? dleft * in_momentum : 0);
      }
    }
    return total;
  }

  Numbers gradient(Numbers Case::*gate) const {
    Numbers out(tokens);
    for (int t = 0; t < tokens; t++) {
      Case one = *this, zero = *this;
      (one.*gate)[t] = 1, (zero.*gate)[t] = 0;
      out[t] = one.loss() - zero.loss();
    }
    return out;
  }
};

static double relative_error(const std::vector<float> &got, const Numbers &exact) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); i++) {
    error += (got[i] - exact[i]) * (got[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  if (error != error) return INFINITY;
  return norm > 0 ? sqrt(error / norm) : sqrt(error);
}

static void gate_case(int tokens, bool momentum, bool mask, unsigned seed) {
  std::mt19937 random(seed);
  auto draw = [&](int count, double low, double high) {
    Numbers x(count);
    // What the kernels are given is the same number.
    for (double &v : x) v = (float)std::uniform_real_distribution<double>(low, high)(random);
    return x;
  };
  Case c{tokens, (tokens + 15) / 16 * 16, momentum, mask, draw(tokens, 0, .1), draw(tokens, .6, 1), draw(tokens, 0, .3),
         std::vector<uint8_t>(tokens, 1), draw(tokens * tokens, -1, 1), draw(tokens, -1, 1), draw(tokens, -1, 1),
         draw(tokens, -1, 1), .7};
  for (int t = 0; t < tokens; t++) {
    if (t % 7 == 2) c.eta[t] = t % 2, c.theta[t] = 0;
    if (t % 5 == 3) c.alpha[t] = t % 2;
    if (mask) c.writes[t] = random() % 3 > 0;
  }

  // One item, in the workspace's own layout; what has several partial sums gets its gradient in two halves.
  const int n = tokens, rows = c.rows;
  auto floats = [&](int count) { return std::vector<float>(count, NAN); };
  auto narrow = [](const Numbers &x) { return std::vector<float>(x.begin(), x.end()); };
  std::vector<float> theta = narrow(c.theta), eta = narrow(c.eta), alpha = narrow(c.alpha);
  std::vector<float> decay_w = floats(rows * rows), decay_s = floats(rows * rows), dwrite = floats(rows * rows);
  std::vector<float> row[6];
  for (auto &x : row) x = floats(rows);
  std::vector<float> dbeta = floats(2 * rows), dgamma = floats(2 * rows), dlast = floats(2 * rows),
                     dpush = floats(2 * rows), dends(6, 0.f), dtheta = floats(n), deta = floats(n), dalpha = floats(n);
  for (int t = 0; t < n; t++) {
    for (int s = 0; s < n; s++) dwrite[t * rows + s] = (float)c.dwrite[t * n + s] * (t == n - 1 ? .5f : 1.f);
    const float last = (float)c.dwrite[(n - 1) * n + t];
    dlast[t] = .25f * last, dlast[rows + t] = .25f * last;
    dpush[t] = dpush[rows + t] = .5f * (float)c.dpush[t];
    dbeta[t] = dbeta[rows + t] = .5f * (float)c.dbeta[t];
    dgamma[t] = dgamma[rows + t] = .5f * (float)c.dgamma[t];
  }
  dbeta[n - 1] = dgamma[n - 1] = 0;  // the other half of the last token's comes from the states
  dends[0] = dbeta[rows + n - 1], dends[1] = dgamma[rows + n - 1];
  dends[2] = .2f, dends[5] = .5f;

  backward::Plan<bf16> p{};
  p.B = p.H = 1, p.T = p.chunk = n, p.rows = rows, p.heads = 1, p.chunks = 1, p.hidden_tiles = p.layer_tiles = 1;
  p.has_momentum = momentum;
  p.theta = theta.data(), p.eta = momentum ? eta.data() : nullptr, p.alpha = alpha.data();
  p.write_mask = mask ? c.writes.data() : nullptr;
  p.decay_w = decay_w.data(), p.decay_s = decay_s.data(), p.dwrite = dwrite.data();
  p.theta_row = row[0].data(), p.beta = row[1].data(), p.gamma = row[2].data(), p.left = row[3].data();
  p.write_last = row[4].data(), p.push = row[5].data();
  p.dbeta = dbeta.data(), p.dgamma = dgamma.data(), p.dwrite_last = dlast.data(), p.dpush = dpush.data();
  p.dends = dends.data(), p.dtheta = dtheta.data(), p.deta = deta.data(), p.dalpha = dalpha.data();
  Launcher launch;
  launch(backward::chunk_coefficients<bf16>, 1, backward::gate_bytes(rows), p, backward::kTileThreads);
  launch(backward::gate_gradients<bf16>, 1, backward::gate_bytes(rows), p, backward::kTileThreads);

  char what[80];
  snprintf(what, sizeof what, "%d tokens%s%s", tokens, momentum ? ", momentum" : "", mask ? ", mask" : "");
  constexpr double kAllowed = 1e-6;  // measured: 1.3e-7
  check((std::string("theta, ") + what).c_str(), relative_error(dtheta, c.gradient(&Case::theta)), kAllowed);
  check((std::string("alpha, ") + what).c_str(), relative_error(dalpha, c.gradient(&Case::alpha)), kAllowed);
  if (momentum) check((std::string("eta, ") + what).c_str(), relative_error(deta, c.gradient(&Case::eta)), kAllowed);
}

static void check_curves() {
  constexpr float kStep = 1.f / 64;
  for (int kind : {NM_SILU, NM_GELU, NM_GELU_TANH, NM_IDENTITY}) {
    double worst = 0;
    for (float z = -8; z <= 8; z += .125f) {
      const double slope = ((double)activate(kind, z + kStep).slope - activate(kind, z - kStep).slope) / (2 * kStep);
      worst = std::max(worst, std::fabs(backward::curve(kind, z) - slope));
    }
    check("second derivative of an activation", worst, 2e-4);  // the difference quotient's own error: 1e-4
  }
}

int main() {
  check_curves();
  for (int tokens : {1, 2, 16, 37})
    for (int which = 0; which < 4; which++) gate_case(tokens, which % 2, which / 2, 10 * tokens + which);
  puts(failures ? "FAIL" : "PASS");
  return failures ? 1 : 0;
}
