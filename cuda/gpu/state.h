// state.h - the state pass: one block per sample and head goes through the chunks in order.
//
// Per chunk it evaluates the memory at its keys, turns the error into gradients, and updates weights and momentum,
// which stay in fp32 in global memory (in practice in L2) and pass through the block in tiles of kHidden hidden units:
//   1  Z_j = K W1_j^T, A_j = act(Z_j), Y += A_j W2_j^T        over the hidden tiles j
//   2  E = gradient of |M(K) - V|^2 with respect to Y           norm and residual included, factor 2
//   3  Z_j and A_j again, dZ_j = (E W2_j) act'(Z_j), and the update of both layers' rows or columns j
// Products take operands; what an update adds is summed and added in fp32. For the read pass (read.h) it writes a
// record per chunk (record.h), for backward the state before every keep_every-th chunk.
#pragma once

#include "activation.h"
#include "launch.h"
#include "norm.h"
#include "record.h"

// Weights and momentum in fp32, [hidden, D] and [D, hidden], of all samples and heads.
struct States {
  float *w1, *w2, *s1, *s2;  // s1, s2 NULL without momentum
  int64_t stride;            // from one sample and head to the next
};

struct StateArguments {
  nm_problem problem;
  Records records;
  States start, state;  // what the first chunk starts from; what is worked on. May be the same
  float *boundaries;    // [groups, B, H, w1 w2 s1 s2], or NULL
  int update;           // 0: only the records, and the state is left alone
};

template <class Op, int kD, int kRows>
struct StateShape {
  static constexpr int kHidden = kD == 128 && kRows == 128 ? 32 : 64;  // of one tile
  using Keys = Tile<Op, kRows, kD>;
  using Weight1 = Tile<Op, kHidden, kD>;
  using Weight2 = Tile<Op, kD, kHidden>;
  using Inner = Tile<Op, kRows, kHidden>;
  using Output = Fragments<kRows, kD>;
  // Two buffers each serve first a layer's weights, then what became of them.
  static constexpr int kFirst = Weight1::kBytes > Inner::kBytes ? Weight1::kBytes : Inner::kBytes;
  static constexpr int kSecond = Weight2::kBytes > Inner::kBytes ? Weight2::kBytes : Inner::kBytes;
  static constexpr int kShared = 2 * Keys::kBytes + kFirst + kSecond + (2 * kRows + Output::kExchange) * 4;
};

DEVICE_FN float4 scaled_4(float4 x, float s) { return float4{s * x.x, s * x.y, s * x.z, s * x.w}; }

// One matrix of a state: to where it is worked on, to the record, to the boundaries (each may be NULL).
template <class Op>
DEVICE_FN void open_matrix(const float *from, float *state, Op *snapshot, float *boundary, int64_t numbers) {
  UNROLL_1 for (int64_t i = thread_index() * 4; i < numbers; i += kThreads * 4) {
    const float4 x = load((const float4 *)(from + i));
    if (state && state != from) store((float4 *)(state + i), x);
    if (snapshot) store((uint2 *)(snapshot + i), uint2{pack<Op>(x.x, x.y), pack<Op>(x.z, x.w)});
    if (boundary) store((float4 *)(boundary + i), x);
  }
}

template <class Op>
DEVICE_FN void open_state(const States &from, const StateArguments &x, int64_t head, uint8_t *record, float *boundary) {
  const int64_t hd = x.problem.widths[0] * x.problem.widths[1];
  const RecordLayout &at = x.records.at;
  float *const source[4] = {from.w1, from.w2, from.s1, from.s2};
  float *const target[4] = {x.state.w1, x.state.w2, x.state.s1, x.state.s2};
  const int64_t snapshot[4] = {at.w1, at.w2, at.s1, at.s2};
  UNROLL for (int i = 0; i < 4; i++) {
    if (!source[i]) continue;
    open_matrix(source[i] + head * from.stride, x.update ? target[i] + head * x.state.stride : nullptr,
                record ? part<Op>(record, snapshot[i]) : nullptr, boundary ? boundary + i * hd : nullptr, hd);
  }
}

