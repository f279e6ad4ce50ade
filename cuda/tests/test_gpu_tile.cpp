// build: -O3 -std=c++17 -Wall -Wextra
// test_gpu_tile.cpp - the emulator and the tile primitives: products of every orientation and shape against sums in
// double precision, row sums, and that what the emulator claims to notice is noticed. Exit status 0: all is well.
#include <stdio.h>

#include <random>
#include <vector>

#include "../gpu/norm.h"
#include "../gpu/tile.h"
#include "fault.h"

static int failures = 0;

static void check(bool good, const char *what, double got) {
  if (!good) printf("FAIL %s: %.3g\n", what, got), failures++;
}

enum Scaling { kNone, kByRow, kByDepth };

template <int kM, int kN, int kK, class Op, bool kTransA, bool kTransB>
static void product(Scaling scaling) {
  using C = Fragments<kM, kN>;
  using A = Tile<Op, kTransA ? kK : kM, kTransA ? kM : kK>;
  using B = Tile<Op, kTransB ? kN : kK, kTransB ? kK : kN>;
  std::mt19937 random(kM + kN + kK);
  std::normal_distribution<float> normal;
  std::vector<Op> a(kM * kK), b(kK * kN);
  std::vector<float> scale(128), c(kM * kN, NAN), sums(kM, NAN);
  for (Op &x : a) x = to_op<Op>(normal(random));
  for (Op &x : b) x = to_op<Op>(normal(random));
  for (float &x : scale) x = normal(random);
  sim::launch(1, kThreads, A::kBytes + B::kBytes + (128 + C::kExchange) * 4, [&] {
    const A tile_a(shared_memory());
    const B tile_b(shared_memory() + A::kBytes);
    float *s = (float *)(shared_memory() + A::kBytes + B::kBytes);
    load_tile(tile_a, a.data(), A::kColumns, A::kRows);
    load_tile(tile_b, b.data(), B::kColumns, B::kRows);
    copy_floats(s, scale.data(), 128, 128);
    block_sync();
    C result;
    if (scaling == kNone) multiply<kTransA, kTransB>(result, tile_a, tile_b, NoScale());
    if (scaling == kByRow) multiply<kTransA, kTransB>(result, tile_a, tile_b, ScaleRows<Op>{s});
    if (scaling == kByDepth) multiply<kTransA, kTransB>(result, tile_a, tile_b, ScaleDepth<Op>{s});
    float row_sums[C::kSlots] = {};
    C::each([&](int row, int column, int i) {
      store(&c[row * kN + column], result.value[i]);
      store(&c[row * kN + column + 1], result.value[i + 1]);
      row_sums[C::slot(i)] += result.value[i] + result.value[i + 1];
    });
    sum_rows<C>(row_sums, s + 128);
    if (C::active() && C::first_column() == 0 && thread_index() % 4 == 0)
      for (int i = 0; i < C::kSlots; i++) store(&sums[C::row_of_slot(i)], row_sums[i]);
  });
  double worst = 0.;
  for (int m = 0; m < kM; m++) {
    double row = 0.;
    for (int n = 0; n < kN; n++) {
      double sum = 0.;
      for (int k = 0; k < kK; k++) {
        float x = to_float(a[kTransA ? k * kM + m : m * kK + k]);
        if (scaling != kNone) x = to_float(to_op<Op>(x * scale[scaling == kByRow ? m : k]));
        sum += x * to_float(b[kTransB ? n * kK + k : k * kN + n]);
      }
      row += sum;
      worst = fabs(sum - c[m * kN + n]) <= worst ? worst : fabs(sum - c[m * kN + n]);
    }
    worst = fabs(row - sums[m]) <= worst ? worst : fabs(row - sums[m]);
  }
  check(worst < 1e-3, "product", worst);
}

template <int kM, int kN, int kK, class Op>
static void orientations() {
  for (Scaling scaling : {kNone, kByRow, kByDepth}) {
    product<kM, kN, kK, Op, false, false>(scaling);
    product<kM, kN, kK, Op, false, true>(scaling);
    product<kM, kN, kK, Op, true, false>(scaling);
    product<kM, kN, kK, Op, true, true>(scaling);
  }
}

