// backward_norm.h - what happens to whole rows between the memory's last layer and its output: residual, inner
// LayerNorm and loss, forwards and backwards. A warp takes a row, a block 16 of them; no products.
//
// With hat = (f - mean f) rstd, the derivative of LN is rstd P, P x = x - mean(x) - hat mean(hat x), P symmetric.
#pragma once

#include "backward_plan.h"

namespace backward {

constexpr int kRowsPerBlock = 16, kRowWarps = kTileThreads / 32;

// A row's D numbers, in pairs: lane l holds columns 2 l and the next of every 64.
template <int kD>
struct Row {
  static constexpr int kPairs = kD / 64;
  float2 pair[kPairs];
};
DEVICE_FN int row_column(int i) { return i * 64 + lane_index() * 2; }

template <int kD, class Visit>
DEVICE_FN Row<kD> make_row(Visit visit) {  // visit(i, column) gives a pair
  Row<kD> row;
  UNROLL for (int i = 0; i < Row<kD>::kPairs; i++) row.pair[i] = visit(i, row_column(i));
  return row;
}
template <int kD, class Number>
DEVICE_FN void store_row(Number *to, const Row<kD> &row) {
  UNROLL for (int i = 0; i < Row<kD>::kPairs; i++) store_pair(to + row_column(i), row.pair[i].x, row.pair[i].y);
}
// The mean of x, and of x times y, over the row.
template <int kD>
DEVICE_FN float mean(const Row<kD> &x) {
  float total = 0;
  UNROLL for (const float2 &p : x.pair) total += p.x + p.y;
  return over_lanes(total) * (1.f / kD);
}
template <int kD>
DEVICE_FN float mean(const Row<kD> &x, const Row<kD> &y) {
  float total = 0;
  UNROLL for (int i = 0; i < Row<kD>::kPairs; i++) total += x.pair[i].x * y.pair[i].x + x.pair[i].y * y.pair[i].y;
  return over_lanes(total) * (1.f / kD);
}
// x - shift - y scale
template <int kD>
DEVICE_FN Row<kD> without(const Row<kD> &x, float shift, const Row<kD> &y, float scale) {
  return make_row<kD>([&](int i, int) {
    return float2{x.pair[i].x - shift - y.pair[i].x * scale, x.pair[i].y - shift - y.pair[i].y * scale};
  });
}
template <int kD>
DEVICE_FN Row<kD> times(const Row<kD> &x, const Row<kD> &y, float scale) {
  return make_row<kD>([&](int i, int) {
    return float2{x.pair[i].x * y.pair[i].x * scale, x.pair[i].y * y.pair[i].y * scale};
  });
}
template <int kD>
DEVICE_FN Row<kD> times(const Row<kD> &x, float scale) {
  return make_row<kD>([&](int i, int) { return float2{x.pair[i].x * scale, x.pair[i].y * scale}; });
}
// rstd P x
template <int kD>
DEVICE_FN Row<kD> through_norm(const Row<kD> &x, const Row<kD> &hat, float rstd) {
  return times(without(x, mean(x), hat, mean(x, hat)), rstd);
}

// f becomes hat; returns rstd. The variance is taken from centred values.
template <int kD>
DEVICE_FN float normalise(Row<kD> &f) {
  f = without(f, mean(f), f, 0.f);
  const float rstd = inverse_square_root(mean(f, f) + 1e-6f);
  f = times(f, rstd);
  return rstd;
}

template <int kD, class Op>
DEVICE_FN Row<kD> token_row(const Plan<Op> &p, const Op *x, const Item &item, int row) {
  return make_row<kD>([&](int, int column) { return token_pair(p, x, item, row, column); });
}
template <int kD, class Number>
DEVICE_FN Row<kD> load_row(const Number *from) {
  return make_row<kD>([&](int, int column) { return load_pair(from + column); });
}

// M(k) - v at hat, or at f without norm.
template <int kD, class Op>
DEVICE_FN Row<kD> loss_error(const Plan<Op> &p, const Item &item, int row, const Row<kD> &hat, const Row<kD> &gain) {
  return make_row<kD>([&](int i, int column) {
    const float2 v = token_pair(p, p.v, item, row, column);
    float2 k{0, 0}, bias{0, 0};
    if (p.residual) k = token_pair(p, p.k, item, row, column);
    if (p.has_norm) bias = load_pair(p.bias + item.h * kD + column);
    return float2{hat.pair[i].x * gain.pair[i].x + bias.x + k.x - v.x,
                  hat.pair[i].y * gain.pair[i].y + bias.y + k.y - v.y};
  });
}
template <int kD, class Op>
DEVICE_FN Row<kD> gain_row(const Plan<Op> &p, const Item &item) {
  if (p.has_norm) return load_row<kD>(p.gain + item.h * kD);
  return make_row<kD>([](int, int) { return float2{1, 1}; });
}

// A block's item, and its rows: visit(row), row by row for each warp.
template <class Op>
DEVICE_FN Item row_item(const Plan<Op> &p, int64_t first_item) {
  return item_at(p, first_item + block_index() / (p.rows / kRowsPerBlock));
}
template <class Op, class Visit>
DEVICE_FN void each_row(const Plan<Op> &p, Visit visit) {
  const int first = (int)(block_index() % (p.rows / kRowsPerBlock)) * kRowsPerBlock;
  for (int r = warp_index(); r < kRowsPerBlock; r += kRowWarps) visit(first + r);
}

// Sums over a block's rows, for the gradients of gain and bias. Every thread calls `finish`.
template <int kD>
struct ColumnSums {
  Row<kD> gain, bias;

