// backward_gates.h - chunk coefficients from the gates, keeping what their gradients need, and those gradients: the
// recurrences of the README run backwards. No division and no logarithm: exact for gates of 0 and 1.
//
// A thread follows one column s of D and E down the rows t. Rows past the last token are zero throughout.
#pragma once

#include "backward_plan.h"

namespace backward {

// The gates of a chunk in shared memory, as the recurrences see them: a masked token has keep = eta = 1, theta = 0.
struct Gates {
  float *keep, *eta, *theta, *write;  // [rows]
  float *end;

  METHOD Gates(float *shared, int rows)
      : keep(shared), eta(keep + rows), theta(eta + rows), write(theta + rows), end(write + rows) {}
};

template <class Op>
DEVICE_FN int64_t gate_offset(const Plan<Op> &p, const Item &item, int t) {
  return ((int64_t)item.b * p.T + item.start + t) * p.H + item.h;
}
template <class Op>
DEVICE_FN bool writes(const Plan<Op> &p, const Item &item, int t) {
  return !p.write_mask || load(p.write_mask + (int64_t)item.b * p.T + item.start + t);
}

template <class Op>
DEVICE_FN Gates load_gates(const Plan<Op> &p, const Item &item) {
  const Gates gates((float *)shared_memory(), p.rows);
  for (int t = thread_index(); t < item.tokens; t += kTileThreads) {
    const int64_t from = gate_offset(p, item, t);
    const bool write = writes(p, item, t);
    store(gates.keep + t, write ? 1.f - load(p.alpha + from) : 1.f);
    store(gates.theta + t, write ? load(p.theta + from) : 0.f);
    store(gates.eta + t, !p.has_momentum ? 0.f : write ? load(p.eta + from) : 1.f);
    store(gates.write + t, write ? 1.f : 0.f);
  }
  block_sync();
  return gates;
}

// One block per item.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void chunk_coefficients(Plan<Op> p) {
  const Item item = item_at(p, block_index());
  const Gates gates = load_gates(p, item);
  const int64_t row = item.index * p.rows;
  float *decay_w = p.decay_w + row * p.rows, *decay_s = p.decay_s + row * p.rows;
  for (int s = thread_index(); s < p.rows; s += kTileThreads) {
    const float theta = s < item.tokens ? load(gates.theta + s) : 0.f;
    float d = 0, e = 0, last_d = 0, last_e = 0;
    for (int t = 0; t < p.rows; t++) {
      if (t >= s && t < item.tokens) {
        e = t == s ? 1.f : load(gates.eta + t) * e;
        // Without momentum E is the identity, and a masked token's theta of zero is enough.
        if (p.has_momentum)
          d = (t == s ? 0.f : load(gates.keep + t) * d) + load(gates.write + t) * e;
        else
          d = t == s ? 1.f : load(gates.keep + t) * d;
        last_d = d;
        last_e = e;
      }
      const bool inside = t < item.tokens;
      store(decay_w + t * p.rows + s, inside ? d : 0.f);
      if (p.has_momentum) store(decay_s + t * p.rows + s, inside ? e : 0.f);
    }
    store(p.theta_row + row + s, theta);
    store(p.write_last + row + s, last_d * theta);
    if (p.has_momentum) store(p.push + row + s, last_e * theta);
  }
  if (thread_index()) return;
  float beta = 1, gamma = 0, left = 1;
  for (int t = 0; t < p.rows; t++) {
    const bool inside = t < item.tokens;
    if (inside) {
      const float keep = load(gates.keep + t);
      beta *= keep;
      left *= load(gates.eta + t);
      gamma = keep * gamma + load(gates.write + t) * left;
    }
    store(p.beta + row + t, inside ? beta : 0.f);
    if (!p.has_momentum) continue;
    store(p.gamma + row + t, inside ? gamma : 0.f);
    store(p.left + row + t, inside ? left : 0.f);
  }
}

// A number of partial sums, each `rows` apart.
DEVICE_FN float sum_parts(const float *first, int parts, int64_t apart) {
  float total = 0;
  for (int i = 0; i < parts; i++) total += load(first + i * apart);
  return total;
}

