// backward_state.h - the gradient of writing a chunk, one chunk after another from the last of a group to the first.
//
// Carried along is dstate, the gradient for the state after the chunk. A chunk wrote rank-one terms delta_s h_s^T into
// it, so dstate gives gradients to delta, error, a and k, which go on through the inner gradient itself: through
// act' (hence act'') and through the backward pass of the norm. All of that, with what reading gave, adds up to the
// gradient for the state before the chunk.
#pragma once

#include "backward_keys.h"
#include "backward_read.h"

namespace backward {

// One thread per number: dstate begins as what the caller gives, or zero; so do the sums over chunks.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void start_dstate(Plan<Op> p) {
  const int64_t i = block_index() * kTileThreads + thread_index();
  if (i >= p.heads * p.layer) return;
  const float x = p.end ? load(p.end + i) : 0.f;
  store(p.dstate[p.part] + i, x);
  store(p.before + i / p.layer * p.state + p.part * p.layer + i % p.layer, to_op<Op>(x));
  if (p.has_reset) store(p.dfirst[p.part] + i, 0.f);
  if (p.has_norm && p.part == 0 && i < p.heads * p.D) {
    store(p.dgain + i, 0.f);
    store(p.dbias + i, 0.f);
  }
}

// From ddelta to dda, the gradient for error W2, and the part of dz that goes through act''. A block: 64 rows, 64 of
// hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void through_slope(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, p.hidden_tiles);
  const int64_t item = at.item.index, head = at.item.head;
  const Matrix<Op> k = token_matrix(p, p.k, at.item);
  float total[kTile / 8][4], sums[kTile / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kAlong>(sums, k, at.row, state_matrix(p, p.after, head, 0, 0), at.column, p.D);
  add_rows(total, sums, negative(row_factors(p, p.write_last, item, at.row)));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kAlong>(sums, k, at.row, state_matrix(p, p.after, head, 0, 1), at.column, p.D);
    add_rows(total, sums, negative(row_factors(p, p.push, item, at.row)));
  }
  each_pair(total, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    const int64_t from = (item * p.rows + row) * p.hidden + column, to = (head * p.rows + row) * p.hidden + column;
    const float2 read = load_pair(p.ddelta_read + from), z = load_pair(p.z + from), da = load_pair(p.da + from);
    x += read.x;
    y += read.y;
    store_pair(p.dda + to, x * activate(p.activation, z.x).slope, y * activate(p.activation, z.y).slope);
    store_pair(p.dz + to, x * da.x * curve(p.activation, z.x), y * da.y * curve(p.activation, z.y));
  });
}

// total -= coefficient of the row * (a times dstate), and the row's gradient for that coefficient: minus the row sums
// of what `other` gives times a dstate.
template <Summed kB, int kN, class Op, class Visit>
DEVICE_FN void through_written(float (&total)[kN][4], const Plan<Op> &p, int64_t item, const Matrix<Op> &a, int row,
                               const Matrix<Op> &dstate, int summed, const float *coefficient, float *dcoefficient,
                               Visit other) {
  float sums[kN][4];
  clear(sums);
  multiply<kAlong, kB>(sums, a, row, dstate, 0, summed);
  add_rows(total, sums, negative(row_factors(p, coefficient, item, row)));
  store_rows(p, dcoefficient, row, negative(row_dots(sums, row, 0, p.rows, other)));
}

// The whole gradient for the error; from there on to f, v and k: backward_norm.h. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void through_error(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, 1);
  const int64_t item = at.item.index, head = at.item.head, base = item * p.rows * kD;
  const Matrix<Op> a = hidden_matrix(p, p.a, item);
  auto error_pair = [&](int row, int column) { return load_pair(p.error + base + row * kD + column); };
  float total[kD / 8][4];
  clear(total);
  through_written<kAlong>(total, p, item, a, at.row, state_matrix(p, p.after, head, 1, 0), p.hidden, p.write_last,
                          p.dwrite_last + item * 2 * p.rows, error_pair);
  if (p.has_momentum)
    through_written<kAlong>(total, p, item, a, at.row, state_matrix(p, p.after, head, 1, 1), p.hidden, p.push,
                            p.dpush + item * 2 * p.rows, error_pair);
  multiply<kAlong, kAlong>(total, hidden_matrix(p, p.dda, head), at.row, state_matrix(p, p.states, item, 1, 0), 0,
                           p.hidden);
  each_pair(total, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    float *derror = p.derror + base + row * kD + column;
    const float2 read = load_pair(derror);
    store_pair(derror, read.x + x, read.y + y);
  });
}

// The whole gradient for a, and with it for z. A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void through_hidden(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, p.hidden_tiles);
  const int64_t item = at.item.index, head = at.item.head;
  const Matrix<Op> error = width_matrix(p, p.error, item);
  float total[kTile / 8][4], sums[kTile / 8][4];
  clear(total);
  clear(sums);
  multiply<kAlong, kDown>(sums, error, at.row, state_matrix(p, p.after, head, 1, 0), at.column, p.D);
  add_rows(total, sums, negative(row_factors(p, p.write_last, item, at.row)));
  if (p.has_momentum) {
    clear(sums);
    multiply<kAlong, kDown>(sums, error, at.row, state_matrix(p, p.after, head, 1, 1), at.column, p.D);
    add_rows(total, sums, negative(row_factors(p, p.push, item, at.row)));
  }
  multiply<kAlong, kDown>(total, width_matrix(p, p.df, head), at.row, state_matrix(p, p.states, item, 1, 0), at.column,
                          p.D);
  each_pair(total, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    const int64_t from = (item * p.rows + row) * p.hidden + column, to = (head * p.rows + row) * p.hidden + column;
    const float2 read = load_pair(p.da_read + from), z = load_pair(p.z + from), part = load_pair(p.dz + to);
    store_pair(p.dz + to, part.x + (x + read.x) * activate(p.activation, z.x).slope,
               part.y + (y + read.y) * activate(p.activation, z.y).slope);
  });
}

// dk. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void key_gradients(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, 1);
  const int64_t item = at.item.index, head = at.item.head;
  const Matrix<Op> delta = hidden_matrix(p, p.delta, item);
  auto k_pair = [&](int row, int column) { return token_pair(p, p.k, at.item, row, column); };
  float total[kD / 8][4];
  clear(total);
  through_written<kDown>(total, p, item, delta, at.row, state_matrix(p, p.after, head, 0, 0), p.hidden, p.write_last,
                         p.dwrite_last + (item * 2 + 1) * p.rows, k_pair);
  if (p.has_momentum)
    through_written<kDown>(total, p, item, delta, at.row, state_matrix(p, p.after, head, 0, 1), p.hidden, p.push,
                           p.dpush + (item * 2 + 1) * p.rows, k_pair);
  multiply<kAlong, kDown>(total, hidden_matrix(p, p.dz, head), at.row, state_matrix(p, p.states, item, 0, 0), 0,
                          p.hidden);
  each_pair(total, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    const float2 before = load_pair(p.dkey + (item * p.rows + row) * kD + column);
    store_token_pair(p, p.dk, at.item, row, column, x + before.x, y + before.y);
  });
}

}  // namespace backward
