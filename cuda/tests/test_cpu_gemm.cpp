// test_cpu_gemm.cpp - the CPU kernels' matrix products, exponential and activations against double loops and libm, in
// the instruction set this file is compiled for. Prints a line per group; exit status 1 if any failed.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../cpu/activation.h"
#include "../cpu/gemm.h"
#include "../cpu/processor.h"

using namespace nm::NM_ISA;

// Operand::bf16 allows rounding; this says where it is done.
static bool rounds(Operand operand, int M) {
#if defined(__AMX_BF16__)
  return operand == Operand::bf16 && M >= kLeastTileRows;
#else
  return operand == Operand::bf16 && M < 0;
#endif
}

static int failures = 0;

static void report(const char* group, int cases, double worst, double tolerance) {
  bool good = worst <= tolerance;  // false for NaN
  const char* verdict = good ? "ok  " : "FAIL";
  printf("%s %-40s %6d cases, worst error %.3g, allowed %.3g\n", verdict, group, cases, worst, tolerance);
  if (!good) failures++;
}

// The larger error; NaN counts as infinite, so that it is never forgotten.
static double worse(double worst, double error) { return error <= worst ? worst : error > worst ? error : INFINITY; }

static double uniform() { return 2.0 * rand() / RAND_MAX - 1; }

static double bf16(double x) {
  float f = (float)x;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  memcpy(&f, &bits, 4);
  return f;
}

// Storage of rows x columns with padding, all of it poison until elements are set; the page after it is inaccessible.
template <class T>
struct Buffer {
  int rows, columns, stride;
  T* data;
  void* pages;
  size_t mapped;
  Buffer(int rows_, int columns_, bool odd) : rows(rows_), columns(columns_) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    stride = (int)round_up(columns, kLanes<T>) + (odd ? kLanes<T> : 0);
    size_t bytes = (size_t)rows * stride * sizeof(T), used = (bytes + page - 1) / page * page;
    mapped = used + page;
    pages = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect((char*)pages + used, page, PROT_NONE) != 0) abort();
    data = (T*)((char*)pages + used - bytes);
    for (int64_t i = 0; i < (int64_t)rows * stride; i++) data[i] = (T)NAN;
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { munmap(pages, mapped); }
  void fill() {
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++) data[(int64_t)r * stride + c] = (T)uniform();
  }
};

template <class T>
static double element(const Matrix<T>& m, int r, int c) {
  return m.transposed ? m.data[(int64_t)c * m.stride + r] : m.data[(int64_t)r * m.stride + c];
}

// One product; the error is relative to the sum of the factors' magnitudes.
template <Operand kOperand, class T>
static double check(int M, int N, int K, bool a_transposed, bool b_transposed, Triangle triangle, int epilogue,
                    bool odd) {
  Buffer<T> a(a_transposed ? K : M, a_transposed ? M : K, odd), b(b_transposed ? N : K, b_transposed ? K : N, odd);
  Buffer<T> c(M, N, odd), add(M, N, !odd), row(1, M, false);
  a.fill(), b.fill(), add.fill(), row.fill();
  if (triangle == Triangle::lower || triangle == Triangle::upper)
    for (int m = 0; m < M; m++)
      for (int k = 0; k < K; k++)
        if (triangle == Triangle::lower ? k > m : k < m)
          a.data[a_transposed ? (int64_t)k * a.stride + m : (int64_t)m * a.stride + k] = (T)NAN;
  Result<T> C{c.data, c.stride};
  if (epilogue & 1) C.keep = (T)0.75, c.fill();
  if (epilogue & 2) C.add = add.data, C.add_stride = add.stride, C.add_scale = (T)-1.5;
  if (epilogue & 4) C.scale = (T)1.25;
  if (epilogue & 8) C.row = row.data;
  if (epilogue & 16) C.add = c.data, C.add_stride = c.stride, c.fill();
  Matrix<T> A{a.data, a.stride, a_transposed}, B{b.data, b.stride, b_transposed};
  double* expected = (double*)malloc(sizeof(double) * M * N);
  double* size = (double*)malloc(sizeof(double) * M * N);
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      double total = 0, magnitude = 0;
      for (int k = 0; k < K; k++) {
        if ((triangle == Triangle::lower && k > m) || (triangle == Triangle::upper && k < m)) continue;
        double x = element(A, m, k), y = element(B, k, n);
        if (rounds(kOperand, M)) x = bf16(x), y = bf16(y);
        total += x * y, magnitude += fabs(x * y);
      }
      double factor = C.scale * (C.row ? (double)C.row[m] : 1.0);
      double kept = C.keep != 0 ? C.keep * (double)c.data[(int64_t)m * c.stride + n] : 0;
      double added = C.add ? C.add_scale * (double)C.add[(int64_t)m * C.add_stride + n] : 0;
      expected[m * N + n] = kept + added + factor * total;
      size[m * N + n] = fabs(kept) + fabs(added) + fabs(factor) * magnitude + 1e-3;
    }
  int64_t numbers = gemm_scratch(M, N, K);
  T* scratch = (T*)aligned_alloc(64, round_up(numbers * sizeof(T), 64) + 64);
  for (int64_t i = 0; i < numbers; i++) scratch[i] = (T)NAN;
  T guard = (T)12345;
  memcpy(scratch + numbers, &guard, sizeof guard);
  gemm<kOperand>(M, N, K, A, B, C, triangle, scratch);
  double worst = memcmp(scratch + numbers, &guard, sizeof guard) == 0 ? 0 : INFINITY;
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      if (triangle == Triangle::output && n > m) continue;
      double error = fabs(c.data[(int64_t)m * c.stride + n] - expected[m * N + n]) / size[m * N + n];
      worst = worse(worst, error);
    }
  free(expected), free(size), free(scratch);
  return worst;
}