// One block per item. dwrite becomes the products whose row sums are the gradients of keep, decay_s those of eta.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void gate_gradients(Plan<Op> p) {
  const Item item = item_at(p, block_index());
  const Gates gates = load_gates(p, item);
  float *const dkeep = gates.end, *const deta = dkeep + p.rows;    // [rows]: sums over columns
  float *const dbeta = deta + p.rows, *const dgamma = dbeta + p.rows, *const dleft = dgamma + p.rows;
  const int64_t row = item.index * p.rows;
  const int last = item.tokens - 1;
  const float *decay_w = p.decay_w + row * p.rows, *ends = p.dends + item.index * 2 * p.layer_tiles * 3;
  float *decay_s = p.decay_s + row * p.rows, *dwrite = p.dwrite + row * p.rows;

  for (int t = thread_index(); t < item.tokens; t += kTileThreads) {
    const int64_t partial = row * (p.hidden_tiles + 1) + t;
    const bool end = t == last;
    store(dbeta + t, sum_parts(p.dbeta + partial, p.hidden_tiles + 1, p.rows) +
                         (end ? sum_parts(ends, 2 * p.layer_tiles, 3) : 0.f));
    if (!p.has_momentum) continue;
    store(dgamma + t, sum_parts(p.dgamma + partial, p.hidden_tiles + 1, p.rows) +
                          (end ? sum_parts(ends + 1, 2 * p.layer_tiles, 3) : 0.f));
    store(dleft + t, end ? sum_parts(ends + 2, 2 * p.layer_tiles, 3) : 0.f);
  }

  for (int s = thread_index(); s < item.tokens; s += kTileThreads) {
    const float theta = load(gates.theta + s);
    const float dpush = p.has_momentum ? sum_parts(p.dpush + row * 2 + s, 2, p.rows) : 0.f;
    float dtheta = 0, dd = 0, de = 0;
    for (int t = last; t >= 0; t--) {
      float from_keep = 0, from_eta = 0;
      if (t >= s) {
        float dw = load(dwrite + t * p.rows + s);
        if (t == last) {
          dw += sum_parts(p.dwrite_last + row * 2 + s, 2, p.rows);
          if (p.has_momentum) {
            dtheta += dpush * load(decay_s + t * p.rows + s);
            de = theta * dpush;
          }
        } else {
          dd *= load(gates.keep + t + 1);
          de *= load(gates.eta + t + 1);
        }
        dtheta += dw * load(decay_w + t * p.rows + s);
        dd += theta * dw;
        de += load(gates.write + t) * dd;
        if (t > s) {
          from_keep = dd * load(decay_w + (t - 1) * p.rows + s);
          if (p.has_momentum) from_eta = de * load(decay_s + (t - 1) * p.rows + s);
        }
      }
      store(dwrite + t * p.rows + s, from_keep);
      if (p.has_momentum) store(decay_s + t * p.rows + s, from_eta);
    }
    store(p.dtheta + gate_offset(p, item, s), writes(p, item, s) ? dtheta : 0.f);
  }
  block_sync();

  if (thread_index() == 0) {  // beta, gamma and left are one more column, which begins before the chunk
    float b = 0, g = 0, l = 0;
    for (int t = last; t >= 0; t--) {
      const float keep = t < last ? load(gates.keep + t + 1) : 0.f;
      b = load(dbeta + t) + keep * b;
      store(dbeta + t, b);
      if (!p.has_momentum) continue;
      g = load(dgamma + t) + keep * g;
      l = load(dleft + t) + (t < last ? load(gates.eta + t + 1) * l : 0.f) + load(gates.write + t) * g;
      store(dgamma + t, g);
      store(dleft + t, l);
    }
  }
  for (int t = warp_index(); t < item.tokens; t += kTileThreads / 32) {
    float over_keep = 0, over_eta = 0;
    for (int s = lane_index(); s < t; s += 32) {
      over_keep += load(dwrite + t * p.rows + s);
      if (p.has_momentum) over_eta += load(decay_s + t * p.rows + s);
    }
    over_keep = over_lanes(over_keep);
    over_eta = over_lanes(over_eta);
    if (lane_index()) continue;
    store(dkeep + t, over_keep);
    store(deta + t, over_eta);
  }
  block_sync();

  for (int t = thread_index(); t < item.tokens; t += kTileThreads) {
    const int64_t to = gate_offset(p, item, t);
    const bool write = writes(p, item, t);
    float keep = load(dkeep + t) + load(dbeta + t) * (t ? load(p.beta + row + t - 1) : 1.f);
    if (p.has_momentum) {
      if (t) keep += load(dgamma + t) * load(p.gamma + row + t - 1);
      const float eta = load(deta + t) + load(dleft + t) * (t ? load(p.left + row + t - 1) : 1.f);
      store(p.deta + to, write ? eta : 0.f);
    }
    store(p.dalpha + to, write ? -keep : 0.f);
  }
}

constexpr int gate_bytes(int rows) { return 9 * rows * (int)sizeof(float); }

}  // namespace backward