// Y in `y` becomes E. Rows past the last token become zero.
template <class Op, class Shape>
DEVICE_FN void output_gradient(typename Shape::Output &y, typename Shape::Keys keys, typename Shape::Keys values,
                               const nm_problem &p, Head h, int real, float *exchange) {
  using Output = typename Shape::Output;
  const float *gain = p.gain ? (const float *)p.gain + h.head * p.D : nullptr;
  const float *bias = p.gain ? (const float *)p.bias + h.head * p.D : nullptr;
  float rstd[Output::kSlots] = {};
  if (gain) normalise_rows(y, rstd, exchange);
  // 2 (M(k) - v), times gain: the gradient with respect to what the norm puts out.
  auto upstream = [&](int row, int column, int i) {
    const uint32_t k = load((const uint32_t *)keys.at(row, column));
    const uint32_t target = load((const uint32_t *)values.at(row, column));
    float2 f{y.value[i], y.value[i + 1]}, scale{2.f, 2.f};
    if (gain) {
      const float2 g = load((const float2 *)(gain + column)), c = load((const float2 *)(bias + column));
      f = float2{f.x * g.x + c.x, f.y * g.y + c.y};
      scale = float2{2.f * g.x, 2.f * g.y};
    }
    if (p.residual) f = float2{f.x + low_half<Op>(k), f.y + high_half<Op>(k)};
    return float2{scale.x * (f.x - low_half<Op>(target)), scale.y * (f.y - high_half<Op>(target))};
  };
  float mean[Output::kSlots] = {}, along[Output::kSlots] = {};  // of u, and of u times the normalised y
  UNROLL_1 for (int pass = gain ? 0 : 1; pass < 2; pass++) {
    Output::each([&](int row, int column, int i) {
      const int s = Output::slot(i);
      float2 u{0.f, 0.f};
      if (row < real) u = upstream(row, column, i);
      if (pass == 0) {
        mean[s] += (u.x + u.y) / Output::kN;
        along[s] += (u.x * y.value[i] + u.y * y.value[i + 1]) / Output::kN;
        return;
      }
      if (gain && row < real)
        u = float2{rstd[s] * (u.x - mean[s] - y.value[i] * along[s]),
                   rstd[s] * (u.y - mean[s] - y.value[i + 1] * along[s])};
      y.value[i] = u.x, y.value[i + 1] = u.y;
    });
    if (pass == 0) {
      sum_rows<Output>(mean, exchange);
      sum_rows<Output>(along, exchange);
    }
  }
}

// What the chunk leaves of a matrix of weights and momentum, plus what it wrote: rows and columns of one tile.
template <class Op, class C>
DEVICE_FN void update_matrix(const C &written, const C &pushed, float *w, float *s, Op *next_w, Op *next_s,
                             int64_t stride, const float *ends) {
  const float beta = load(ends), gamma = load(ends + 1), decay = load(ends + 2);
  C::each([&](int row, int column, int i) {
    const int64_t at = row * stride + column;
    float2 x = load((const float2 *)(w + at));
    x = float2{beta * x.x - written.value[i], beta * x.y - written.value[i + 1]};
    if (s) {
      const float2 m = load((const float2 *)(s + at));
      x = float2{x.x + gamma * m.x, x.y + gamma * m.y};
      const float2 next{decay * m.x - pushed.value[i], decay * m.y - pushed.value[i + 1]};
      store((float2 *)(s + at), next);
      if (next_s) store((uint32_t *)(next_s + at), pack<Op>(next.x, next.y));
    }
    store((float2 *)(w + at), x);
    if (next_w) store((uint32_t *)(next_w + at), pack<Op>(x.x, x.y));
  });
}

