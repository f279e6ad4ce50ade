// conformance.h - kernels that do nothing but call each function of simt.h and tile.h on given words.
//
// conformance.cu runs them on a GPU, conformance_emulated.cpp in the emulator, and the results are compared: the
// emulator's claim about lanes, roundings and layouts against the hardware's.
#pragma once

#include "../gpu/activation.h"
#include "../gpu/norm.h"
#include "../gpu/tile.h"

namespace conformance {

struct Arguments {
  const uint32_t *in;
  uint32_t *out;
};

enum Words { kFloats, kEdges, kBfloat16, kFloat16, kAnything };  // what the input is made of

DEVICE_FN uint32_t bits_of(float x) {
  union {
    float f;
    uint32_t u;
  } both{x};
  return both.u;
}
DEVICE_FN float float_of(uint32_t u) {
  union {
    uint32_t u;
    float f;
  } both{u};
  return both.f;
}
template <class Op>
DEVICE_FN uint32_t bits_of_op(Op x) {
  union {
    Op op;
    uint16_t u;
  } both{x};
  return both.u;
}

// In: 1024 floats. Out: for each, to_op, then pack with the next, and its two halves.
template <class Op>
KERNEL void convert(Arguments a) {
  for (int i = thread_index(); i < 1024; i += kThreads) {
    const float x = float_of(load(a.in + i)), y = float_of(load(a.in + (i + 1) % 1024));
    const uint32_t both = pack<Op>(x, y);
    store(a.out + 4 * i, bits_of_op(to_op<Op>(x)));
    store(a.out + 4 * i + 1, both);
    store(a.out + 4 * i + 2, bits_of(low_half<Op>(both)));
    store(a.out + 4 * i + 3, bits_of(high_half<Op>(both)));
  }
}

// In, per thread: A 4, B 2, C 2 words of operands; C's are also what the accumulators start from. Out: 4 sums.
template <class Op>
KERNEL void mma(Arguments a) {
  const int t = thread_index();
  uint32_t x[4];
  for (int i = 0; i < 4; i++) x[i] = load(a.in + t * 8 + i);
  const uint32_t y = load(a.in + t * 8 + 4), z = load(a.in + t * 8 + 5), u = load(a.in + t * 8 + 6),
                 w = load(a.in + t * 8 + 7);
  float c[4] = {low_half<Op>(u), high_half<Op>(u), low_half<Op>(w), high_half<Op>(w)};
  mma_m16n8k16<Op>(c, x, y, z);
  for (int i = 0; i < 4; i++) store(a.out + t * 4 + i, bits_of(c[i]));
}

// In: 64 rows of 4 words for shared memory, then a word per thread that chooses a row. Out: 4 words of each kind.
KERNEL void load_matrices(Arguments a) {
  uint32_t *shared = (uint32_t *)shared_memory();
  const int t = thread_index();
  store(shared + t, load(a.in + t));
  block_sync();
  const uint32_t *row = shared + load(a.in + kThreads + t) % 64 * 4;
  uint32_t x[4][4] = {}, y[2][2];
  load_matrix_x4(x[0], row);
  load_matrix_x4_trans(x[1], row);
  load_matrix_x2(y[0], row);
  load_matrix_x2_trans(y[1], row);
  for (int i = 0; i < 4; i++) x[2 + i / 2][i % 2] = y[i / 2][i % 2];
  for (int i = 0; i < 16; i++) store(a.out + t * 16 + i, x[i / 4][i % 4]);
}

// In: a float per thread. Out: 5 shuffle_xor, 1 shuffle.
KERNEL void shuffles(Arguments a) {
  const int t = thread_index();
  const float x = float_of(load(a.in + t));
  for (int i = 0; i < 5; i++) store(a.out + t * 6 + i, bits_of(shuffle_xor(x, 1 << i)));
  store(a.out + t * 6 + 5, bits_of(shuffle(x, (t * 7 + 3) % 32)));
}

// In: 1024 floats. Out: exponential, reciprocal, inverse_square_root, error_function.
KERNEL void functions(Arguments a) {
  for (int i = thread_index(); i < 1024; i += kThreads) {
    const float x = float_of(load(a.in + i));
    store(a.out + 4 * i, bits_of(exponential(x)));
    store(a.out + 4 * i + 1, bits_of(reciprocal(x)));
    store(a.out + 4 * i + 2, bits_of(inverse_square_root(x < 0.f ? -x : x)));
    store(a.out + 4 * i + 3, bits_of(error_function(x)));
  }
}

// In: 1024 floats. Out: value and slope of each activation.
KERNEL void activations(Arguments a) {
  for (int i = thread_index(); i < 1024; i += kThreads)
    for (int kind = 0; kind < 4; kind++) {
      const Activated x = activate(kind, float_of(load(a.in + i)));
      store(a.out + 8 * i + 2 * kind, bits_of(x.value));
      store(a.out + 8 * i + 2 * kind + 1, bits_of(x.slope));
    }
}

// In: two tiles [64, 32] and [32, 64] of operands, row after row. Out: the products that fit, their row sums and norms.
template <class Op>
KERNEL void products(Arguments a) {
  using Wide = Tile<Op, 32, 64>;
  using Tall = Tile<Op, 64, 32>;
  using Large = Fragments<64, 64>;
  using Small = Fragments<32, 32>;
  uint8_t *shared = shared_memory();
  const Tall tall(shared);
  const Wide wide(shared + Tall::kBytes);
  float *scale = (float *)(shared + Tall::kBytes + Wide::kBytes), *exchange = scale + 64;
  load_tile(tall, (const Op *)a.in, 32, 64);
  load_tile(wide, (const Op *)(a.in + 1024), 64, 32);
  for (int i = thread_index(); i < 64; i += kThreads) store(scale + i, .25f * (i % 7) - .5f);
  block_sync();
  uint32_t *out = a.out;
  auto put = [&](const auto &c) {
    using C = typename std::remove_reference<decltype(c)>::type;
    C::each([&](int row, int column, int i) {
      store(out + row * C::kN + column, bits_of(c.value[i]));
      store(out + row * C::kN + column + 1, bits_of(c.value[i + 1]));
    });
    out += C::kM * C::kN;
  };
  Large nn, tt;
  Small nn_small, nt_small, tn_small;
  multiply_nn(nn, tall, wide, ScaleRows<Op>{scale});
  multiply_tt(tt, wide, tall, ScaleDepth<Op>{scale});
  multiply_nn(nn_small, wide, tall);
  multiply_nt(nt_small, wide, wide, ScaleDepth<Op>{scale});
  multiply_tn(tn_small, tall, tall, ScaleRows<Op>{scale});
  put(nn), put(tt), put(nn_small), put(nt_small), put(tn_small);
  float rstd[Large::kSlots];
  normalise_rows(nn, rstd, exchange);
  put(nn);
}

struct Case {
  const char *name;
  void (*kernel)(Arguments);
  Words words;
  int in, out, shared;      // words, words, bytes
  double relative, absolute;  // how far the two may be apart; 0 and 0: the same bits, any NaN being like any other
};

constexpr int kProductsShared = Tile<uint16_t, 64, 32>::kBytes + Tile<uint16_t, 32, 64>::kBytes + (64 + 8 * 64) * 4;
constexpr int kProductsOut = 3 * 64 * 64 + 3 * 32 * 32;

// Sums: fp32, in an order of the hardware's own. Functions: __expf is off by 2 + 1.2 |x| units in the last place.
static const Case kCases[] = {
    {"convert bf16", convert<bf16>, kEdges, 1024, 4096, 0, 0, 0},
    {"convert fp16", convert<fp16>, kEdges, 1024, 4096, 0, 0, 0},
    {"mma bf16", mma<bf16>, kBfloat16, 8 * kThreads, 4 * kThreads, 0, 1e-6, 1e-4},
    {"mma fp16", mma<fp16>, kFloat16, 8 * kThreads, 4 * kThreads, 0, 1e-6, 1e-4},
    {"ldmatrix", load_matrices, kAnything, 2 * kThreads, 16 * kThreads, 1024, 0, 0},
    {"shuffle", shuffles, kFloats, kThreads, 6 * kThreads, 0, 0, 0},
    {"functions", functions, kFloats, 1024, 4096, 0, 4e-6, 0},
    {"activations", activations, kFloats, 1024, 8192, 0, 1e-5, 1e-6},
    {"products bf16", products<bf16>, kBfloat16, 2048, kProductsOut, kProductsShared, 1e-5, 5e-4},
    {"products fp16", products<fp16>, kFloat16, 2048, kProductsOut, kProductsShared, 1e-5, 5e-4},
};
constexpr int kCount = sizeof(kCases) / sizeof(kCases[0]);

}  // namespace conformance
