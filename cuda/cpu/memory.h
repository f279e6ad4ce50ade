// memory.h - one memory at work: a sample's head reads and writes chunk after chunk. The forward pass.
//
// The code is neuralmem/ops/neural_memory/chunked.py's chunk_step in scratch memory; names and equations are its
// README's. Weights lie as [D_in, D_out], so that a layer is x @ W.
#pragma once

#include "coefficients.h"
#include "norm.h"
#include "slopes.h"
#include "tokens.h"

namespace nm::NM_ISA {

// Weights or momentum, or their gradients: one [D_in, D_out] per layer.
template <class T>
struct Layers {
  Buffer<T> layer[NM_MAX_LAYERS];
  Buffer<T>& operator[](int l) { return layer[l]; }
};

template <Operand O, class T>
class Memory {
 public:
  using Number = T;

  Memory(const nm_problem& problem, Arena& arena, nm_pass pass)
      : p(problem), L(int(p.layers)), D(int(p.D)), momentum(p.eta) {
    const int64_t longest = p.T < p.chunk_size ? p.T : p.chunk_size;
    capacity = longest > 0 ? int(longest) : 1;
    for (int l = 0; l <= L; l++) {
      width[l] = int(p.widths[l]);
      if (width[l] > widest) widest = width[l];
    }
    W = take_layers(arena);
    if (momentum) S = take_layers(arena);
    if (pass == NM_BACKWARD)
      for (int l = 0; l < L; l++) turned[l] = arena.buffer<T>(width[l + 1], width[l]);
    c.take(arena, capacity, momentum, pass);
    way = {D, p.residual != 0, nullptr, nullptr};
    if (p.gain) {
      gain = arena.row<T>(D);
      bias = arena.row<T>(D);
      way.gain = gain;
      way.bias = bias;
    }
    for (int l = 0; l < L; l++) {
      h[l] = arena.buffer<T>(capacity, width[l]);
      x[l] = l ? u[l - 1] : arena.buffer<T>(capacity, D);
      delta[l] = arena.buffer<T>(capacity, width[l + 1]);
      u[l] = arena.buffer<T>(capacity, width[l + 1]);
      if (pass != NM_DECODE) {
        scores[l] = arena.buffer<T>(capacity, capacity);
        weighted[l] = arena.buffer<T>(capacity, capacity);
      }
      if (l == L - 1) break;
      z[l] = arena.buffer<T>(capacity, width[l + 1]);
      slope[l] = arena.buffer<T>(capacity, width[l + 1]);
      back[l] = arena.buffer<T>(capacity, width[l + 1]);
      if (pass == NM_BACKWARD) read_slope[l] = arena.buffer<T>(capacity, width[l + 1]);
    }
    Buffer<T>* outputs[] = {&f, &v, &hat, &twice, &y, &read_hat};
    for (Buffer<T>* buffer : outputs) *buffer = arena.buffer<T>(capacity, D);
    rstd = arena.row<T>(capacity);
    read_rstd = arena.row<T>(capacity);
    to_W = arena.buffer<T>(capacity, widest);
    to_S = arena.buffer<T>(capacity, widest);
    const int most = capacity > widest ? capacity : widest;
    packing = arena.row<T>(gemm_scratch(most, most, most));
  }

  // Turns to sample b's head h: its slow parameters, and the state of the call.
  void enter(int64_t which) {
    b = which / p.H;
    head = which % p.H;
    if (!p.gain) return;
    memcpy(gain, static_cast<const T*>(p.gain) + head * D, size_t(D) * sizeof(T));
    memcpy(bias, static_cast<const T*>(p.bias) + head * D, size_t(D) * sizeof(T));
  }

  void load_state(const void* const* weights, const void* const* surprise, Layers<T>& W_to, Layers<T>& S_to) {
    for (int l = 0; l < L; l++) {
      load_weights(weights[l], b * p.H + head, width[l], width[l + 1], W_to[l]);
      if (momentum) load_weights(surprise[l], b * p.H + head, width[l], width[l + 1], S_to[l]);
    }
  }

  void store_state(Layers<T>& W_from, Layers<T>& S_from, void* const* weights, void* const* surprise) {
    for (int l = 0; l < L; l++) {
      store_weights(W_from[l], b * p.H + head, width[l], width[l + 1], weights[l]);
      if (momentum) store_weights(S_from[l], b * p.H + head, width[l], width[l + 1], surprise[l]);
    }
  }

  // Does sample b go back to the initial state before this chunk?
  bool resets(int64_t chunk) const { return p.reset && p.reset[b * p.T + chunk * p.chunk_size]; }

  void restart(int64_t chunk) {
    if (resets(chunk)) load_state(p.first_weights, p.first_momentum, W, S);
  }

