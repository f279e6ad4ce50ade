// memory_backward.h - gradients of a chunk through its reads, its end state and the gradients it learned from.
//
// Everything of the forward pass is recomputed from the chunk's first state. With u_l = beta x_l W + gamma x_l S -
// (write o x_l h_l^T) delta_l and W' = beta W + gamma S - h^T (last o delta), S' likewise, three parts in this order:
// through_end, through_reads, through_gradients. Only the last is of second order.
#pragma once

#include "memory.h"

namespace nm::NM_ISA {

template <Operand O, class T>
class MemoryBackward : public Memory<O, T> {
 public:
  MemoryBackward(const nm_problem& problem, Arena& arena, nm_pass pass) : Memory<O, T>(problem, arena, pass) {
    dW = this->take_layers(arena);
    if (momentum) dS = this->take_layers(arena);
    dc.take(arena, capacity);
    for (int l = 0; l < L; l++) {
      dh[l] = arena.buffer<T>(capacity, width[l]);
      ddelta[l] = arena.buffer<T>(capacity, width[l + 1]);
      dz[l] = l < L - 1 ? this->back[l] : arena.buffer<T>(capacity, D);
    }
    Buffer<T>* wide[] = {&dx, &du, &from_W, &from_S};
    for (Buffer<T>* buffer : wide) *buffer = arena.buffer<T>(capacity, this->widest);
    dy = arena.buffer<T>(capacity, D);
    dv = arena.buffer<T>(capacity, D);
    dscores = arena.buffer<T>(capacity, capacity);
    spare = arena.buffer<T>(3, D);
    dgain = arena.row<T>(D);
    dbias = arena.row<T>(D);
    if (!problem.reset) return;
    dW_first = this->take_layers(arena);
    if (momentum) dS_first = this->take_layers(arena);
  }

  // A new sample and head: dW and dS are the gradients of the state that its last token left.
  void start(const nm_backward& gradients) {
    this->load_state(gradients.dweights_end, gradients.dmomentum_end, dW, dS);
    nothing_follows = !gradients.dweights_end[0];
    fill(D, T(0), dgain);
    fill(D, T(0), dbias);
    if (!this->p.reset) return;
    for (int l = 0; l < L; l++)
      for (int i = 0; i < width[l]; i++) {
        fill(width[l + 1], T(0), dW_first[l][i]);
        if (momentum) fill(width[l + 1], T(0), dS_first[l][i]);
      }
  }

  // The state before this chunk was the initial one: its gradient goes there, and none goes further back.
  void hand_to_first() {
    nothing_follows = true;
    for (int l = 0; l < L; l++)
      for (int i = 0; i < width[l]; i++) {
        add_scaled(width[l + 1], T(1), dW[l][i], dW_first[l][i]);
        fill(width[l + 1], T(0), dW[l][i]);
        if (!momentum) continue;
        add_scaled(width[l + 1], T(1), dS[l][i], dS_first[l][i]);
        fill(width[l + 1], T(0), dS[l][i]);
      }
  }

  // dW and dS are now the gradients of the state before the first token.
  void finish(const nm_backward& out) {
    this->store_state(dW, dS, out.dweights, out.dmomentum);
    if (this->p.reset) this->store_state(dW_first, dS_first, out.dfirst_weights, out.dfirst_momentum);
    if (!this->p.gain) return;
    const int64_t at = (this->b * this->p.H + this->head) * D;
    memcpy(static_cast<T*>(out.dgain) + at, dgain, size_t(D) * sizeof(T));
    memcpy(static_cast<T*>(out.dbias) + at, dbias, size_t(D) * sizeof(T));
  }

  // The gradients of a chunk's inputs, from dy and from dW and dS after the chunk; dW and dS end as those before it.
  // `backpropagate` and `read` have run for this chunk.
  void differentiate() {
    dc.clear(n);
    if (nothing_follows) {
      through_no_end();
    } else {
      through_end();
    }
    through_reads();
    through_gradients();
    dc.compute(c, n);
    nothing_follows = false;
  }

