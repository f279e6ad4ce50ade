// backward_tile.h - the one product every backward kernel is made of: 64 rows of A times columns of B, summed in
// registers while 64 of the summed index at a time pass through shared memory.
//
// A matrix in memory is [rows, columns] with columns next to each other. The summed index may run along its columns
// or down its rows, for either factor, so nothing is ever transposed in memory. Rows and columns past the end count
// as zeros; columns come in multiples of 8. Warp w owns rows 16 w to 16 w + 15 of a tile with all its columns, so a
// sum over a row stays within four lanes.
#pragma once

#include "tile.h"

namespace backward {

constexpr int kTile = 64;           // rows of a tile, and the summed index in shared memory at a time
constexpr int kTileThreads = 128;

// Shared memory of a kernel whose products have kColumns columns: the tile of A and the larger shape of that of B.
template <int kColumns>
constexpr int tile_bytes() {
  return Tile<uint16_t, kTile, kTile>::kBytes + Tile<uint16_t, kColumns, kTile>::kBytes;
}
static_assert(Tile<uint16_t, 128, kTile>::kBytes >= Tile<uint16_t, kTile, 128>::kBytes, "the larger shape");

template <class Op>
struct Matrix {
  const Op *data;
  int64_t stride;
  int rows, columns;
  const float *scale = nullptr;  // one number per row that multiplies it, or NULL
};

enum Summed { kAlong, kDown };  // where the summed index runs in memory: along columns or down rows

DEVICE_FN int warp_index() { return thread_index() / 32; }
DEVICE_FN int lane_index() { return thread_index() % 32; }

template <class Op>
DEVICE_FN uint32_t scaled(uint32_t pair, float scale) {
  return pack<Op>(low_half<Op>(pair) * scale, high_half<Op>(pair) * scale);
}

// The part of m from (row, column) on, to shared memory.
template <class T, class Op>
DEVICE_FN void load_part(T tile, const Matrix<Op> &m, int row, int column) {
  constexpr int kVectors = T::kColumns / 8;
  for (int i = thread_index(); i < T::kRows * kVectors; i += kTileThreads) {
    const int r = i / kVectors, c = i % kVectors * 8;
    uint4 x{0, 0, 0, 0};
    if (row + r < m.rows && column + c < m.columns) {
      x = load((const uint4 *)(m.data + (row + r) * m.stride + column + c));
      if (m.scale) {
        const float s = load(m.scale + row + r);
        x = uint4{scaled<Op>(x.x, s), scaled<Op>(x.y, s), scaled<Op>(x.z, s), scaled<Op>(x.w, s)};
      }
    }
    store((uint4 *)tile.at(r, c), x);
  }
}

// sums += A[row:row+64, :] B[:, column:column+kColumns] for a summed index below `summed`, a multiple of 16 or the
// end of a matrix.
template <Summed kA, Summed kB, int kN, class Op>
DEVICE_FN void multiply(float (&sums)[kN][4], const Matrix<Op> &a, int row, const Matrix<Op> &b, int column,
                        int summed) {
  constexpr int kColumns = kN * 8;
  const Tile<Op, kTile, kTile> tile_a(shared_memory());
  constexpr int kRowsB = kB == kDown ? kTile : kColumns, kColumnsB = kB == kDown ? kColumns : kTile;
  const Tile<Op, kRowsB, kColumnsB> tile_b(shared_memory() + tile_a.kBytes);
  const int first_row = warp_index() * 16;
  const bool idle = row + first_row >= (kA == kDown ? a.columns : a.rows);
  for (int start = 0; start < summed; start += kTile) {
    block_sync();  // the tiles of the step before have been used
    load_part(tile_a, a, kA == kDown ? start : row, kA == kDown ? row : start);
    load_part(tile_b, b, kB == kDown ? start : column, kB == kDown ? column : start);
    block_sync();
    if (idle) continue;
    for (int k = 0; k < kTile && start + k < summed; k += 16) {
      uint32_t x[4];
      load_a<kA == kDown>(x, tile_a, first_row, k);
      UNROLL for (int j = 0; j < kN; j += 2) {
        uint32_t y[4];
        load_b<kB == kAlong>(y, tile_b, k, j * 8);
        mma_m16n8k16<Op>(sums[j], x, y[0], y[1]);
        mma_m16n8k16<Op>(sums[j + 1], x, y[2], y[3]);
      }
    }
  }
}

template <int kN>
DEVICE_FN void clear(float (&sums)[kN][4]) {
  UNROLL for (int j = 0; j < kN; j++)
    UNROLL for (int i = 0; i < 4; i++) sums[j][i] = 0;
}

// A thread's sums lie in two rows of a tile, `half` 0 and 1.
DEVICE_FN int sum_row(int half) { return warp_index() * 16 + lane_index() / 4 + half * 8; }

// visit(half, row, column, x, y): every two neighbouring sums of this thread in rows below `rows`. The tile begins at
// (row, column).
template <int kN, class Visit>
DEVICE_FN void each_pair(float (&sums)[kN][4], int row, int column, int rows, Visit visit) {
  UNROLL for (int half = 0; half < 2; half++) {
    const int r = row + sum_row(half);
    if (r >= rows) continue;
    UNROLL for (int j = 0; j < kN; j++)
      visit(half, r, column + j * 8 + lane_index() % 4 * 2, sums[j][2 * half], sums[j][2 * half + 1]);
  }
}

// From a sum over this thread's part of a row to the sum over the row, in all its four lanes.
DEVICE_FN float over_row(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

DEVICE_FN float over_lanes(float x) {
  UNROLL for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// One number for each of the two rows that a thread's sums lie in.
struct RowPair {
  float half[2];
};

DEVICE_FN float2 load_pair(const float *p) { return load((const float2 *)p); }
template <class Op>
DEVICE_FN float2 load_pair(const Op *p) {
  const uint32_t u = load((const uint32_t *)p);
  return float2{low_half<Op>(u), high_half<Op>(u)};
}
DEVICE_FN void store_pair(float *p, float x, float y) { store((float2 *)p, float2{x, y}); }
template <class Op>
DEVICE_FN void store_pair(Op *p, float x, float y) {
  store((uint32_t *)p, pack<Op>(x, y));
}

}  // namespace backward