  // The state as the boundaries hold it: every layer of W, then of S, [D_in, D_out] each.
  void save_boundary(T* out) {
    for_each_matrix([&](Buffer<T> m, int rows, int columns) {
      for (int i = 0; i < rows; i++, out += columns) copy_past_caches(columns, m[i], out);
    });
    end_of_copies();
  }

  void load_boundary(const T* in) {
    for_each_matrix([&](Buffer<T> m, int rows, int columns) {
      for (int i = 0; i < rows; i++, in += columns) memcpy(m[i], in, size_t(columns) * sizeof(T));
    });
  }

  // A chunk's keys, values and gates, and its coefficients. Without tokens there is nothing to do.
  void load_chunk(int64_t chunk) {
    first_token = chunk * p.chunk_size;
    const int64_t left = p.T - first_token;
    n = int(left < p.chunk_size ? left : p.chunk_size);
    for (int t = 0; t < n; t++) {
      load_token(p.k, p.dtype, token(t), D, h[0][t]);
      load_token(p.v, p.dtype, token(t), D, v[t]);
      const int64_t gate = ((b * p.T) + first_token + t) * p.H + head;
      const bool real = !p.write_mask || p.write_mask[b * p.T + first_token + t];
      c.real[t] = real;
      c.theta[t] = real ? static_cast<const T*>(p.theta)[gate] : T(0);
      c.keep[t] = real ? T(1) - static_cast<const T*>(p.alpha)[gate] : T(1);
      if (momentum) c.eta[t] = real ? static_cast<const T*>(p.eta)[gate] : T(1);
    }
    if (n) c.compute(n);
  }

  void load_queries() {
    for (int t = 0; t < n; t++) load_token(p.q, p.dtype, token(t), D, x[0][t]);
  }

  // W as products with its transpose want it, for a chunk that has several.
  void turn() {
    for (int l = 0; l < L; l++)
      transpose(width[l], width[l + 1], W[l].data, W[l].stride, turned[l].data, turned[l].stride);
  }

  // The gradients at the chunk's first weights, as factors of rank one: h and delta. Has the chunk been turned?
  void backpropagate(bool has_turned = false) {
    for (int l = 0; l < L - 1; l++) {
      product(n, width[l + 1], width[l], h[l].plain(), W[l].plain(), z[l].replaced());
      activate(p.activation, n, width[l + 1], z[l], h[l + 1], slope[l]);
    }
    product(n, D, width[L - 1], h[L - 1].plain(), W[L - 1].plain(), f.replaced());
    for (int t = 0; t < n; t++) rstd[t] = error_gradient(way, f[t], h[0][t], v[t], hat[t], twice[t], delta[L - 1][t]);
    for (int l = L - 2; l >= 0; l--) {
      const Matrix<T> W_above = has_turned ? turned[l + 1].plain() : W[l + 1].transposed();
      product(n, width[l + 1], width[l + 2], delta[l + 1].plain(), W_above, back[l].replaced());
      for (int t = 0; t < n; t++) multiply(width[l + 1], back[l][t], slope[l][t], delta[l][t]);
    }
  }

  // Every token's query through its own weights: y.
  void read() {
    for (int l = 0; l < L; l++) {
      const int into = width[l], out = width[l + 1];
      product(n, n, into, x[l].plain(), h[l].transposed(), scores[l].replaced(), Triangle::output);
      for (int t = 0; t < n; t++) multiply(t + 1, scores[l][t], c.write[t], weighted[l][t]);
      Result<T> from_W = u[l].replaced(), from_S = u[l].increased();
      from_W.row = c.beta;
      from_S.row = c.gamma;
      product(n, out, into, x[l].plain(), W[l].plain(), from_W);
      if (momentum) product(n, out, into, x[l].plain(), S[l].plain(), from_S);
      product(n, out, n, weighted[l].plain(), delta[l].plain(), u[l].increased(-1), Triangle::lower);
      if (l < L - 1) activate(p.activation, n, out, u[l], x[l + 1], read_slope[l]);
    }
    for (int t = 0; t < n; t++) read_rstd[t] = leave(way, u[L - 1][t], x[0][t], read_hat[t], y[t]);
  }

  // The state after the chunk.
  void advance() {
    for (int l = 0; l < L; l++) {
      const int into = width[l], out = width[l + 1];
      scale_by_end(l);
      product(into, out, n, h[l].transposed(), to_W.plain(),
              mixed(W[l], c.beta[n - 1], S[l], momentum ? c.gamma[n - 1] : T(0), -1));
      if (momentum) product(into, out, n, h[l].transposed(), to_S.plain(), mixed(S[l], c.decay[n - 1], S[l], 0, -1));
    }
  }