// What a kernel of one block does wrong, and that the emulator stops it with exit status 3 (or a crash).
static void must_stop(const char *what, std::function<void()> kernel, int blocks = 1) {
  for (unsigned schedule = 0; schedule < 3; schedule++) {
    const int status = status_of([&] {
      sim::schedule = schedule;
      sim::launch(blocks, kThreads, 4096, kernel);
      return 0;
    });
    check(status == 3 || status == 128 + SIGSEGV, what, status);
  }
}

static void emulator_notices() {
  uint32_t *shared = nullptr;
  auto base = [&] { return shared = (uint32_t *)shared_memory(); };
  std::vector<uint32_t> memory(4 * kThreads);
  must_stop("a read without a barrier", [&] {
    store(base() + thread_index(), 1u);
    load(shared + (thread_index() + 32) % kThreads);
  });
  must_stop("a read inside a warp without warp_sync", [&] {
    store(base() + thread_index(), 1u);
    load(shared + (thread_index() ^ 1));
  });
  must_stop("collectives do not order memory", [&] {
    store(base() + thread_index(), 1u);
    shuffle_xor(1.f, 1);
    load(shared + (thread_index() ^ 1));
  });
  must_stop("an overwritten value that others read", [&] {
    if (thread_index() == 0) store(base(), 1u);
    block_sync();
    load(base());
    if (thread_index() == 40) store(base(), 2u);
  });
  must_stop("two writers", [&] { store(base(), 1u); });
  must_stop("two blocks that write", [&] { if (thread_index() == 0) store(memory.data(), 1u); }, 2);
  must_stop("a block that reads what another writes", [&] {
    if (thread_index() == 0 && block_index() == 1) store(memory.data(), 1u);
    if (thread_index() == 0 && block_index() == 0) load(memory.data());
  }, 2);
  must_stop("a barrier that not all reach", [&] { if (thread_index() < 64) block_sync(); });
  must_stop("a shuffle that not all lanes reach", [&] { if (thread_index() % 32 < 31) shuffle_xor(1.f, 1); });
  must_stop("lanes in different collectives", [&] {
    if (thread_index() % 2) warp_sync();
    else shuffle_xor(1.f, 2);
  });
  must_stop("a store past the end of shared memory", [&] { store(base() + 1024 + thread_index(), 1u); });
  must_stop("ldmatrix outside of shared memory", [&] {
    uint32_t r[4];
    load_matrix_x4(r, memory.data());
  });
  must_stop("ldmatrix of an unaligned row", [&] {
    uint32_t r[4];
    load_matrix_x4(r, base() + 1);
  });
  must_stop("an unaligned vector", [&] { load((const uint4 *)(base() + 4 * thread_index() + 1)); });

  // And that none of this is seen where all is well.
  for (unsigned schedule = 0; schedule < 6; schedule++) {
    sim::schedule = schedule;
    std::vector<float> out(3 * kThreads);
    sim::launch(3, kThreads, 4096, [&] {
      const int i = thread_index();
      float *mine = (float *)shared_memory();
      if (i % 32 == 5) check(load(mine + i) != load(mine + i), "shared memory starts as NaN", 0.);
      store(mine + i, (float)i);
      warp_sync();
      float x = load(mine + (i ^ 1));
      block_sync();
      store(mine + (i + 64) % kThreads, x);
      block_sync();
      x = load(mine + i) + shuffle_xor(load(mine + i), 1);
      store(&out[block_index() * kThreads + i], x);
    });
    for (int i = 0; i < 3 * kThreads; i++) {
      const int j = (i % kThreads + kThreads - 64) % kThreads;
      check(out[i] == (float)(j + (j ^ 1)), "barriers order memory", out[i]);
    }
  }
}

int main() {
  for (unsigned schedule = 0; schedule < 3; schedule++) {
    sim::schedule = schedule;
    orientations<16, 16, 16, bf16>();
    orientations<16, 64, 32, fp16>();
    orientations<32, 64, 16, bf16>();
    orientations<64, 48, 64, bf16>();
    orientations<128, 128, 32, fp16>();
  }
  emulator_notices();
  printf(failures ? "%d FAILURES\n" : "PASS\n", failures);
  return failures != 0;
}
