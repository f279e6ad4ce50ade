// backward_keys.h - recomputes the key side of a group of chunks from its boundary: what forward's state pass computed,
// and the states before each chunk. One chunk after another, four kernels each.
#pragma once

#include "backward_activation.h"
#include "backward_plan.h"

namespace backward {

// One thread per number of a head's state: the boundary becomes the running state and the first chunk's.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void start_group(Plan<Op> p) {
  const int64_t i = block_index() * kTileThreads + thread_index();
  if (i >= p.heads * p.state) return;
  const float x = load(p.boundary + i);
  store(p.running + i, x);
  store(p.states + i, to_op<Op>(x));
}

// z = K W1^T, a = act(z). A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void key_hidden(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, p.hidden_tiles);
  float sums[kTile / 8][4];
  clear(sums);
  multiply<kAlong, kAlong>(sums, token_matrix(p, p.k, at.item), at.row,
                           state_matrix(p, p.states, at.item.index, 0, 0), at.column, p.D);
  const int64_t base = at.item.index * p.rows * p.hidden;
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    const int64_t to = base + row * p.hidden + column;
    store_pair(p.z + to, x, y);
    store_pair(p.a + to, activate(p.activation, x).value, activate(p.activation, y).value);
  });
}

// f = a W2^T, into derror; from there to the error: backward_norm.h. A block: 64 whole rows.
template <class Op, int kD>
KERNEL LAUNCH_BOUNDS(kTileThreads) void key_output(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, 1);
  const int64_t item = at.item.index;
  float f[kD / 8][4];
  clear(f);
  multiply<kAlong, kAlong>(f, hidden_matrix(p, p.a, item), at.row, state_matrix(p, p.states, item, 1, 0), 0, p.hidden);
  each_pair(f, at.row, 0, p.rows, [&](int, int row, int column, float x, float y) {
    store_pair(p.derror + (item * p.rows + row) * kD + column, x, y);
  });
}

// da = error W2, delta = da act'(z). A block: 64 rows, 64 of hidden.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void key_delta(Plan<Op> p) {
  const Place at = place(p, p.step * p.heads, p.hidden_tiles);
  float sums[kTile / 8][4];
  clear(sums);
  multiply<kAlong, kDown>(sums, width_matrix(p, p.error, at.item.index), at.row,
                          state_matrix(p, p.states, at.item.index, 1, 0), at.column, p.D);
  const int64_t base = at.item.index * p.rows * p.hidden;
  each_pair(sums, at.row, at.column, p.rows, [&](int, int row, int column, float x, float y) {
    const int64_t to = base + row * p.hidden + column;
    const float2 z = load_pair(p.z + to);
    store_pair(p.da + to, x, y);
    store_pair(p.delta + to, x * activate(p.activation, z.x).slope, y * activate(p.activation, z.y).slope);
  });
}

// A block of a kernel over states: 64 x 64 of one layer of one head.
struct StatePlace {
  int64_t head;
  int tile, layer, row, column;
};

template <class Op>
DEVICE_FN StatePlace state_place(const Plan<Op> &p) {
  const int tiles = 2 * p.layer_tiles, tile = (int)(block_index() % tiles), layer = tile / p.layer_tiles;
  const int across = (layer ? p.hidden : p.D) / kTile, in_layer = tile % p.layer_tiles;
  return StatePlace{block_index() / tiles, tile, layer, in_layer / across * kTile, in_layer % across * kTile};
}

template <class Op>
DEVICE_FN int64_t state_offset(const Plan<Op> &p, int layer, int row, int column) {
  return layer * p.layer + (int64_t)row * (layer ? p.hidden : p.D) + column;
}

// sums = delta^T diag(scale) input of a layer: what a chunk writes.
template <class Op>
DEVICE_FN void written(float (&sums)[kTile / 8][4], const Plan<Op> &p, const Item &item, const StatePlace &at,
                       const float *scale) {
  clear(sums);
  if (at.layer)
    multiply<kDown, kDown>(sums, scaled_rows(width_matrix(p, p.error, item.index), scale), at.row,
                           hidden_matrix(p, p.a, item.index), at.column, p.rows);
  else
    multiply<kDown, kDown>(sums, scaled_rows(hidden_matrix(p, p.delta, item.index), scale), at.row,
                           token_matrix(p, p.k, item), at.column, p.rows);
}

// The running state after `chunk`, which is not the group's last; the state before the next one is kept.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void next_state(Plan<Op> p) {
  const StatePlace at = state_place(p);
  const Item item = item_at(p, p.step * p.heads + at.head), next = item_at(p, item.index + p.heads);
  const int64_t coefficients = item.index * p.rows;
  const bool again = p.has_reset && load(p.reset + (int64_t)item.b * p.T + next.start);
  const float beta = load(p.beta + coefficients + item.tokens - 1);
  float gamma = 0, left = 0;
  if (p.has_momentum) {
    gamma = load(p.gamma + coefficients + item.tokens - 1);
    left = load(p.left + coefficients + item.tokens - 1);
  }
  float weights[kTile / 8][4], momentum[kTile / 8][4];
  written(weights, p, item, at, p.write_last + coefficients);
  if (p.has_momentum) written(momentum, p, item, at, p.push + coefficients);
  UNROLL for (int half = 0; half < 2; half++) {
    UNROLL for (int i = 0; i < kTile / 8; i++) {
      const int64_t offset =
          state_offset(p, at.layer, at.row + sum_row(half), at.column + i * 8 + lane_index() % 4 * 2);
      const int64_t w = at.head * p.state + offset, s = w + 2 * p.layer, kept = (next.index - at.head) * p.state;
      const int64_t restart = at.head * p.layer + offset - at.layer * p.layer;
      const float *dw = weights[i] + 2 * half, *ds = momentum[i] + 2 * half;
      const float2 old_w = load_pair(p.running + w);
      float2 new_w{beta * old_w.x - dw[0], beta * old_w.y - dw[1]};
      if (p.has_momentum) {
        const float2 old_s = load_pair(p.running + s);
        new_w = float2{new_w.x + gamma * old_s.x, new_w.y + gamma * old_s.y};
        float2 new_s{left * old_s.x - ds[0], left * old_s.y - ds[1]};
        if (again) new_s = load_pair(p.first[2 + at.layer] + restart);
        store_pair(p.running + s, new_s.x, new_s.y);
        store_pair(p.states + kept + s, new_s.x, new_s.y);
      }
      if (again) new_w = load_pair(p.first[at.layer] + restart);
      store_pair(p.running + w, new_w.x, new_w.y);
      store_pair(p.states + kept + w, new_w.x, new_w.y);
    }
  }
}

}  // namespace backward