  void load_output_gradients(const void* gradient) {
    for (int t = 0; t < n; t++) load_token(gradient, this->p.dtype, this->token(t), D, dy[t]);
  }

  void store_token_gradients(const nm_backward& out) {
    const nm_problem& p = this->p;
    for (int t = 0; t < n; t++) {
      store_token(dx[t], p.dtype, this->token(t), D, out.dq);
      store_token(dh[0][t], p.dtype, this->token(t), D, out.dk);
      store_token(dv[t], p.dtype, this->token(t), D, out.dv);
      const int64_t gate = (this->b * p.T + this->first_token + t) * p.H + this->head;
      static_cast<T*>(out.dtheta)[gate] = dc.theta[t];
      static_cast<T*>(out.dalpha)[gate] = dc.alpha[t];
      if (momentum) static_cast<T*>(out.deta)[gate] = dc.eta[t];
    }
  }

  Layers<T> dW, dS;

 private:
  using Memory<O, T>::L;
  using Memory<O, T>::D;
  using Memory<O, T>::n;
  using Memory<O, T>::c;
  using Memory<O, T>::momentum;
  using Memory<O, T>::capacity;
  using Memory<O, T>::width;
  using Memory<O, T>::W;
  using Memory<O, T>::turned;
  using Memory<O, T>::S;
  using Memory<O, T>::h;
  using Memory<O, T>::x;
  using Memory<O, T>::delta;

  // W' and S': to the factors h and delta, and to the coefficients of the end. Reads dW and dS, changes neither.
  void through_end() {
    for (int l = 0; l < L; l++) {
      const int into = width[l], out = width[l + 1];
      this->product(n, out, into, h[l].plain(), dW[l].plain(), from_W.replaced());
      if (momentum) this->product(n, out, into, h[l].plain(), dS[l].plain(), from_S.replaced());
      for (int t = 0; t < n; t++) {
        scale(out, -c.last[t], from_W[t], ddelta[l][t]);
        dc.last[t] -= dot(out, delta[l][t], from_W[t]);
        if (!momentum) continue;
        add_scaled(out, -c.push[t], from_S[t], ddelta[l][t]);
        dc.push[t] -= dot(out, delta[l][t], from_S[t]);
      }
      this->scale_by_end(l);
      this->product(n, into, out, this->to_W.plain(), dW[l].transposed(), dh[l].replaced(-1));
      if (momentum)
        this->product(n, into, out, this->to_S.plain(), dS[l].transposed(), dh[l].increased(-1));
      for (int i = 0; i < into; i++) {
        dc.beta[n - 1] += dot(out, dW[l][i], W[l][i]);
        if (!momentum) continue;
        dc.gamma[n - 1] += dot(out, dW[l][i], S[l][i]);
        dc.decay[n - 1] += dot(out, dS[l][i], S[l][i]);
      }
    }
  }

  // What through_end would write where dW and dS are zero.
  void through_no_end() {
    for (int l = 0; l < L; l++)
      for (int t = 0; t < n; t++) {
        fill(width[l], T(0), dh[l][t]);
        fill(width[l + 1], T(0), ddelta[l][t]);
      }
  }

  // y: from the last layer's way out down to the queries, whose gradient ends in dx. Here dW and dS step back over the
  // chunk.
  void through_reads() {
    for (int t = 0; t < n; t++)
      leave_gradient(this->way, dy[t], this->read_hat[t], this->read_rstd[t], du[t], dgain, dbias);
    for (int l = L - 1; l >= 0; l--) {
      const int into = width[l], out = width[l + 1];
      through_scores(l);
      this->product(n, into, out, du.plain(), turned[l].plain(), from_W.replaced());
      if (momentum) this->product(n, into, out, du.plain(), S[l].transposed(), from_S.replaced());
      for (int t = 0; t < n; t++) {
        dc.beta[t] += dot(into, x[l][t], from_W[t]);
        add_scaled(into, c.beta[t], from_W[t], dx[t]);
        if (!momentum) continue;
        dc.gamma[t] += dot(into, x[l][t], from_S[t]);
        add_scaled(into, c.gamma[t], from_S[t], dx[t]);
      }
      for (int t = 0; t < n; t++) {
        scale(out, c.beta[t], du[t], this->to_W[t]);
        if (momentum) scale(out, c.gamma[t], du[t], this->to_S[t]);
      }
      // The old dW enters dS, so dS goes first.
      if (momentum)
        this->product(into, out, n, x[l].transposed(), this->to_S.plain(),
                      this->mixed(dS[l], c.decay[n - 1], dW[l], c.gamma[n - 1], 1));
      this->product(into, out, n, x[l].transposed(), this->to_W.plain(),
                    this->mixed(dW[l], c.beta[n - 1], dW[l], 0, 1));
      if (l)
        for (int t = 0; t < n; t++) multiply(into, dx[t], this->read_slope[l - 1][t], du[t]);
    }
    if (this->way.residual)
      for (int t = 0; t < n; t++) add_scaled(D, T(1), dy[t], dx[t]);
  }

