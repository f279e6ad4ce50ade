// simt.h - one kernel source, two ways to run it: nvcc makes a GPU kernel of it, g++ a program for the emulator.
//
// A kernel calls only what is listed here. With nvcc each is an instruction or two (simt_device.h); with g++ every
// CUDA thread is a fibre and the collectives use the hardware's lane-to-element mappings (simt_emulator.h). That the
// two agree is what cuda/tests/conformance.cu checks on a GPU.
//
//   KERNEL LAUNCH_BOUNDS(threads) DEVICE_FN UNROLL UNROLL_2 UNROLL_1     METHOD: DEVICE_FN inside a class
//   thread_index() block_index() block_sync() warp_sync()       blocks and grids have one axis
//   shared_memory()                         base of the block's dynamic shared memory, aligned to 128 bytes
//   load(p) store(p, x)                     EVERY access to shared or global memory: in the emulator they detect races
//   bf16 fp16                               the operand types, called Op in templates; 2 bytes
//   to_float(op) to_op<Op>(x) pack<Op>(low, high) low_half<Op>(u) high_half<Op>(u)   rounds to nearest even
//   load_matrix_x4(r, p) load_matrix_x4_trans load_matrix_x2 load_matrix_x2_trans    ldmatrix; p: this lane's row
//   mma_m16n8k16<Op>(c, a, b0, b1)          mma.sync, four fp32 accumulators at c
//   shuffle_xor(x, mask) shuffle(x, lane)   all 32 lanes take part
//   exponential(x) reciprocal(x) error_function(x) inverse_square_root(x)            fp32
//   uint2 uint4 float2 float4               vectors of 8 and 16 bytes, for load and store
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#include "simt_device.h"
#else
#include "simt_emulator.h"
#endif