  METHOD ColumnSums() { gain = bias = make_row<kD>([](int, int) { return float2{0, 0}; }); }
  METHOD void add(const Row<kD> &dgain, const Row<kD> &dbias) {
    gain = without(gain, 0.f, dgain, -1.f);
    bias = without(bias, 0.f, dbias, -1.f);
  }
  METHOD void finish(float *out) {  // [2, D]
    float *exchange = (float *)shared_memory();  // [warps, 2, D]
    store_row(exchange + warp_index() * 2 * kD, gain);
    store_row(exchange + warp_index() * 2 * kD + kD, bias);
    block_sync();
    for (int c = thread_index(); c < 2 * kD; c += kTileThreads) {
      float total = 0;
      for (int w = 0; w < kRowWarps; w++) total += load(exchange + w * 2 * kD + c);
      store(out + c, total);
    }
  }
};
constexpr int row_bytes(int D) { return kRowWarps * 2 * D * (int)sizeof(float); }

// Partial sums of `part`: 0 reading, 1 writing.
template <class Op>
DEVICE_FN float *norm_partial(const Plan<Op> &p, int64_t first_item, int part) {
  const int64_t block = first_item * (p.rows / kRowsPerBlock) + block_index();
  return p.dnorm + (block * 2 + part) * 2 * p.D;
}

// From f, in derror, to the error: the inner loss' gradient with respect to f.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void key_error(Plan<Op> p) {
  const Item item = row_item(p, p.step * p.heads);
  const Row<kD> gain = gain_row<kD>(p, item);
  each_row(p, [&](int row) {
    const int64_t at = item.index * p.rows + row;
    Row<kD> hat = load_row<kD>(p.derror + at * kD);
    const float rstd = p.has_norm ? normalise(hat) : 1.f;
    Row<kD> g = times(loss_error(p, item, row, hat, gain), gain, 2.f);
    if (p.has_norm) {
      g = through_norm(g, hat, rstd);
      store_row(p.hat + at * kD, hat);
      if (lane_index() == 0) store(p.rstd + at, rstd);
    }
    store_row(p.error + at * kD, g);
  });
}

