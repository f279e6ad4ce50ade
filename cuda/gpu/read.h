// read.h - the read pass: one block per sample, head and chunk answers the chunk's queries, row t through W_t.
//
//   P = (Q K^T) o write
//   Zq_j = beta Q W1_j^T + gamma Q S1_j^T - P dZ_j,  Aq_j = act(Zq_j)                     over the hidden tiles j
//   Y += (beta Aq_j) W2_j^T + (gamma Aq_j) S2_j^T,   R += Aq_j A_j^T
//   Y -= (R o write) E,  then the norm and the residual
// All but Q and K comes from the chunk's record (record.h). Products with `write` are taken in fp32, before rounding.
#pragma once

#include "state.h"

struct ReadArguments {
  nm_problem problem;
  Records records;
  void *y;
  int one;  // 1: q and y hold one token, which is read after the chunk's last key
};

template <class Op, int kD, int kRows>
struct ReadShape {
  static constexpr int kHidden = kRows == 128 ? 32 : 64;  // of one tile
  using Queries = Tile<Op, kRows, kD>;
  using Scores = Tile<Op, kRows, kRows>;
  using Weight1 = Tile<Op, kHidden, kD>;
  using Weight2 = Tile<Op, kD, kHidden>;
  using Inner = Tile<Op, kRows, kHidden>;
  using Output = Fragments<kRows, kD>;
  static constexpr int larger(int a, int b) { return a < b ? b : a; }
  // Keys are needed only until the scores are there, which take their place.
  static constexpr int kScores = larger(Scores::kBytes, Queries::kBytes);
  static constexpr int kFirst = larger(larger(Weight1::kBytes, Inner::kBytes), Output::kExchange * 4);
  static constexpr int kSecond = larger(larger(Weight1::kBytes, Weight2::kBytes), Inner::kBytes);
  static constexpr int kThird = larger(Weight2::kBytes, Inner::kBytes);
  static constexpr int kShared = Queries::kBytes + kScores + kFirst + kSecond + kThird + 2 * kRows * 4;
};

