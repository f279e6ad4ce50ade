// backward_host.h - the host side of backward: its workspace, and which kernels run in which order.
//
// Groups of `keep_every` chunks, last first; in each group: coefficients, the key side forwards chunk by chunk, reading
// for all chunks at once, writing backwards chunk by chunk, gates for all chunks at once. No atomics: every sum has one
// owner or is left as partial sums that are added in a fixed order.
//
// The workspace holds one group, so it grows with keep_every and not with the number of tokens: 0.6 MB for each chunk
// of the group, sample and head at D 64, hidden 256, chunks of 64, momentum and norm; 0.13 MB of it is the state.
#pragma once

#include <utility>

#include "backward_carry.h"
#include "backward_gates.h"
#include "backward_keys.h"
#include "backward_norm.h"
#include "backward_read.h"
#include "backward_state.h"
#include "launch.h"

namespace backward {

// Cuts the workspace into pieces; with base NULL it only counts.
struct Pieces {
  uint8_t *base;
  int64_t bytes = 0;

  template <class T>
  void take(T *&piece, int64_t count) {
    piece = base ? (T *)(base + bytes) : nullptr;
    bytes += (count * (int64_t)sizeof(T) + 127) / 128 * 128;
  }
};

template <class Op>
void set_sizes(Plan<Op> &p, const nm_problem &x) {
  const int64_t tokens = x.chunk_size < x.T ? x.chunk_size : x.T;
  p.B = (int)x.B, p.T = (int)x.T, p.H = (int)x.H, p.D = (int)x.D, p.hidden = (int)x.widths[1];
  p.chunk = (int)tokens;
  p.rows = (p.chunk + 15) / 16 * 16;
  p.activation = x.activation;
  p.residual = x.residual, p.has_momentum = x.eta, p.has_norm = x.gain, p.has_reset = x.reset;
  p.heads = x.B * x.H;
  p.layer = x.D * x.widths[1];
  p.state = nm_state_numbers(&x);
  p.row_tiles = (p.rows + kTile - 1) / kTile;
  p.hidden_tiles = p.hidden / kTile;
  p.layer_tiles = p.hidden_tiles * (p.D / kTile);
}

// Returns the bytes that the workspace takes.
template <class Op>
int64_t set_workspace(Plan<Op> &p, const nm_problem &x, void *workspace) {
  Pieces pieces{(uint8_t *)workspace};
  const int64_t chunks = nm_chunks(&x), items = (x.keep_every < chunks ? x.keep_every : chunks) * p.heads;
  const int64_t rows = items * p.rows, momentum = p.has_momentum, norm = p.has_norm;
  for (float **square : {&p.decay_w, &p.dwrite}) pieces.take(*square, rows * p.rows);
  pieces.take(p.decay_s, momentum * rows * p.rows);
  for (float **row : {&p.theta_row, &p.beta, &p.write_last}) pieces.take(*row, rows);
  for (float **row : {&p.gamma, &p.left, &p.push}) pieces.take(*row, momentum * rows);
  pieces.take(p.hat, norm * rows * p.D);
  pieces.take(p.rstd, norm * rows);
  for (float **width : {&p.derror, &p.dkey}) pieces.take(*width, rows * p.D);
  pieces.take(p.dbeta, rows * (p.hidden_tiles + 1));
  pieces.take(p.dgamma, momentum * rows * (p.hidden_tiles + 1));
  pieces.take(p.dwrite_last, rows * 2);
  pieces.take(p.dpush, momentum * rows * 2);
  pieces.take(p.dends, items * 2 * p.layer_tiles * 3);
  pieces.take(p.dnorm, norm * items * (p.rows / kRowsPerBlock) * 4 * p.D);
  pieces.take(p.states, items * p.state);
  for (Op **hidden : {&p.z, &p.a, &p.da, &p.delta, &p.x, &p.slope, &p.du1, &p.da_read, &p.ddelta_read})
    pieces.take(*hidden, rows * p.hidden);
  for (Op **width : {&p.error, &p.du2}) pieces.take(*width, rows * p.D);
  for (Op **square : {&p.scores1, &p.masked1, &p.scores2, &p.masked2, &p.dscores}) pieces.take(*square, rows * p.rows);
  pieces.take(p.running, p.heads * p.state);
  for (Op **state : {&p.before, &p.after}) pieces.take(*state, p.heads * p.state);
  for (Op **hidden : {&p.dda, &p.dz}) pieces.take(*hidden, p.heads * p.rows * p.hidden);
  pieces.take(p.df, p.heads * p.rows * p.D);
  return pieces.bytes;
}

template <class Op>
void set_tensors(Plan<Op> &p, const nm_problem &x, const nm_backward &out) {
  p.q = (const Op *)x.q, p.k = (const Op *)x.k, p.v = (const Op *)x.v, p.dy = (const Op *)out.dy;
  p.theta = (const float *)x.theta, p.eta = (const float *)x.eta, p.alpha = (const float *)x.alpha;
  p.gain = (const float *)x.gain, p.bias = (const float *)x.bias;
  p.write_mask = x.write_mask, p.reset = x.reset;
  p.dq = (Op *)out.dq, p.dk = (Op *)out.dk, p.dv = (Op *)out.dv;
  p.dtheta = (float *)out.dtheta, p.deta = (float *)out.deta, p.dalpha = (float *)out.dalpha;
  p.dgain = (float *)out.dgain, p.dbias = (float *)out.dbias;
  for (int l = 0; l < 2; l++) {
    p.first[l] = (const float *)x.first_weights[l], p.first[2 + l] = (const float *)x.first_momentum[l];
    p.dstate[l] = (float *)out.dweights[l], p.dstate[2 + l] = (float *)out.dmomentum[l];
    p.dfirst[l] = (float *)out.dfirst_weights[l], p.dfirst[2 + l] = (float *)out.dfirst_momentum[l];
  }
}

// The kernels of one call, with what they share: every grid counts tiles of 64.
template <class Op, int kD>
struct Sequence {
  Launcher &launch;
  Plan<Op> p;