// The phases at the top. Where W1_j and W2_j were, A_j and dZ_j are put once nobody reads the weights any more.
template <class Op, int kD, int kRows>
KERNEL void LAUNCH_BOUNDS(kThreads) state_kernel(StateArguments x) {
  using Shape = StateShape<Op, kD, kRows>;
  using Hidden = Fragments<kRows, Shape::kHidden>;
  constexpr int kHidden = Shape::kHidden;
  const nm_problem &p = x.problem;
  const RecordLayout &at = x.records.at;
  const Head h = head_of(p, block_index());
  const int64_t hidden = p.widths[1], tiles = hidden / kHidden;

  uint8_t *shared = shared_memory();
  // The error takes the place of the values, element by element.
  const typename Shape::Keys keys(shared), values(shared + Shape::Keys::kBytes), error(values);
  uint8_t *first_buffer = shared + 2 * Shape::Keys::kBytes, *second_buffer = first_buffer + Shape::kFirst;
  const typename Shape::Weight1 w1(first_buffer);
  const typename Shape::Weight2 w2(second_buffer);
  const typename Shape::Inner a(first_buffer), dz(second_buffer);
  float *write = (float *)(second_buffer + Shape::kSecond), *push = write + kRows, *exchange = push + kRows;

  // No tokens: the state goes through all the same.
  if (x.records.count == 0) open_state<Op>(x.start, x, h.index, nullptr, nullptr);

  for (int64_t i = 0; i < x.records.count; i++) {
    const int64_t chunk = x.records.first + i, first = chunk * p.chunk_size;
    const int real = (int)smaller(p.chunk_size, p.T - first);
    uint8_t *record = x.records.record(h.index, i), *next = i + 1 < x.records.count ? record + at.bytes : nullptr;
    block_sync();  // the last chunk's update is complete, its tiles are free

    const bool restart = p.reset && load(p.reset + h.sample * p.T + first);
    const bool keep = x.boundaries && chunk % p.keep_every == 0;
    if (i == 0 || restart || keep) {
      States from = i == 0 ? x.start : x.state;
      if (restart) {
        from = States{(float *)p.first_weights[0], (float *)p.first_weights[1], (float *)p.first_momentum[0],
                      (float *)p.first_momentum[1], hidden * kD};
      }
      const int64_t numbers = (x.state.s1 ? 4 : 2) * hidden * kD;
      float *boundary =
          keep ? x.boundaries + (chunk / p.keep_every * p.B * p.H + h.index) * numbers : nullptr;
      open_state<Op>(from, x, h.index, record, boundary);
    }
    load_tile(keys, token<Op>(p, p.k, h, first), p.H * kD, real);
    load_tile(values, token<Op>(p, p.v, h, first), p.H * kD, real);
    copy_floats(write, part<float>(record, at.write) + (real ? real - 1 : 0) * kRows, kRows, kRows);
    copy_floats(push, part<float>(record, at.push), kRows, kRows);

    auto load_weights = [&](int64_t j) {
      block_sync();
      load_tile(w1, part<Op>(record, at.w1) + j * kHidden * kD, kD, kHidden);
      load_tile(w2, part<Op>(record, at.w2) + j * kHidden, hidden, kD);
      block_sync();
    };

    typename Shape::Output y;
    for (int64_t j = 0; j < tiles; j++) {
      load_weights(j);
      Hidden z;
      multiply_nt(z, keys, w1);
      UNROLL for (int n = 0; n < Hidden::kCount; n++) z.value[n] = activate(p.activation, z.value[n]).value;
      block_sync();
      put_tile(z, a);
      block_sync();
      multiply_nt(y, a, w2);
    }
    output_gradient<Op, Shape>(y, keys, values, p, h, real, exchange);
    put_tile(y, error);
    block_sync();
    save_tile(error, part<Op>(record, at.e), kD, kRows);

    for (int64_t j = 0; j < tiles; j++) {
      load_weights(j);
      {
        Hidden z, da;
        multiply_nt(z, keys, w1);
        multiply_nn(da, error, w2);
        UNROLL for (int n = 0; n < Hidden::kCount; n++) {
          const Activated act = activate(p.activation, z.value[n]);
          z.value[n] = act.value, da.value[n] *= act.slope;
        }
        block_sync();
        put_tile(z, a);
        put_tile(da, dz);
        block_sync();
      }
      save_tile(a, part<Op>(record, at.a) + j * kHidden, hidden, kRows);
      save_tile(dz, part<Op>(record, at.dz) + j * kHidden, hidden, kRows);
      if (!x.update) continue;

      const float *ends = part<float>(record, at.ends);
      const int64_t offset1 = j * kHidden * kD, offset2 = j * kHidden, state = h.index * x.state.stride;
      auto update = [&](auto &written, auto &pushed, float *w, float *s, int64_t next_w, int64_t next_s,
                        int64_t offset, int64_t stride) {
        update_matrix<Op>(written, pushed, w + state + offset, s ? s + state + offset : nullptr,
                          next ? part<Op>(next, next_w) + offset : nullptr,
                          next ? part<Op>(next, next_s) + offset : nullptr, stride, ends);
      };
      {
        Fragments<kHidden, kD> written, pushed;
        multiply_tn(written, dz, keys, ScaleDepth<Op>{write});
        if (x.state.s1) multiply_tn(pushed, dz, keys, ScaleDepth<Op>{push});
        update(written, pushed, x.state.w1, x.state.s1, at.w1, at.s1, offset1, kD);
      }
      {
        Fragments<kD, kHidden> written, pushed;
        multiply_tn(written, error, a, ScaleDepth<Op>{write});
        if (x.state.s1) multiply_tn(pushed, error, a, ScaleDepth<Op>{push});
        update(written, pushed, x.state.w2, x.state.s2, at.w2, at.s2, offset2, hidden);
      }
    }
  }
}