template <Operand kOperand, class T>
static void check_products(const char* name, double tolerance) {
  const int shapes[][3] = {{1, 1, 1},     {5, 17, 3},    {16, 16, 16},   {17, 33, 31},   {64, 64, 64},
                           {64, 256, 64}, {7, 300, 5},   {300, 5, 64},   {1, 64, 256},   {2, 65, 33},
                           {3, 256, 64},  {33, 48, 130}, {13, 96, 40},   {96, 13, 100},  {64, 64, 256},
                           {2, 47, 64},   {20, 20, 19},  {128, 32, 300}, {100, 100, 100}, {23, 47, 65}};
  const int epilogues[] = {0, 1, 2, 7, 8, 15, 16};
  const char* triangles[] = {"", ", output", ", lower", ", upper"};
  for (int t = 0; t < 4; t++) {
    double worst = 0;
    int cases = 0;
    for (auto& shape : shapes)
      for (int form = 0; form < 4; form++)
        for (int epilogue : epilogues) {
          double error = check<kOperand, T>(shape[0], shape[1], shape[2], form & 1, form & 2, (Triangle)t, epilogue,
                                            cases % 3 == 1);
          if (!(error <= tolerance))
            printf("     %d x %d x %d, transposed %d, epilogue %d: %g\n", shape[0], shape[1], shape[2], form, epilogue,
                   error);
          worst = worse(worst, error);
          cases++;
        }
    char group[64];
    snprintf(group, sizeof group, "gemm %s%s", name, triangles[t]);
    report(group, cases, worst, tolerance);
  }
}

// The exponential over its whole range, in units in the last place of the float32 result.
static void check_exp() {
  double worst = 0;
  int cases = 0;
  for (float x = -106; x < 90; x += 1e-3f * kLanes<float>) {
    Vec<float> in{};
    for (int i = 0; i < kLanes<float>; i++) in[i] = x + 1e-3f * i + 1e-4f * (float)uniform();
    Vec<float> out = nm::NM_ISA::exp(in);
    for (int i = 0; i < kLanes<float>; i++, cases++) {
      double wanted = ::exp((double)in[i]);
      if (wanted > 3.4028235e38) {
        if (out[i] != INFINITY && wanted > 3.4028236e38) worst = INFINITY;
        continue;
      }
      int exponent;
      frexp(wanted, &exponent);
      double unit = ldexp(1.0, exponent - 24 > -149 ? exponent - 24 : -149);
      double error = fabs(out[i] - wanted) / unit;
      worst = worse(worst, error);
    }
  }
  report("exp float32, units in the last place", cases, worst, 2);
  const float extremes[] = {-INFINITY, -3e38f, -200, 0, 200, 3e38f, INFINITY};
  const float limits[] = {0, 0, 0, 1, INFINITY, INFINITY, INFINITY};
  int wrong = 0;
  for (int i = 0; i < 7; i++) wrong += nm::NM_ISA::exp(broadcast(extremes[i]))[0] != limits[i];
  Vec<float> nan = nm::NM_ISA::exp(broadcast((float)NAN));
  wrong += nan[0] == nan[0];
  report("exp float32 at the extremes", 8, wrong, 0);
}

template <class T>
static void check_sum(const char* group, double tolerance) {
  double worst = 0;
  for (int repeat = 0; repeat < 100; repeat++) {
    Vec<T> x{};
    double wanted = 0;
    for (int i = 0; i < kLanes<T>; i++) x[i] = (T)uniform(), wanted += x[i];
    worst = worse(worst, fabs(sum(x) - wanted));
  }
  report(group, 100, worst, tolerance);
}