// From dy to du2; u2 in derror.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_output(Plan<Op> p) {
  const Item item = row_item(p, 0);
  const Row<kD> gain = gain_row<kD>(p, item);
  ColumnSums<kD> sums;
  each_row(p, [&](int row) {
    const int64_t at = item.index * p.rows + row;
    Row<kD> dy = token_row<kD>(p, p.dy, item, row);
    if (p.has_norm) {
      Row<kD> hat = load_row<kD>(p.derror + at * kD);
      const float rstd = normalise(hat);
      sums.add(times(dy, hat, 1.f), dy);
      dy = through_norm(times(dy, gain, 1.f), hat, rstd);
    }
    store_row(p.du2 + at * kD, dy);
  });
  if (p.has_norm) sums.finish(norm_partial(p, 0, 0));
}

// From derror, u / 2 below, to the gradients for f, v, k, gain and bias. The error is 2 rstd P(g), g = gain (M(k) - v),
// where both P and g contain hat, which is rstd (f - mean f).
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void through_output(Plan<Op> p) {
  const Item item = row_item(p, p.step * p.heads);
  const Row<kD> gain = gain_row<kD>(p, item);
  ColumnSums<kD> sums;
  each_row(p, [&](int row) {
    const int64_t at = item.index * p.rows + row;
    const Row<kD> u = times(load_row<kD>(p.derror + at * kD), 2.f);
    Row<kD> df = u, dm = u;  // dm: the gradient for M(k)
    if (p.has_norm) {
      const Row<kD> hat = load_row<kD>(p.hat + at * kD), m = loss_error(p, item, row, hat, gain);
      const Row<kD> g = times(m, gain, 1.f);
      const float rstd = load(p.rstd + at), g_along = mean(g, hat), u_along = mean(u, hat), u_mean = mean(u);
      const Row<kD> dg = times(without(u, u_mean, hat, u_along), rstd);
      dm = times(dg, gain, 1.f);
      sums.add(without(times(dg, m, 1.f), 0.f, times(dm, hat, 1.f), -1.f), dm);
      // The gradient for hat: through g, and through P on either side.
      const Row<kD> dhat =
          without(without(times(dm, gain, 1.f), 0.f, u, rstd * g_along), 0.f, g, rstd * u_along);
      // The gradient for rstd, per number, is the mean of u P(g); rstd falls with hat.
      const float drstd = mean(u, g) - u_mean * mean(g) - u_along * g_along;
      df = times(without(dhat, mean(dhat), hat, mean(dhat, hat) + rstd * drstd), rstd);
    }
    store_row(p.df + (item.head * p.rows + row) * kD, df);
    UNROLL for (int i = 0; i < Row<kD>::kPairs; i++) {
      const int column = row_column(i);
      store_token_pair(p, p.dv, item, row, column, -dm.pair[i].x, -dm.pair[i].y);
      if (!p.residual) continue;
      const float2 before = load_pair(p.dkey + at * kD + column);
      store_pair(p.dkey + at * kD + column, before.x + dm.pair[i].x, before.y + dm.pair[i].y);
    }
  });
  if (p.has_norm) sums.finish(norm_partial(p, p.step * p.heads, 1));
}

// gain and bias: adds a group's partial sums in the order of its tokens. One thread per column of a head.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void add_dnorm(Plan<Op> p) {
  const int64_t i = block_index() * kTileThreads + thread_index(), parts = p.rows / kRowsPerBlock * 2;
  if (i >= p.heads * p.D) return;
  float gain = load(p.dgain + i), bias = load(p.dbias + i);
  for (int chunk = 0; chunk < p.chunks; chunk++) {
    const float *partial = p.dnorm + (chunk * p.heads + i / p.D) * parts * 2 * p.D + i % p.D;
    for (int part = 0; part < parts; part++) {
      gain += load(partial + part * 2 * p.D);
      bias += load(partial + part * 2 * p.D + p.D);
    }
  }
  store(p.dgain + i, gain);
  store(p.dbias + i, bias);
}

}  // namespace backward