template <class Op, int kD, int kRows>
KERNEL void LAUNCH_BOUNDS(kThreads) read_kernel(ReadArguments x) {
  using Shape = ReadShape<Op, kD, kRows>;
  using Hidden = Fragments<kRows, Shape::kHidden>;
  using Pairs = Fragments<kRows, kRows>;
  using Output = typename Shape::Output;
  constexpr int kHidden = Shape::kHidden;
  const nm_problem &p = x.problem;
  const RecordLayout &at = x.records.at;
  const Head h = head_of(p, block_index() / x.records.count);
  const int64_t i = block_index() % x.records.count, first = (x.records.first + i) * p.chunk_size;
  const int real = (int)smaller(p.chunk_size, p.T - first);
  const int64_t hidden = p.widths[1], tiles = hidden / kHidden;
  uint8_t *record = x.records.record(h.index, i);
  // Of one query after the last key, row `real - 1` of everything is wanted; with no keys at all, row 0.
  const int begin = x.one && real ? real - 1 : 0, end = x.one ? begin + 1 : real;
  const int64_t stride = p.H * kD, offset = x.one ? h.index * kD : token_offset(p, h, first);
  const Op *q = (const Op *)p.q + offset;
  Op *out = (Op *)x.y + offset;

  uint8_t *shared = shared_memory();
  const typename Shape::Queries queries(shared), error(shared);
  uint8_t *scores_buffer = shared + Shape::Queries::kBytes, *first_buffer = scores_buffer + Shape::kScores,
          *second_buffer = first_buffer + Shape::kFirst, *third_buffer = second_buffer + Shape::kSecond;
  const typename Shape::Queries keys(scores_buffer);
  const typename Shape::Scores scores(scores_buffer);
  const typename Shape::Weight1 w1(first_buffer), s1(second_buffer);
  const typename Shape::Weight2 w2(second_buffer), s2(third_buffer);
  const typename Shape::Inner dz(third_buffer), aq(first_buffer), a(second_buffer);
  float *beta = (float *)(third_buffer + Shape::kThird), *gamma = beta + kRows, *exchange = (float *)first_buffer;

  load_rows(queries, q, stride, begin, end);
  load_tile(keys, token<Op>(p, p.k, h, first), stride, real);
  copy_floats(beta, part<float>(record, at.beta), kRows, kRows);
  copy_floats(gamma, part<float>(record, at.gamma), kRows, kRows);
  block_sync();

  // Scores are kept negative, so that a product can subtract.
  auto put_scores = [&](Pairs &pairs) {
    const float *write = part<float>(record, at.write);
    Pairs::each([&](int row, int column, int n) {
      const float2 c = load((const float2 *)(write + row * kRows + column));
      pairs.value[n] *= -c.x, pairs.value[n + 1] *= -c.y;
    });
    put_tile(pairs, scores);
  };
  {
    Pairs qk;
    multiply_nt(qk, queries, keys);
    block_sync();
    put_scores(qk);
  }

  Output y;
  Pairs r;
  for (int64_t j = 0; j < tiles; j++) {
    block_sync();
    load_tile(w1, part<Op>(record, at.w1) + j * kHidden * kD, kD, kHidden);
    if (p.eta) load_tile(s1, part<Op>(record, at.s1) + j * kHidden * kD, kD, kHidden);
    load_tile(dz, part<Op>(record, at.dz) + j * kHidden, hidden, kRows);
    block_sync();
    {
      Hidden z;
      multiply_nt(z, queries, w1);
      Hidden::each([&](int row, int, int n) {
        const float b = load(beta + row);
        z.value[n] *= b, z.value[n + 1] *= b;
      });
      if (p.eta) {
        Hidden s;
        multiply_nt(s, queries, s1);
        Hidden::each([&](int row, int, int n) {
          const float c = load(gamma + row);
          z.value[n] += c * s.value[n], z.value[n + 1] += c * s.value[n + 1];
        });
      }
      multiply_nn(z, scores, dz);
      UNROLL for (int n = 0; n < Hidden::kCount; n++) z.value[n] = activate(p.activation, z.value[n]).value;
      block_sync();
      put_tile(z, aq);
    }
    load_tile(w2, part<Op>(record, at.w2) + j * kHidden, hidden, kD);
    if (p.eta) load_tile(s2, part<Op>(record, at.s2) + j * kHidden, hidden, kD);
    block_sync();
    multiply_nt(y, aq, w2, ScaleRows<Op>{beta});
    if (p.eta) multiply_nt(y, aq, s2, ScaleRows<Op>{gamma});
    block_sync();
    load_tile(a, part<Op>(record, at.a) + j * kHidden, hidden, kRows);
    block_sync();
    multiply_nt(r, aq, a);
  }
  block_sync();
  put_scores(r);
  load_tile(error, part<Op>(record, at.e), kD, kRows);
  block_sync();
  multiply_nn(y, scores, error);

  const float *gain = p.gain ? (const float *)p.gain + h.head * p.D : nullptr;
  const float *bias = p.gain ? (const float *)p.bias + h.head * p.D : nullptr;
  if (gain) {
    float rstd[Output::kSlots];
    normalise_rows(y, rstd, exchange);
  }
  Output::each([&](int row, int column, int n) {
    if (row < begin || row >= end) return;
    float2 f{y.value[n], y.value[n + 1]};
    if (gain) {
      const float2 g = load((const float2 *)(gain + column)), c = load((const float2 *)(bias + column));
      f = float2{f.x * g.x + c.x, f.y * g.y + c.y};
    }
    if (p.residual) {
      const uint32_t u = load((const uint32_t *)(q + (row - begin) * stride + column));
      f = float2{f.x + low_half<Op>(u), f.y + high_half<Op>(u)};
    }
    store((uint32_t *)(out + (row - begin) * stride + column), pack<Op>(f.x, f.y));
  });
}