// Value, slope and curve of an activation in double, from libm.
static void expected_activation(int activation, double z, double* out) {
  if (activation == NM_SILU) {
    double s = 1 / (1 + ::exp(-z)), rest = 1 / (1 + ::exp(z));
    out[0] = z * s, out[1] = s + z * s * rest, out[2] = s * rest * (2 + z * (rest - s));
  } else if (activation == NM_GELU) {
    double density = ::exp(-0.5 * z * z) / sqrt(2 * M_PI), below = 0.5 * erfc(-z / sqrt(2.0));
    out[0] = z * below, out[1] = below + z * density, out[2] = density * (2 - z * z);
  } else if (activation == NM_GELU_TANH) {
    double c = sqrt(2 / M_PI), u = c * (z + 0.044715 * z * z * z), u1 = c * (1 + 3 * 0.044715 * z * z);
    double t = tanh(u), flat = 1 / (cosh(u) * cosh(u)), half = 1 / (1 + ::exp(-2 * u));
    out[0] = z * half, out[1] = half + 0.5 * z * flat * u1;
    out[2] = flat * (u1 + 0.5 * z * (6 * 0.044715 * c * z - 2 * t * u1 * u1));
  } else {
    out[0] = z, out[1] = 1, out[2] = 0;
  }
}

template <class Activation, class T>
static void check_activation(const char* name, int activation, double tolerance) {
  double worst = 0;
  int cases = 0;
  const double step = sizeof(T) == 4 ? 1e-3 : 1e-2;
  for (double at = -30; at < 30; at += step, cases++) {
    Vec<T> z = broadcast((T)at), value, slope, curve, value2, slope2;
    double wanted[3];
    expected_activation(activation, (double)z[0], wanted);
    Activation::value_slope_curve(z, value, slope, curve);
    Activation::value_slope(z, value2, slope2);
    const double got[] = {value[0], slope[0], curve[0], value2[0], slope2[0], Activation::value(z)[0]};
    for (int i = 0; i < 6; i++) {
      double error = fabs(got[i] - wanted[i < 3 ? i : i == 4]) / (1 + fabs(z[0]));
      worst = worse(worst, error);
    }
  }
  char group[64];
  snprintf(group, sizeof group, "%s, value, slope, curve", name);
  report(group, cases, worst, tolerance);
  const T large[] = {(T)50, (T)1000, (T)1e30, (T)3e38};
  int wrong = 0;
  for (T z : large) {
    Vec<T> value, slope, curve;
    Activation::value_slope_curve(broadcast(z), value, slope, curve);
    wrong += value[0] != z || slope[0] != 1 || !(fabs(curve[0]) < 1e-15);
    Activation::value_slope_curve(broadcast(-z), value, slope, curve);
    bool linear = activation == NM_IDENTITY;
    wrong += !(fabs(value[0] - (linear ? -z : 0)) < 1e-15) || !(fabs(slope[0] - linear) < 1e-15) ||
             !(fabs(curve[0]) < 1e-15);
  }
  Vec<T> value, slope, curve;
  Activation::value_slope_curve(broadcast((T)NAN), value, slope, curve);
  wrong += value[0] == value[0] || (activation != NM_IDENTITY && (slope[0] == slope[0] || curve[0] == curve[0]));
  snprintf(group, sizeof group, "%s at large arguments", name);
  report(group, 9, wrong, 0);
}

template <class T>
static void check_activations(const char* type, double tolerance) {
  const char* names[] = {"silu", "gelu", "gelu_tanh", "identity"};
  char name[4][32];
  for (int i = 0; i < 4; i++) snprintf(name[i], sizeof name[i], "%s %s", names[i], type);
  check_activation<Silu, T>(name[0], NM_SILU, tolerance);
  check_activation<Gelu, T>(name[1], NM_GELU, tolerance);
  check_activation<GeluTanh, T>(name[2], NM_GELU_TANH, tolerance);
  check_activation<Identity, T>(name[3], NM_IDENTITY, tolerance);
}

#define NM_TEXT(x) NM_TEXT_OF(x)
#define NM_TEXT_OF(x) #x

int main() {
  if (!nm::processor_has(NM_TEXT(NM_ISA))) {
    printf("this processor cannot run %s\n", NM_TEXT(NM_ISA));
    return 77;
  }
  check_sum<float>("sum of lanes float32", 2e-6);
  check_sum<double>("sum of lanes float64", 4e-15);
  check_exp();
  check_activations<float>("float32", 3e-7);
  check_activations<double>("float64", 1e-15);

  check_products<Operand::full, float>("float32", 1e-6);
  check_products<Operand::full, double>("float64", 2e-15);
  check_products<Operand::bf16, float>(rounds(Operand::bf16, 64) ? "bf16" : "bf16 (not rounded)", 1e-6);
  return failures != 0;
}
