// simt_device.h - the GPU half of simt.h: thin wrappers, one PTX instruction each where it matters.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// Internal linkage: conformance.cu links a kernel and its emulated twin into one program.
#define KERNEL static __global__
// One block per multiprocessor will do: left to itself ptxas may rather spill than give up a second.
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads, 1)
#define DEVICE_FN __device__ __forceinline__
#define METHOD __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_2 _Pragma("unroll 2")
#define UNROLL_1 _Pragma("unroll 1")

using bf16 = __nv_bfloat16;
using fp16 = __half;

DEVICE_FN int thread_index() { return threadIdx.x; }
DEVICE_FN int64_t block_index() { return blockIdx.x; }
DEVICE_FN void block_sync() { __syncthreads(); }
DEVICE_FN void warp_sync() { __syncwarp(); }
DEVICE_FN uint8_t *shared_memory() {
  extern __shared__ __align__(128) uint8_t dynamic_shared_memory[];
  return dynamic_shared_memory;
}

template <class T>
DEVICE_FN T load(const T *p) {
  return *p;
}
template <class T>
DEVICE_FN void store(T *p, T x) {
  *p = x;
}

DEVICE_FN float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE_FN float to_float(fp16 x) { return __half2float(x); }
DEVICE_FN float to_float(float x) { return x; }

template <class Op>
DEVICE_FN Op to_op(float x);
template <>
DEVICE_FN bf16 to_op<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
DEVICE_FN fp16 to_op<fp16>(float x) {
  return __float2half_rn(x);
}

template <class Op>
DEVICE_FN uint32_t pack(float low, float high);
template <>
DEVICE_FN uint32_t pack<bf16>(float low, float high) {
  uint32_t u;  // the first source goes to the upper half
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
}
template <>
DEVICE_FN uint32_t pack<fp16>(float low, float high) {
  uint32_t u;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(high), "f"(low));
  return u;
}

template <class Op>
DEVICE_FN float low_half(uint32_t u);
template <class Op>
DEVICE_FN float high_half(uint32_t u);
template <>
DEVICE_FN float low_half<bf16>(uint32_t u) {
  return __uint_as_float(u << 16);
}
template <>
DEVICE_FN float high_half<bf16>(uint32_t u) {
  return __uint_as_float(u & 0xffff0000u);
}
template <>
DEVICE_FN float low_half<fp16>(uint32_t u) {
  return __half2float(__ushort_as_half((unsigned short)u));
}
template <>
DEVICE_FN float high_half<fp16>(uint32_t u) {
  return __half2float(__ushort_as_half((unsigned short)(u >> 16)));
}

DEVICE_FN uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// "memory": an ldmatrix must stay behind the stores and barriers that come before it in the source.
DEVICE_FN void load_matrix_x4(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
DEVICE_FN void load_matrix_x4_trans(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
DEVICE_FN void load_matrix_x2(uint32_t (&r)[2], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(p))
               : "memory");
}
DEVICE_FN void load_matrix_x2_trans(uint32_t (&r)[2], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(p))
               : "memory");
}

template <class Op>
DEVICE_FN void mma_m16n8k16(float *c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEVICE_FN void mma_m16n8k16<bf16>(float *c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEVICE_FN void mma_m16n8k16<fp16>(float *c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE_FN float shuffle_xor(float x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE_FN float shuffle(float x, int lane) { return __shfl_sync(~0u, x, lane); }

DEVICE_FN float exponential(float x) { return __expf(x); }
DEVICE_FN float reciprocal(float x) { return __fdividef(1.f, x); }
DEVICE_FN float error_function(float x) { return erff(x); }
DEVICE_FN float inverse_square_root(float x) { return rsqrtf(x); }
