// bench_cpu_gemm.cpp - GFLOP/s of the CPU kernels' matrix products in the shapes that a memory needs, next to the
// rate of bare multiply-adds in registers. The fastest of many repetitions: other processes only ever slow one down.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <initializer_list>

#include "../cpu/gemm.h"
#include "../cpu/processor.h"

using namespace nm::NM_ISA;

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double bare_rate() {
  Vec<float> sums[12] = {};
  Vec<float> x = broadcast(0.5f), y = broadcast(0.25f);
  double best = 1e9;
  for (int repeat = 0; repeat < 50; repeat++) {
    double start = now();
    for (int i = 0; i < 20000; i++) {
#pragma GCC unroll 12
      for (int j = 0; j < 12; j++) sums[j] = sums[j] * x + y;
      asm volatile("" : "+x"(x));
    }
    double seconds = now() - start;
    if (seconds < best) best = seconds;
  }
  float total = 0;
  for (auto& s : sums) total += s[0];
  if (total == 0) printf("never\n");  // the sums are used
  return 20000.0 * 12 * 2 * kLanes<float> / best / 1e9;
}

template <Operand kOperand>
static double rate(int M, int N, int K, bool a_transposed, bool b_transposed, Triangle triangle, bool epilogue) {
  int a_stride = (int)round_up(a_transposed ? M : K, kLanes<float>);
  int b_stride = (int)round_up(b_transposed ? K : N, kLanes<float>), c_stride = (int)round_up(N, kLanes<float>);
  int64_t sizes[] = {(int64_t)a_stride * (a_transposed ? K : M), (int64_t)b_stride * (b_transposed ? N : K),
                     (int64_t)c_stride * M, gemm_scratch(M, N, K)};
  float* at[4];
  for (int i = 0; i < 4; i++) {
    at[i] = (float*)aligned_alloc(64, round_up(sizes[i] * 4, 64));
    for (int64_t j = 0; j < sizes[i]; j++) at[i][j] = (float)rand() / RAND_MAX - 0.5f;
  }
  Matrix<float> A{at[0], a_stride, a_transposed}, B{at[1], b_stride, b_transposed};
  Result<float> C{at[2], c_stride};
  if (epilogue) C.keep = 0.5f, C.row = at[0], C.scale = 0.5f;
  double best = 1e9, flops = 2.0 * M * N * K;
  int inner = (int)(2e6 / flops) + 1;
  for (int repeat = 0; repeat < 300; repeat++) {
    double start = now();
    for (int i = 0; i < inner; i++) gemm<kOperand>(M, N, K, A, B, C, triangle, at[3]);
    double seconds = (now() - start) / inner;
    if (seconds < best) best = seconds;
  }
  for (float* p : at) free(p);
  return flops / best / 1e9;
}

template <Operand kOperand>
static void table(const char* name) {
  const int shapes[][3] = {{64, 256, 64}, {256, 64, 64}, {64, 64, 256}, {64, 64, 64}, {256, 256, 64},
                           {128, 256, 64}, {64, 512, 128}, {16, 256, 64}, {16, 64, 256}, {12, 256, 64},
                           {8, 256, 64}, {5, 256, 64}, {2, 256, 64}, {1, 256, 64}, {1, 64, 256}, {300, 300, 300}};
  printf("%s: A B, A B^T, A^T B, A^T B^T | A B with keep, scale and row | A B of an output, lower, upper triangle\n"
         "(operations counted as for a whole product)\n",
         name);
  for (auto& s : shapes) {
    printf("%3d x %3d x %3d:", s[0], s[1], s[2]);
    auto measured = [&](int form, int triangle, bool epilogue) {
      return rate<kOperand>(s[0], s[1], s[2], form & 1, form & 2, (Triangle)triangle, epilogue);
    };
    for (int form : {0, 2, 1, 3}) printf(" %6.1f", measured(form, 0, false));
    printf(" | %6.1f |", measured(0, 0, true));
    for (int triangle = 1; triangle < 4; triangle++) printf(" %6.1f", measured(0, triangle, false));
    printf("\n");
  }
}

int main() {
  printf("bare multiply-adds: %.1f GFLOP/s\n", bare_rate());
  table<Operand::full>("float32");
#if defined(__AMX_BF16__)
  if (nm::processor_has("amx")) table<Operand::bf16>("bf16");
#endif
  return 0;
}
