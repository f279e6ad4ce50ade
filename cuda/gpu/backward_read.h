// backward_read.h - the gradient of reading a chunk, for all chunks of a group at once: what backward of y = M_t(q)
// gives to the queries, the coefficients, the key side (a, delta, error, k) and, later in backward_state.h, the states.
//
// Layer by layer the read is u_t = beta_t W x_t + gamma_t S x_t - sum_s write_ts (x_t . h_s) delta_s: `scores` are
// x_t . h_s, `masked` has the write coefficients multiplied in.
#pragma once

#include "backward_activation.h"
#include "backward_plan.h"

namespace backward {

// What write is at (t, s) and (t, s + 1), with theta.
template <class Op>
DEVICE_FN float2 write_pair(const Plan<Op> &p, int64_t item, int row, int column) {
  const float2 decay = load_pair(p.decay_w + (item * p.rows + row) * p.rows + column);
  const float2 theta = load_pair(p.theta_row + item * p.rows + column);
  return float2{decay.x * theta.x, decay.y * theta.y};
}

// scores = X H^T and masked: layer 0 of queries and keys, layer 1 of x and a. A block: 64 x 64 tokens.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_scores(Plan<Op> p) {
  const Place at = place(p, 0, p.row_tiles);
  const int64_t item = at.item.index;
  float sums[kTile / 8][4];
  clear(sums);
  if (p.part)
    multiply<kAlong, kAlong>(sums, hidden_matrix(p, p.x, item), at.row, hidden_matrix(p, p.a, item), at.column,
                             p.hidden);
  else
    multiply<kAlong, kAlong>(sums, token_matrix(p, p.q, at.item), at.row, token_matrix(p, p.k, at.item), at.column,
                             p.D);
  Op *scores = p.part ? p.scores2 : p.scores1, *masked = p.part ? p.masked2 : p.masked1;
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    if (column >= p.rows) return;
    const int64_t to = (item * p.rows + row) * p.rows + column;
    const float2 write = write_pair(p, item, row, column);
    store_pair(scores + to, x, y);
    store_pair(masked + to, write.x * x, write.y * y);
  });
}

// total += factor of the row * sums.
template <int kN>
DEVICE_FN void add_rows(float (&total)[kN][4], const float (&sums)[kN][4], const RowPair &factor) {
  UNROLL for (int j = 0; j < kN; j++)
    UNROLL for (int i = 0; i < 4; i++) total[j][i] += factor.half[i / 2] * sums[j][i];
}

// One coefficient for both rows of this thread; zero past the end.
template <class Op>
DEVICE_FN RowPair row_factors(const Plan<Op> &p, const float *coefficient, int64_t item, int row) {
  RowPair factor;
  UNROLL for (int half = 0; half < 2; half++) {
    const int r = row + sum_row(half);
    factor.half[half] = r < p.rows ? load(coefficient + item * p.rows + r) : 0.f;
  }
  return factor;
}
DEVICE_FN RowPair negative(const RowPair &x) { return RowPair{{-x.half[0], -x.half[1]}}; }

// u1, x = act(u1) and its slope. A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_hidden(Plan<Op> p) {
  const Place at = place(p, 0, p.hidden_tiles);
  const int64_t item = at.item.index;
  const Matrix<Op> q = token_matrix(p, p.q, at.item);
  float total[kTile / 8][4], sums[kTile / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kAlong>(sums, q, at.row, state_matrix(p, p.states, item, 0, 0), at.column, p.D);
  add_rows(total, sums, row_factors(p, p.beta, item, at.row));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kAlong>(sums, q, at.row, state_matrix(p, p.states, item, 0, 1), at.column, p.D);
    add_rows(total, sums, row_factors(p, p.gamma, item, at.row));
  }
  clear(sums);
  multiply<kAlong, kDown>(sums, square_matrix(p, p.masked1, item), at.row, hidden_matrix(p, p.delta, item), at.column,
                          p.rows);
  add_rows(total, sums, RowPair{{-1, -1}});
  each_pair(total, at.row, at.column, p.rows, [&](int, int row, int column, float u, float w) {
    const int64_t to = (item * p.rows + row) * p.hidden + column;
    const Activated first = activate(p.activation, u), second = activate(p.activation, w);
    store_pair(p.x + to, first.value, second.value);
    store_pair(p.slope + to, first.slope, second.slope);
  });
}

