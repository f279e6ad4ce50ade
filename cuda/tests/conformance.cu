// conformance.cu - every function of simt.h on a GPU against the emulator, on random and on awkward numbers.
//
// This is what gives the tests in the emulator their worth: they show that kernels are right if the hardware does what
// the emulator does. Roundings are also compared with those of CUDA's headers for the host, which needs no GPU.
// Exit status 0: all agree; 1: not; 77: there is no GPU, and the rest agrees. An argument gives the random seed.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <type_traits>
#include <vector>

#include "conformance.h"

void run_emulated(int number, const uint32_t *in, uint32_t *out);

static float as_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static uint32_t as_word(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}

static std::vector<uint32_t> draw(const conformance::Case &c, std::mt19937 &random) {
  std::normal_distribution<float> normal;
  // Ties, the ends of the ranges of both types, subnormal numbers, zeros, infinities, NaN.
  static const uint32_t edges[] = {0,          0x80000000, 1,          0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001,
                                   0x3f808000, 0x3f818000, 0x3f808001, 0x3f801000, 0x3f803000, 0x3f801001, 0x477fe000,
                                   0x477fefff, 0x477ff000, 0x7f7f7fff, 0x7f7f8000, 0x7f7fffff, 0x33000000, 0x33000001,
                                   0x38800000, 0x387fe000, 0x387ff000, 0x00400000, 0x00008000, 0x00008001, 0x807fffff};
  std::vector<uint32_t> words(c.in);
  for (int i = 0; i < c.in; i++) {
    uint32_t half[2];
    for (uint32_t &h : half) {  // operands between 2^-7 and 2^3 or so, either sign
      const uint32_t bits = random();
      h = c.words == conformance::kBfloat16 ? (bits & 0x8000) | (120 + bits % 9) << 7 | (bits >> 16 & 0x7f)
                                            : (bits & 0x8000) | (8 + bits % 9) << 10 | (bits >> 16 & 0x3ff);
    }
    const bool edge = c.words == conformance::kEdges && i % 2 == 0;
    if (c.words == conformance::kBfloat16 || c.words == conformance::kFloat16) words[i] = half[0] | half[1] << 16;
    else if (c.words == conformance::kAnything || (c.words == conformance::kEdges && i % 4 == 1)) words[i] = random();
    else if (edge) words[i] = edges[i / 2 % (sizeof(edges) / 4)];
    else words[i] = as_word(normal(random) * 4.f);
  }
  return words;
}

static bool agree(const conformance::Case &c, uint32_t x, uint32_t y) {
  if (x == y) return true;
  const float a = as_float(x), b = as_float(y);
  if (isnan(a) && isnan(b)) return true;
  return (c.relative > 0 || c.absolute > 0) && fabs((double)a - b) <= c.relative * fabs(b) + c.absolute;
}

static int wrong_roundings(const conformance::Case &c, const std::vector<uint32_t> &in,
                           const std::vector<uint32_t> &out) {
  int wrong = 0;
  for (int i = 0; c.words == conformance::kEdges && i < c.in; i++) {
    const float x = as_float(in[i]);
    uint16_t rounded;
    float back;
    if (!strcmp(c.name, "convert bf16")) {
      const __nv_bfloat16 h = __float2bfloat16_rn(x);
      memcpy(&rounded, &h, 2), back = __bfloat162float(h);
    } else {
      const __half h = __float2half_rn(x);
      memcpy(&rounded, &h, 2), back = __half2float(h);
    }
    const bool same = out[4 * i] == rounded && (out[4 * i + 1] & 0xffff) == rounded;
    if (same && agree(c, out[4 * i + 2], as_word(back))) continue;
    if (++wrong <= 4) printf("  %s of %08x: emulator %08x, CUDA headers %04x\n", c.name, in[i], out[4 * i], rounded);
  }
  return wrong;
}

static bool good(cudaError_t error) {
  if (error != cudaSuccess) printf("%s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

int main(int argc, char **argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess) devices = 0;
  std::mt19937 random(argc > 1 ? atoi(argv[1]) : 0);
  int failures = 0;
  for (int number = 0; number < conformance::kCount; number++) {
    const conformance::Case &c = conformance::kCases[number];
    const std::vector<uint32_t> in = draw(c, random);
    std::vector<uint32_t> expected(c.out, 0xdeadbeef), got(c.out, 0);
    run_emulated(number, in.data(), expected.data());
    failures += wrong_roundings(c, in, expected);
    if (devices == 0) continue;
    uint32_t *device_in = nullptr, *device_out = nullptr;
    bool ran = good(cudaMalloc(&device_in, in.size() * 4)) && good(cudaMalloc(&device_out, got.size() * 4)) &&
               good(cudaMemcpy(device_in, in.data(), in.size() * 4, cudaMemcpyHostToDevice));
    if (ran) {
      c.kernel<<<1, kThreads, c.shared>>>(conformance::Arguments{device_in, device_out});
      ran = good(cudaGetLastError()) &&
            good(cudaMemcpy(got.data(), device_out, got.size() * 4, cudaMemcpyDeviceToHost));
    }
    cudaFree(device_in), cudaFree(device_out);
    int wrong = 0;
    for (int i = 0; ran && i < c.out; i++) {
      if (agree(c, got[i], expected[i])) continue;
      if (++wrong <= 4)
        printf("  %s, word %d: GPU %08x (%.9g), emulator %08x (%.9g)\n", c.name, i, got[i], as_float(got[i]),
               expected[i], as_float(expected[i]));
    }
    printf("%s: %s\n", c.name, !ran ? "did not run" : wrong ? "differs" : "agrees");
    failures += wrong || !ran;
  }
  if (devices == 0) printf("no CUDA device\n");
  return failures ? 1 : devices ? 0 : 77;
}
