// backward_plan.h - what every backward kernel is given: sizes, the caller's tensors, and the workspace.
//
// Backward goes through the groups of `keep_every` chunks from the last to the first and keeps what it needs of one
// group only. An item is one chunk of the group for one sample and head: item = chunk_in_group * heads + b * H + h.
// Names follow the derivation in neuralmem/ops/neural_memory/README.md for two layers, a leading d for a gradient:
//
//   key side    z = K W1^T   a = act(z)   f = a W2^T   error E = delta of layer 2   da = E W2   delta = da act'(z)
//   query side  u1 = (Q W1_t^T)_t   x = act(u1)   u2 = (x W2_t^T)_t   y = q + LN(u2) gain + bias
//
// Rows of a chunk are padded to `rows`, a multiple of 16, with coefficients of zero, so that padded rows take part in
// nothing. What is only a factor of products is kept in Op, as forward rounds it too; sums are kept in fp32.
#pragma once

#include "../launchers.h"
#include "backward_tile.h"

namespace backward {

template <class Op>
struct Plan {
  int B, T, H, D, hidden, chunk, rows;  // rows: chunk, padded
  int activation;
  bool residual, has_momentum, has_norm, has_reset;
  int64_t heads;   // B * H
  int64_t layer;   // numbers of one layer, hidden * D
  int64_t state;   // numbers of a state: W1 [hidden, D], W2 [D, hidden], then momentum S1, S2 alike
  int row_tiles, hidden_tiles, layer_tiles;  // tiles in rows, in hidden, in [hidden, D]
  int first_chunk, chunks;  // of the group that is worked on
  int step;        // chunk of the group, for kernels that take one at a time
  int part;        // 0 and 1: weights of layer 1 and 2, 2 and 3: momentum

  const Op *q, *k, *v, *dy;
  const float *theta, *eta, *alpha, *gain, *bias;
  const float *first[4];  // what a reset goes back to: W1, W2, S1, S2
  const uint8_t *write_mask, *reset;
  const float *boundary;  // of the group, [heads, state]
  const float *end;       // the caller's gradient for a part of the last state, or NULL
  Op *dq, *dk, *dv;
  float *dtheta, *deta, *dalpha, *dgain, *dbias;
  float *dstate[4];       // dW1, dW2, dS1, dS2, carried from the end to the start in the caller's own outputs
  float *dfirst[4];

  // Per item, fp32.
  float *decay_w, *decay_s;                        // [rows, rows]: D and E of the README, without theta
  float *dwrite;                                   // [rows, rows]
  float *theta_row, *beta, *gamma, *left, *write_last, *push;  // [rows]; left: what is left of S_0
  float *hat, *rstd;                               // [rows, D], [rows]: the normalised f
  float *derror, *dkey;                            // [rows, D]: gradients so far; derror holds f and u2 before
  float *dbeta, *dgamma;                           // [hidden / 64 + 1, rows]: partial sums
  float *dwrite_last, *dpush;                      // [2, rows]: partial sums
  float *dends;                                    // [state tiles, 3]: partial sums for the last beta, gamma, left
  float *dnorm;                                    // [rows / 16, 2, 2, D]: partial sums for gain and bias
  // Per item, Op.
  Op *states;                                      // [state]: before the chunk
  Op *z, *a, *da, *delta, *x, *slope, *du1, *da_read, *ddelta_read;  // [rows, hidden]; slope: act'(u1)
  Op *error, *du2;                                 // [rows, D]
  Op *scores1, *masked1, *scores2, *masked2, *dscores;  // [rows, rows]
  // Per head.
  float *running;                                  // [state], fp32: the state that is carried forward
  Op *before, *after;                              // [state]: dstate, rounded, before and after the chunk `step`
  Op *dda, *dz;                                    // [rows, hidden]
  Op *df;                                          // [rows, D]
};

// What an item is: its tokens and where they start.
struct Item {
  int64_t index, head;  // head: b * H + h
  int b, h, start, tokens;
};

template <class Op>
DEVICE_FN Item item_at(const Plan<Op> &p, int64_t index) {
  const int64_t head = index % p.heads;
  const int start = (p.first_chunk + (int)(index / p.heads)) * p.chunk;
  const int tokens = p.T - start < p.chunk ? p.T - start : p.chunk;
  return Item{index, head, (int)(head / p.H), (int)(head % p.H), start, tokens};
}

// Block indices count columns of tiles first, then rows, then items.
struct Place {
  Item item;
  int row, column;
};

template <class Op>
DEVICE_FN Place place(const Plan<Op> &p, int64_t first_item, int column_tiles) {
  int64_t index = block_index();
  const int column = (int)(index % column_tiles) * kTile;
  index /= column_tiles;
  const int row = (int)(index % p.row_tiles) * kTile;
  return Place{item_at(p, first_item + index / p.row_tiles), row, column};
}

// Where a caller's [B, T, H, D] holds an item's first token.
template <class Op>
DEVICE_FN int64_t token_offset(const Plan<Op> &p, const Item &i) {
  return (((int64_t)i.b * p.T + i.start) * p.H + i.h) * p.D;
}
template <class Op>
DEVICE_FN Matrix<Op> token_matrix(const Plan<Op> &p, const Op *x, const Item &i) {
  return Matrix<Op>{x + token_offset(p, i), (int64_t)p.H * p.D, i.tokens, p.D};
}
// Two neighbouring numbers of a token; zeros for rows past the last token.
template <class Op>
DEVICE_FN float2 token_pair(const Plan<Op> &p, const Op *x, const Item &i, int row, int column) {
  if (row >= i.tokens) return float2{0, 0};
  return load_pair(x + token_offset(p, i) + (int64_t)row * p.H * p.D + column);
}
template <class Op>
DEVICE_FN void store_token_pair(const Plan<Op> &p, Op *to, const Item &i, int row, int column, float x, float y) {
  if (row < i.tokens) store_pair(to + token_offset(p, i) + (int64_t)row * p.H * p.D + column, x, y);
}

// Matrices of the workspace, `index` an item or a head.
template <class Op>
DEVICE_FN Matrix<Op> hidden_matrix(const Plan<Op> &p, const Op *x, int64_t index) {
  return Matrix<Op>{x + index * p.rows * p.hidden, p.hidden, p.rows, p.hidden};
}
template <class Op>
DEVICE_FN Matrix<Op> width_matrix(const Plan<Op> &p, const Op *x, int64_t index) {
  return Matrix<Op>{x + index * p.rows * p.D, p.D, p.rows, p.D};
}
template <class Op>
DEVICE_FN Matrix<Op> square_matrix(const Plan<Op> &p, const Op *x, int64_t index) {
  return Matrix<Op>{x + index * p.rows * p.rows, p.rows, p.rows, p.rows};
}
// Layer 0 or 1 of the weights (momentum 0) or of the momentum (1), as [D_out, D_in].
template <class Op>
DEVICE_FN Matrix<Op> state_matrix(const Plan<Op> &p, const Op *states, int64_t index, int layer, int momentum) {
  const Op *data = states + index * p.state + (2 * momentum + layer) * p.layer;
  return layer ? Matrix<Op>{data, p.hidden, p.D, p.hidden} : Matrix<Op>{data, p.D, p.hidden, p.D};
}
template <class Op>
DEVICE_FN Matrix<Op> scaled_rows(Matrix<Op> m, const float *scale) {
  m.scale = scale;
  return m;
}

}  // namespace backward
