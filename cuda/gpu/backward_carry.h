// backward_carry.h - carries the gradient for the state from behind a chunk to before it.
#pragma once

#include "backward_state.h"

namespace backward {

// The sum of x over the block, in thread 0, in a fixed order. Every thread calls it.
DEVICE_FN float over_block(float x) {
  float *exchange = (float *)shared_memory();
  x = over_lanes(x);
  block_sync();  // what was in shared memory has been used
  if (lane_index() == 0) store(exchange + warp_index(), x);
  block_sync();
  float total = 0;
  for (int w = 0; w < kTileThreads / 32; w++) total += load(exchange + w);
  return total;
}

// sums += du^T diag(coefficient) input of a layer's read: what reading gives to W (beta) or S (gamma).
template <class Op>
DEVICE_FN void add_read(float (&sums)[kTile / 8][4], const Plan<Op> &p, const Item &item, const StatePlace &at,
                        const float *coefficient) {
  const float *scale = coefficient + item.index * p.rows;
  if (at.layer)
    multiply<kDown, kDown>(sums, scaled_rows(width_matrix(p, p.du2, item.index), scale), at.row,
                           hidden_matrix(p, p.x, item.index), at.column, p.rows);
  else
    multiply<kDown, kDown>(sums, scaled_rows(hidden_matrix(p, p.du1, item.index), scale), at.row,
                           token_matrix(p, p.q, item), at.column, p.rows);
}

template <class Op>
DEVICE_FN void put_dstate(const Plan<Op> &p, int part, int64_t offset, Op *rounded, float2 x, bool began) {
  if (began) {
    const float2 before = load_pair(p.dfirst[part] + offset);
    store_pair(p.dfirst[part] + offset, before.x + x.x, before.y + x.y);
    x = float2{0, 0};
  }
  store_pair(p.dstate[part] + offset, x.x, x.y);
  store_pair(rounded, x.x, x.y);
}

// dstate before the chunk from dstate after it, and the gradients for the chunk's last beta, gamma and left. Where a
// document begins with the chunk, the gradient goes to the first state instead. A block: 64 x 64 of a layer.
template <class Op>
KERNEL LAUNCH_BOUNDS(kTileThreads) void carry_dstate(Plan<Op> p) {
  const StatePlace at = state_place(p);
  const Item item = item_at(p, p.step * p.heads + at.head);
  const int64_t last = item.index * p.rows + item.tokens - 1;
  const bool began = p.has_reset && load(p.reset + (int64_t)item.b * p.T + item.start);
  const float beta = load(p.beta + last);
  float gamma = 0, left = 0;
  if (p.has_momentum) {
    gamma = load(p.gamma + last);
    left = load(p.left + last);
  }
  float dweights[kTile / 8][4], dmomentum[kTile / 8][4];
  clear(dweights);
  clear(dmomentum);
  if (at.layer) {
    multiply<kDown, kDown>(dweights, width_matrix(p, p.error, item.index), at.row, hidden_matrix(p, p.dda, at.head),
                           at.column, p.rows);
    multiply<kDown, kDown>(dweights, width_matrix(p, p.df, at.head), at.row, hidden_matrix(p, p.a, item.index),
                           at.column, p.rows);
  } else {
    multiply<kDown, kDown>(dweights, hidden_matrix(p, p.dz, at.head), at.row, token_matrix(p, p.k, item), at.column,
                           p.rows);
  }
  add_read(dweights, p, item, at, p.beta);
  if (p.has_momentum) add_read(dmomentum, p, item, at, p.gamma);

  float dbeta = 0, dgamma = 0, dleft = 0;
  UNROLL for (int half = 0; half < 2; half++) {
    UNROLL for (int i = 0; i < kTile / 8; i++) {
      const int64_t offset =
          state_offset(p, at.layer, at.row + sum_row(half), at.column + i * 8 + lane_index() % 4 * 2);
      const int64_t in_layer = at.head * p.layer + offset - at.layer * p.layer, in_head = at.head * p.state + offset;
      const int64_t before = item.index * p.state + offset;
      const float2 dw = load_pair(p.dstate[at.layer] + in_layer), w = load_pair(p.states + before);
      dbeta += dw.x * w.x + dw.y * w.y;
      float2 new_dw{beta * dw.x + dweights[i][2 * half], beta * dw.y + dweights[i][2 * half + 1]};
      if (p.has_momentum) {
        const float2 ds = load_pair(p.dstate[2 + at.layer] + in_layer), s = load_pair(p.states + before + 2 * p.layer);
        dgamma += dw.x * s.x + dw.y * s.y;
        dleft += ds.x * s.x + ds.y * s.y;
        const float2 new_ds{left * ds.x + gamma * dw.x + dmomentum[i][2 * half],
                            left * ds.y + gamma * dw.y + dmomentum[i][2 * half + 1]};
        put_dstate(p, 2 + at.layer, in_layer, p.before + in_head + 2 * p.layer, new_ds, began);
      }
      put_dstate(p, at.layer, in_layer, p.before + in_head, new_dw, began);
    }
  }
  float *ends = p.dends + (item.index * 2 * p.layer_tiles + at.tile) * 3;
  const float sums[3] = {over_block(dbeta), over_block(dgamma), over_block(dleft)};
  if (thread_index() == 0)
    for (int i = 0; i < 3; i++) store(ends + i, sums[i]);
}

}  // namespace backward