  // The part of layer l's read that comes from what the chunk itself wrote: to delta, h, write, and the start of dx.
  void through_scores(int l) {
    const int into = width[l], out = width[l + 1];
    this->product(n, n, out, du.plain(), delta[l].transposed(), dscores.replaced(-1), Triangle::output);
    for (int t = 0; t < n; t++) {
      // Above the diagonal there is nothing: write is zero there, and its gradient must not count.
      for (int s = t + 1; s < n; s++) dscores[t][s] = 0;
      for (int s = t + 1; s < n; s++) this->scores[l][t][s] = 0;
      accumulate_product(n, dscores[t], this->scores[l][t], dc.write[t]);
      multiply(n, dscores[t], c.write[t], dscores[t]);
    }
    this->product(n, out, n, this->weighted[l].transposed(), du.plain(), ddelta[l].increased(-1), Triangle::upper);
    this->product(n, into, n, dscores.transposed(), x[l].plain(), dh[l].increased(), Triangle::upper);
    this->product(n, into, n, dscores.plain(), h[l].plain(), dx.replaced(), Triangle::lower);
  }

  // delta and h, which are a gradient themselves: to keys, values, the chunk's first weights and the norm.
  void through_gradients() {
    for (int l = 0; l < L - 1; l++) {
      const int out = width[l + 1];
      differentiate_slope(this->p.activation, n, out, this->z[l], this->back[l], ddelta[l], dz[l]);
      // ddelta[l] is now the gradient of back[l] = delta[l + 1] W[l + 1]^T.
      this->product(n, width[l + 2], out, ddelta[l].plain(), W[l + 1].plain(), ddelta[l + 1].increased());
      this->product(out, width[l + 2], n, ddelta[l].transposed(), delta[l + 1].plain(), dW[l + 1].increased());
    }
    for (int t = 0; t < n; t++)
      error_gradient_gradient(this->way, ddelta[L - 1][t], this->hat[t], this->twice[t], this->rstd[t], dz[L - 1][t],
                              dh[0][t], dv[t], dgain, dbias, spare);  // the keys are h[0]
    for (int l = L - 1; l >= 0; l--) {
      const int into = width[l], out = width[l + 1];
      this->product(into, out, n, h[l].transposed(), dz[l].plain(), dW[l].increased());
      this->product(n, into, out, dz[l].plain(), turned[l].plain(), dh[l].increased());
      if (l)
        for (int t = 0; t < n; t++) accumulate_product(into, dh[l][t], this->slope[l - 1][t], dz[l - 1][t]);
    }
  }

  Layers<T> dW_first, dS_first;
  bool nothing_follows;  // dW and dS are zero
  T *dgain, *dbias;      // [D], summed over the chunks of one sample and head
  CoefficientGradients<T> dc;
  Buffer<T> dh[NM_MAX_LAYERS], ddelta[NM_MAX_LAYERS], dz[NM_MAX_LAYERS];  // like h, delta, and z (f for the last)
  Buffer<T> dx, du, from_W, from_S;                                      // [C, widest]
  Buffer<T> dy, dv;                                                      // [C, D]
  Buffer<T> dscores;                                                     // [C, C]
  Buffer<T> spare;
};

}  // namespace nm::NM_ISA