// u2, which only the norm needs again, into derror. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_sums(Plan<Op> p) {
  const Place at = place(p, 0, 1);
  const int64_t item = at.item.index;
  const Matrix<Op> x = hidden_matrix(p, p.x, item);
  float total[kD / 8][4], sums[kD / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kAlong>(sums, x, at.row, state_matrix(p, p.states, item, 1, 0), 0, p.hidden);
  add_rows(total, sums, row_factors(p, p.beta, item, at.row));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kAlong>(sums, x, at.row, state_matrix(p, p.states, item, 1, 1), 0, p.hidden);
    add_rows(total, sums, row_factors(p, p.gamma, item, at.row));
  }
  clear(sums);
  multiply<kAlong, kDown>(sums, square_matrix(p, p.masked2, item), at.row, width_matrix(p, p.error, item), 0, p.rows);
  add_rows(total, sums, RowPair{{-1, -1}});
  each_pair(total, at.row, 0, p.rows, [&](int, int row, int column, float y, float z) {
    store_pair(p.derror + (item * p.rows + row) * kD + column, y, z);
  });
}

// dscores = -write (dU delta^T), and what this layer gives to dwrite; layer 1 comes first. A block: 64 x 64 tokens.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_dscores(Plan<Op> p) {
  const Place at = place(p, 0, p.row_tiles);
  const int64_t item = at.item.index;
  float sums[kTile / 8][4];
  clear(sums);
  if (p.part)
    multiply<kAlong, kAlong>(sums, width_matrix(p, p.du2, item), at.row, width_matrix(p, p.error, item), at.column,
                             p.D);
  else
    multiply<kAlong, kAlong>(sums, hidden_matrix(p, p.du1, item), at.row, hidden_matrix(p, p.delta, item), at.column,
                             p.hidden);
  const Op *scores = p.part ? p.scores2 : p.scores1;
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    if (column >= p.rows) return;
    const int64_t to = (item * p.rows + row) * p.rows + column;
    const float2 write = write_pair(p, item, row, column), score = load_pair(scores + to);
    float2 before{0, 0};
    if (!p.part) before = load_pair(p.dwrite + to);
    store_pair(p.dscores + to, -write.x * x, -write.y * y);
    store_pair(p.dwrite + to, before.x - score.x * x, before.y - score.y * y);
  });
}

// sum over the columns of x * sums for both rows of this thread; visit(row, column) gives two of x.
template <int kN, class Visit>
DEVICE_FN RowPair row_dots(float (&sums)[kN][4], int row, int column, int rows, Visit visit) {
  RowPair dots{{0, 0}};
  each_pair(sums, row, column, rows, [&](int half, int r, int c, float x, float y) {
    const float2 other = visit(r, c);
    dots.half[half] += x * other.x + y * other.y;
  });
  UNROLL for (int half = 0; half < 2; half++) dots.half[half] = over_row(dots.half[half]);
  return dots;
}

template <class Op>
DEVICE_FN void store_rows(const Plan<Op> &p, float *out, int row, const RowPair &x) {
  UNROLL for (int half = 0; half < 2; half++) {
    const int r = row + sum_row(half);
    if (lane_index() % 4 == 0 && r < p.rows) store(out + r, x.half[half]);
  }
}