  void tiles(void (*kernel)(Plan<Op>), int64_t items, int row_tiles, int column_tiles, int bytes) {
    launch(kernel, items * row_tiles * column_tiles, bytes, p, kTileThreads);
  }
  void threads(void (*kernel)(Plan<Op>), int64_t count) {
    launch(kernel, (count + kTileThreads - 1) / kTileThreads, 0, p, kTileThreads);
  }
  void hidden(void (*kernel)(Plan<Op>), int64_t items) {
    tiles(kernel, items, p.row_tiles, p.hidden_tiles, tile_bytes<kTile>());
  }
  void width(void (*kernel)(Plan<Op>), int64_t items) { tiles(kernel, items, p.row_tiles, 1, tile_bytes<kD>()); }
  void whole_rows(void (*kernel)(Plan<Op>), int64_t items) {
    tiles(kernel, items, p.rows / kRowsPerBlock, 1, row_bytes(kD));
  }
  void square(void (*kernel)(Plan<Op>), int layer) {
    p.part = layer;
    tiles(kernel, p.chunks * p.heads, p.row_tiles, p.row_tiles, tile_bytes<kTile>());
  }
  void states(void (*kernel)(Plan<Op>)) { tiles(kernel, p.heads, 1, 2 * p.layer_tiles, tile_bytes<kTile>()); }
  void gates(void (*kernel)(Plan<Op>)) { tiles(kernel, p.chunks * p.heads, 1, 1, gate_bytes(p.rows)); }

  void start(const nm_backward &out) {
    for (p.part = 0; p.part < (p.has_momentum ? 4 : 2); p.part++) {
      p.end = (const float *)(p.part < 2 ? out.dweights_end[p.part] : out.dmomentum_end[p.part - 2]);
      threads(start_dstate<Op>, p.heads * p.layer);
    }
  }

  void keys() {
    gates(chunk_coefficients<Op>);
    threads(start_group<Op>, p.heads * p.state);
    for (p.step = 0; p.step < p.chunks; p.step++) {
      hidden(key_hidden<Op>, p.heads);
      width(key_output<Op, kD>, p.heads);
      whole_rows(key_error<Op, kD>, p.heads);
      hidden(key_delta<Op>, p.heads);
      if (p.step + 1 < p.chunks) states(next_state<Op>);
    }
  }

  void reads() {
    const int64_t items = p.chunks * p.heads;
    square(read_scores<Op>, 0);
    hidden(read_hidden<Op>, items);
    square(read_scores<Op>, 1);
    if (p.has_norm) width(read_sums<Op, kD>, items);
    whole_rows(read_output<Op, kD>, items);
    square(read_dscores<Op>, 1);
    hidden(read_dhidden<Op>, items);
    square(read_dscores<Op>, 0);
    width(read_dqueries<Op, kD>, items);
    width(read_derror<Op, kD>, items);
    hidden(read_ddelta<Op>, items);
  }

  void writes() {
    for (p.step = p.chunks - 1; p.step >= 0; p.step--) {
      std::swap(p.before, p.after);
      hidden(through_slope<Op>, p.heads);
      width(through_error<Op, kD>, p.heads);
      whole_rows(through_output<Op, kD>, p.heads);
      hidden(through_hidden<Op>, p.heads);
      width(key_gradients<Op, kD>, p.heads);
      states(carry_dstate<Op>);
    }
    gates(gate_gradients<Op>);
    if (p.has_norm) threads(add_dnorm<Op>, p.heads * p.D);
  }
};

template <class Op, int kD>
void run(Launcher &launch, const nm_problem &x, const nm_backward &out, void *workspace) {
  Sequence<Op, kD> sequence{launch, {}};
  Plan<Op> &p = sequence.p;
  set_sizes(p, x);
  set_workspace(p, x, workspace);
  set_tensors(p, x, out);
  sequence.start(out);
  const int64_t chunks = nm_chunks(&x);
  for (int64_t group = nm_groups(&x) - 1; group >= 0; group--) {
    const int64_t first = group * x.keep_every;
    p.first_chunk = (int)first;
    p.chunks = (int)(chunks - first < x.keep_every ? chunks - first : x.keep_every);
    p.boundary = (const float *)out.boundaries + group * p.heads * p.state;
    sequence.keys();
    sequence.reads();
    sequence.writes();
  }
}

inline void run(Launcher &launch, const nm_problem &x, const nm_backward &out, void *workspace) {
#ifndef NM_FLOAT16_ONLY  // for tests that only compile, in half the time
  if (x.dtype == NM_BFLOAT16 && x.D == 64) run<bf16, 64>(launch, x, out, workspace);
  if (x.dtype == NM_BFLOAT16 && x.D == 128) run<bf16, 128>(launch, x, out, workspace);
#endif
#ifndef NM_BFLOAT16_ONLY
  if (x.dtype == NM_FLOAT16 && x.D == 64) run<fp16, 64>(launch, x, out, workspace);
  if (x.dtype == NM_FLOAT16 && x.D == 128) run<fp16, 128>(launch, x, out, workspace);
#endif
}

inline int64_t workspace_bytes(const nm_problem &x) {
  Plan<bf16> p{};
  set_sizes(p, x);
  return set_workspace(p, x, nullptr);
}

}  // namespace backward
