// simt_lanes.h - the emulator's operand types and warp collectives, with the lane mappings of the PTX manual.
//
// Sums of an mma run in fp32 in the order of k; hardware sums in an order of its own.
#pragma once

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

DEVICE_FN float to_float(float x) { return x; }
DEVICE_FN float to_float(bf16 x) {
  const uint32_t u = (uint32_t)x.bits << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
DEVICE_FN float to_float(fp16 x) {
  return nm::widen_half(x.bits);
}

template <class Op>
static inline Op to_op(float x);
template <>
inline bf16 to_op<bf16>(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  if (f != f) return bf16{0x7fff};  // the addition below could turn a NaN into a zero
  return bf16{(uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
template <>
inline fp16 to_op<fp16>(float f) {
  if (f != f) return fp16{0x7fff};
  return fp16{nm::narrow_half(f)};
}

template <class Op>
static inline uint32_t pack(float low, float high) {
  return to_op<Op>(low).bits | (uint32_t)to_op<Op>(high).bits << 16;
}
template <class Op>
static inline float low_half(uint32_t u) {
  return to_float(Op{(uint16_t)u});
}
template <class Op>
static inline float high_half(uint32_t u) {
  return to_float(Op{(uint16_t)(u >> 16)});
}

DEVICE_FN float exponential(float x) { return expf(x); }
DEVICE_FN float reciprocal(float x) { return 1.f / x; }
DEVICE_FN float error_function(float x) { return erff(x); }
DEVICE_FN float inverse_square_root(float x) { return 1.f / sqrtf(x); }

namespace sim {

// One address per template instance: the name of a collective.
template <class Tag>
inline char name_of = 0;

template <class Tag, class Operand, class Compute>
inline void warp_collective(Operand &mine, Compute compute) {
  collective(&name_of<Tag>, &mine, [&](void **lanes) { compute((Operand **)lanes); });
}

template <bool kXor>
inline float exchange(float x, int from) {
  struct Operand {
    float in, out;
    int from;
  } mine{x, 0.f, from};
  warp_collective<Operand>(mine, [](Operand **lane) {
    for (int l = 0; l < 32; l++) lane[l]->out = lane[(kXor ? l ^ lane[l]->from : lane[l]->from) & 31]->in;
  });
  return mine.out;
}

// ldmatrix: matrix m takes its eight row addresses from lanes 8m to 8m + 7. Lane l receives row l / 4, columns
// 2 (l % 4) and the next; transposed loads swap the two roles.
template <int kMatrices, bool kTrans>
inline void load_matrix(uint32_t *registers, const void *row) {
  struct Operand {
    uint32_t *registers;
    const uint8_t *row;
  } mine{registers, (const uint8_t *)row};
  if (current % 32 < kMatrices * 8) {
    if (!in_shared(row, 16) || (uintptr_t)row % 16) fail("ldmatrix: row outside of shared memory or unaligned");
    // Which lane receives which element hardly matters for races: all lanes read before any goes on.
    races.read(row, 16, now());
  }
  warp_collective<Operand>(mine, [](Operand **lane) {
    for (int m = 0; m < kMatrices; m++) {
      for (int l = 0; l < 32; l++) {
        uint16_t half[2];
        for (int j = 0; j < 2; j++) {
          const int r = kTrans ? l % 4 * 2 + j : l / 4, c = kTrans ? l / 4 : l % 4 * 2 + j;
          memcpy(&half[j], lane[m * 8 + r]->row + c * 2, 2);
        }
        lane[l]->registers[m] = half[0] | (uint32_t)half[1] << 16;
      }
    }
  });
}

}  // namespace sim

DEVICE_FN void warp_sync() {
  struct Operand {
  } mine;
  sim::warp_collective<Operand>(mine, [](Operand **) { sim::warps[sim::current / 32].epoch++; });
}

DEVICE_FN float shuffle_xor(float x, int mask) { return sim::exchange<true>(x, mask); }
DEVICE_FN float shuffle(float x, int lane) { return sim::exchange<false>(x, lane); }

DEVICE_FN void load_matrix_x4(uint32_t (&r)[4], const void *p) { sim::load_matrix<4, false>(r, p); }
DEVICE_FN void load_matrix_x4_trans(uint32_t (&r)[4], const void *p) { sim::load_matrix<4, true>(r, p); }
DEVICE_FN void load_matrix_x2(uint32_t (&r)[2], const void *p) { sim::load_matrix<2, false>(r, p); }
DEVICE_FN void load_matrix_x2_trans(uint32_t (&r)[2], const void *p) { sim::load_matrix<2, true>(r, p); }

template <class Op>
static inline void mma_m16n8k16(float *c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operand {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  sim::warp_collective<Operand>(mine, [](Operand **lane) {
    float A[16][16], B[16][8], C[16][8];
    for (int l = 0; l < 32; l++) {
      const int group = l / 4, quad = l % 4;
      for (int i = 0; i < 4; i++) {
        const int row = group + (i & 1) * 8, k = quad * 2 + (i >> 1) * 8;
        A[row][k] = low_half<Op>(lane[l]->a[i]);
        A[row][k + 1] = high_half<Op>(lane[l]->a[i]);
        C[group + (i >> 1) * 8][quad * 2 + (i & 1)] = lane[l]->c[i];
      }
      for (int i = 0; i < 2; i++) {
        B[quad * 2 + i * 8][group] = low_half<Op>(lane[l]->b[i]);
        B[quad * 2 + i * 8 + 1][group] = high_half<Op>(lane[l]->b[i]);
      }
    }
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < 16; k++)
        for (int column = 0; column < 8; column++) C[row][column] += A[row][k] * B[k][column];
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++)
        lane[l]->c[i] = C[l / 4 + (i >> 1) * 8][(l % 4 * 2 + (i & 1)) ^ (sim::wrong_lane && i == 3)];
    sim::faults += sim::wrong_lane;
  });
}