// dx, du1 and the read's gradient for a. A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_dhidden(Plan<Op> p) {
  const Place at = place(p, 0, p.hidden_tiles);
  const int64_t item = at.item.index, base = item * p.rows * p.hidden;
  const int64_t partial = (item * (p.hidden_tiles + 1) + at.column / kTile) * p.rows;
  const Matrix<Op> du2 = width_matrix(p, p.du2, item), x = hidden_matrix(p, p.x, item);
  auto x_pair = [&](int row, int column) { return load_pair(p.x + base + row * p.hidden + column); };
  float total[kTile / 8][4], sums[kTile / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kDown>(sums, du2, at.row, state_matrix(p, p.states, item, 1, 0), at.column, p.D);
  add_rows(total, sums, row_factors(p, p.beta, item, at.row));
  store_rows(p, p.dbeta + partial, at.row, row_dots(sums, at.row, at.column, p.rows, x_pair));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kDown>(sums, du2, at.row, state_matrix(p, p.states, item, 1, 1), at.column, p.D);
    add_rows(total, sums, row_factors(p, p.gamma, item, at.row));
    store_rows(p, p.dgamma + partial, at.row, row_dots(sums, at.row, at.column, p.rows, x_pair));
  }
  const Matrix<Op> dscores = square_matrix(p, p.dscores, item);
  multiply<kAlong, kDown>(total, dscores, at.row, hidden_matrix(p, p.a, item), at.column, p.rows);
  each_pair(total, at.row, at.column, p.rows, [&](int, int row, int column, float first, float second) {
    const int64_t to = base + row * p.hidden + column;
    const float2 slope = load_pair(p.slope + to);
    store_pair(p.du1 + to, first * slope.x, second * slope.y);
  });
  clear(sums);
  multiply<kDown, kDown>(sums, dscores, at.row, x, at.column, p.rows);
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float first, float second) {
    store_pair(p.da_read + base + row * p.hidden + column, first, second);
  });
}

// dq, and what reading gives to k. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_dqueries(Plan<Op> p) {
  const Place at = place(p, 0, 1);
  const int64_t item = at.item.index, base = item * p.rows * kD;
  const int64_t partial = (item * (p.hidden_tiles + 1) + p.hidden_tiles) * p.rows;
  const Matrix<Op> du1 = hidden_matrix(p, p.du1, item), dscores = square_matrix(p, p.dscores, item);
  auto q_pair = [&](int row, int column) { return token_pair(p, p.q, at.item, row, column); };
  float total[kD / 8][4], sums[kD / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kDown>(sums, du1, at.row, state_matrix(p, p.states, item, 0, 0), 0, p.hidden);
  add_rows(total, sums, row_factors(p, p.beta, item, at.row));
  store_rows(p, p.dbeta + partial, at.row, row_dots(sums, at.row, 0, p.rows, q_pair));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kDown>(sums, du1, at.row, state_matrix(p, p.states, item, 0, 1), 0, p.hidden);
    add_rows(total, sums, row_factors(p, p.gamma, item, at.row));
    store_rows(p, p.dgamma + partial, at.row, row_dots(sums, at.row, 0, p.rows, q_pair));
  }
  multiply<kAlong, kDown>(total, dscores, at.row, token_matrix(p, p.k, at.item), 0, p.rows);
  each_pair(total, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    float2 dy{0, 0};
    if (p.residual) dy = token_pair(p, p.dy, at.item, row, column);
    store_token_pair(p, p.dq, at.item, row, column, x + dy.x, y + dy.y);
  });
  clear(sums);
  multiply<kDown, kDown>(sums, dscores, at.row, token_matrix(p, p.q, at.item), 0, p.rows);
  each_pair(sums, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    store_pair(p.dkey + base + row * kD + column, x, y);
  });
}

// What reading gives to the error. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_derror(Plan<Op> p) {
  const Place at = place(p, 0, 1);
  const int64_t item = at.item.index;
  float sums[kD / 8][4];
  clear(sums);
  multiply<kDown, kDown>(sums, square_matrix(p, p.masked2, item), at.row, width_matrix(p, p.du2, item), 0, p.rows);
  each_pair(sums, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    store_pair(p.derror + (item * p.rows + row) * kD + column, -x, -y);
  });
}

// What reading gives to delta. A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void read_ddelta(Plan<Op> p) {
  const Place at = place(p, 0, p.hidden_tiles);
  const int64_t item = at.item.index;
  float sums[kTile / 8][4];
  clear(sums);
  multiply<kDown, kDown>(sums, square_matrix(p, p.masked1, item), at.row, hidden_matrix(p, p.du1, item), at.column,
                         p.rows);
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    store_pair(p.ddelta_read + (item * p.rows + row) * p.hidden + column, -x, -y);
  });
}

}  // namespace backward