  // The weights that a query of its own, x[0][0], sees after the chunk, without forming them. Uses the caller's
  // matrices as they lie, [D_out, D_in]: there is one token, and turning them would cost more than reading it.
  void read_at_end() {
    const T beta = n ? c.beta[n - 1] : T(1), gamma = n && momentum ? c.gamma[n - 1] : T(0);
    for (int l = 0; l < L; l++) {
      const int into = width[l], out = width[l + 1];
      const int64_t at = (b * p.H + head) * into * out;
      T* row = u[l][0];
      for (int o = 0; o < out; o++) {
        row[o] = beta * dot_unpadded(into, static_cast<const T*>(p.weights[l]) + at + int64_t(o) * into, x[l][0]);
        if (momentum)
          row[o] += gamma * dot_unpadded(into, static_cast<const T*>(p.momentum[l]) + at + int64_t(o) * into, x[l][0]);
      }
      for (int s = 0; s < n; s++) add_scaled(out, -c.last[s] * dot(into, h[l][s], x[l][0]), delta[l][s], row);
      if (l < L - 1) activate(p.activation, 1, out, u[l], x[l + 1], read_slope[l]);
    }
    leave(way, u[L - 1][0], x[0][0], read_hat[0], y[0]);
  }

  void store_reads(void* to) {
    for (int t = 0; t < n; t++) store_token(y[t], p.dtype, token(t), D, to);
  }

  void product(int M, int N, int K, Matrix<T> A, Matrix<T> B, Result<T> C, Triangle triangle = Triangle::none) {
    gemm<O, T>(M, N, K, A, B, C, triangle, packing);
  }

  // A product, times factor, that is added to keep m + share other.
  static Result<T> mixed(Buffer<T> m, T keep, Buffer<T> other, T share, T factor) {
    Result<T> result = m.replaced(factor);
    result.keep = keep;
    if (share != 0) {
      result.add = other.data;
      result.add_stride = other.stride;
      result.add_scale = share;
    }
    return result;
  }

  // Where the chunk's t-th token lies in [B, T, H, D].
  int64_t token(int t) const { return ((b * p.T + first_token + t) * p.H + head) * D; }

  Layers<T> take_layers(Arena& arena) {
    Layers<T> layers;
    for (int l = 0; l < L; l++) layers[l] = arena.buffer<T>(width[l], width[l + 1]);
    return layers;
  }

  // delta as the end of the chunk weighs it, into to_W and to_S.
  void scale_by_end(int l) {
    for (int t = 0; t < n; t++) {
      scale(width[l + 1], c.last[t], delta[l][t], to_W[t]);
      if (momentum) scale(width[l + 1], c.push[t], delta[l][t], to_S[t]);
    }
  }

  const nm_problem& p;
  int L, D;
  bool momentum;
  int capacity, widest = 0, width[NM_MAX_LAYERS + 1];
  int64_t b = 0, head = 0, first_token = 0;
  int n = 0;  // tokens of the current chunk

  Layers<T> W, S;
  Layers<T> turned;  // W's transposes, in backward
  T *gain, *bias;
  Way<T> way;
  Coefficients<T> c;
  // Per layer, [C, D_in]: what enters it from the keys (h) and from the queries (x, from layer 1 on in place of
  // the u below).
  Buffer<T> h[NM_MAX_LAYERS], x[NM_MAX_LAYERS];
  // Per layer, [C, D_out]: pre-activations of the keys (z; f for the last) and of the queries (u), the slopes there,
  // what comes back from the layer above (back), and that times the slope (delta).
  Buffer<T> z[NM_MAX_LAYERS], u[NM_MAX_LAYERS], slope[NM_MAX_LAYERS], read_slope[NM_MAX_LAYERS], back[NM_MAX_LAYERS];
  Buffer<T> delta[NM_MAX_LAYERS];
  Buffer<T> scores[NM_MAX_LAYERS], weighted[NM_MAX_LAYERS];  // [C, C]: x h^T, and that times `write`
  Buffer<T> f, v, hat, twice, y, read_hat;                   // [C, D]
  T *rstd, *read_rstd;                                       // [C]
  Buffer<T> to_W, to_S;                                      // [C, widest]
  T* packing;

 private:
  template <class F>
  void for_each_matrix(F f) {
    for (int l = 0; l < L; l++) f(W[l], width[l], width[l + 1]);
    for (int l = 0; l < L && momentum; l++) f(S[l], width[l], width[l + 1]);
  }

  static T dot_unpadded(int n, const T* matrix_row, const T* x) {
    Vec<T> total = broadcast(T(0));
    int j = 0;
    for (; j + kLanes<T> <= n; j += kLanes<T>) total += load(matrix_row + j) * load(x + j);
    T rest = 0;
    for (; j < n; j++) rest += matrix_row[j] * x[j];
    return sum(total) + rest;
  }
};

}  // namespace nm::NM_ISA
