// tile.h - what the kernels are made of: operand tiles in shared memory, warp-tiled products, row sums.
//
// All functions are called by all kThreads threads of a block unless they say otherwise; none of them synchronises
// unless it says so. Every dimension is a multiple of 16 (columns of a product: of 8) and known when compiling.
//
//   Tile<Op, kRows, kColumns>     a matrix of operands in shared memory, rows padded by 16 bytes: ldmatrix then has no
//                                 bank conflict. at(row, column), kBytes. Made from a pointer aligned to 16 bytes.
//   load_tile(tile, src, stride, rows)   global Op or float [rows, kColumns] -> tile, rows beyond `rows` become zero
//   load_rows(tile, src, stride, begin, end)   the same into rows begin to end - 1 of the tile, the others become zero
//   save_tile(tile, dst, stride, rows)   tile -> global Op
//   Fragments<kM, kN>             an fp32 matrix in the registers of the block; value[], clear(), each(f)
//     c.each([&](int row, int column, int i) {...})    this thread's elements: value[i] is (row, column), value[i + 1]
//                                 (row, column + 1). Fragments of the same type share their i.
//   multiply_nn(c, a, b)          C += A B         a [M, K]   b [K, N]     (as stored)
//   multiply_nt(c, a, b)          C += A B^T       a [M, K]   b [N, K]
//   multiply_tn(c, a, b)          C += A^T B       a [K, M]   b [K, N]
//   multiply_tt(c, a, b)          C += A^T B^T     a [K, M]   b [N, K]
//     each with an optional last argument that scales the operand A in registers, rounding once more:
//     ScaleRows<Op>{s}            diag(s) A        s float [M] in shared memory
//     ScaleDepth<Op>{s}           A diag(s)        s float [K] in shared memory
//   put_tile(c, tile)             C rounded into a tile [M, N]
//   put_global<Op>(c, dst, stride, rows)   C rounded into global memory, rows beyond `rows` left out
//   sum_rows<F>(x, exchange)      x[F::kSlots]: per row sums of what the threads hold; after it, each thread has the
//                                 sums of its rows. x[F::slot(i)] belongs to value[i]. Synchronises (all warps must
//                                 call it). exchange: float [F::kExchange] in shared memory
//   copy_floats(dst, src, count, total)    dst[i] = src[i] for i < count, 0 up to total
#pragma once

#include "simt.h"

constexpr int kWarps = 8, kThreads = 32 * kWarps;

template <class Op_, int kRows_, int kColumns_>
struct Tile {
  using Op = Op_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kStride = kColumns + 8, kBytes = kRows * kStride * 2;
  static_assert(kRows % 16 == 0 && kColumns % 16 == 0, "tiles are made of 16 x 16 blocks");
  Op *data;
  METHOD explicit Tile(void *p) : data((Op *)p) {}
  METHOD Op *at(int row, int column) const { return data + row * kStride + column; }
};

// Eight neighbours of global memory as operands.
template <class Op>
DEVICE_FN uint4 load_8(const Op *src) {
  return load((const uint4 *)src);
}
template <class Op>
DEVICE_FN uint4 load_8(const float *src) {
  const float4 a = load((const float4 *)src), b = load((const float4 *)src + 1);
  return uint4{pack<Op>(a.x, a.y), pack<Op>(a.z, a.w), pack<Op>(b.x, b.y), pack<Op>(b.z, b.w)};
}

template <class T, class Source>
DEVICE_FN void load_rows(T tile, const Source *src, int64_t stride, int begin, int end) {
  constexpr int kVectors = T::kColumns / 8;
  for (int i = thread_index(); i < T::kRows * kVectors; i += kThreads) {
    const int row = i / kVectors, column = i % kVectors * 8;
    uint4 x{0, 0, 0, 0};
    if (row >= begin && row < end) x = load_8<typename T::Op>(src + (row - begin) * stride + column);
    store((uint4 *)tile.at(row, column), x);
  }
}
template <class T, class Source>
DEVICE_FN void load_tile(T tile, const Source *src, int64_t stride, int rows) {
  load_rows(tile, src, stride, 0, rows);
}

template <class T>
DEVICE_FN void save_tile(T tile, typename T::Op *dst, int64_t stride, int rows) {
  constexpr int kVectors = T::kColumns / 8;
  for (int i = thread_index(); i < T::kRows * kVectors; i += kThreads) {
    const int row = i / kVectors, column = i % kVectors * 8;
    if (row < rows) store((uint4 *)(dst + row * stride + column), load((const uint4 *)tile.at(row, column)));
  }
}

DEVICE_FN void copy_floats(float *dst, const float *src, int count, int total) {
  for (int i = thread_index(); i < total; i += kThreads) store(dst + i, i < count ? load(src + i) : 0.f);
}

// How the warps share a matrix: as many as possible, then the squarest part for each, which loads the least.
struct WarpGrid {
  int rows, columns;
};
constexpr WarpGrid warp_grid(int m, int n) {
  WarpGrid best{1, 1};
  for (int rows = 1; rows <= kWarps; rows *= 2) {
    for (int columns = 1; rows * columns <= kWarps; columns *= 2) {
      if (m % (16 * rows) || n % (8 * columns)) continue;
      const int more = rows * columns - best.rows * best.columns;
      const int less = m / best.rows + n / best.columns - m / rows - n / columns;
      if (more > 0 || (more == 0 && less > 0)) best = WarpGrid{rows, columns};
    }
  }
  return best;
}

template <int kM_, int kN_>
struct Fragments {
  static constexpr int kM = kM_, kN = kN_;
  static constexpr int kWarpRows = warp_grid(kM, kN).rows, kWarpColumns = warp_grid(kM, kN).columns;
  static constexpr int kRowTiles = kM / kWarpRows / 16, kColumnTiles = kN / kWarpColumns / 8;  // of one warp
  static constexpr int kCount = kRowTiles * kColumnTiles * 4;
  static constexpr int kSlots = kRowTiles * 2;  // rows of which a thread holds elements
  static constexpr int kExchange = kWarpColumns > 1 ? kWarpColumns * kM : 0;
  float value[kCount];

  METHOD Fragments() { clear(); }
  METHOD void clear() {
    UNROLL for (int i = 0; i < kCount; i++) value[i] = 0.f;
  }
  // Small matrices leave some warps without a part.
  METHOD static bool active() { return thread_index() / 32 < kWarpRows * kWarpColumns; }
  METHOD static int first_row() { return thread_index() / 32 % kWarpRows * (kM / kWarpRows); }
  METHOD static int first_column() { return thread_index() / 32 / kWarpRows * (kN / kWarpColumns); }
  METHOD static constexpr int slot(int i) { return i / (kColumnTiles * 4) * 2 + i / 2 % 2; }
  METHOD static int row_of_slot(int slot) {
    return first_row() + slot / 2 * 16 + slot % 2 * 8 + thread_index() % 32 / 4;
  }

  template <class Visit>
  METHOD static void each(Visit visit) {
    if (!active()) return;
    const int column = first_column() + thread_index() % 4 * 2;
    UNROLL for (int i = 0; i < kCount; i += 2) visit(row_of_slot(slot(i)), column + i / 4 % kColumnTiles * 8, i);
  }
};

struct NoScale {
  METHOD void operator()(uint32_t (&)[4], int, int) const {}
};

// Fragment a: registers 0 and 2 hold row lane / 4, 1 and 3 the row 8 below; 0 and 1 hold columns 2 (lane % 4) and the
// next, 2 and 3 the columns 8 further.
template <class Op>
struct ScaleRows {
  const float *scale;
  METHOD void operator()(uint32_t (&a)[4], int row, int) const {
    const float *s = scale + row + thread_index() % 32 / 4;
    const float upper = load(s), lower = load(s + 8);
    UNROLL for (int i = 0; i < 4; i++) {
      const float x = i % 2 ? lower : upper;
      a[i] = pack<Op>(x * low_half<Op>(a[i]), x * high_half<Op>(a[i]));
    }
  }
};

template <class Op>
struct ScaleDepth {
  const float *scale;
  METHOD void operator()(uint32_t (&a)[4], int, int depth) const {
    const float *s = scale + depth + thread_index() % 4 * 2;
    UNROLL for (int i = 0; i < 4; i++) {
      const float2 x = load((const float2 *)(s + i / 2 * 8));
      a[i] = pack<Op>(x.x * low_half<Op>(a[i]), x.y * high_half<Op>(a[i]));
    }
  }
};

// One 16 x 16 block of A as the fragment of an mma, from a matrix stored as [M, K] or as [K, M].
template <bool kTransposed, class T>
DEVICE_FN void load_a(uint32_t (&a)[4], T tile, int row, int depth) {
  const int lane = thread_index() % 32;
  if (kTransposed) load_matrix_x4_trans(a, tile.at(depth + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
  else load_matrix_x4(a, tile.at(row + lane % 16, depth + lane / 16 * 8));
}

// Sixteen of K by eight or sixteen columns of B, stored as [K, N] or as [N, K]: b[0..1], then b[2..3].
template <bool kTransposed, class T>
DEVICE_FN void load_b(uint32_t (&b)[4], T tile, int depth, int column) {
  const int lane = thread_index() % 32;
  if (kTransposed) load_matrix_x4(b, tile.at(column + lane % 8 + lane / 16 * 8, depth + lane / 8 % 2 * 8));
  else load_matrix_x4_trans(b, tile.at(depth + lane % 16, column + lane / 16 * 8));
}
template <bool kTransposed, class T>
DEVICE_FN void load_b(uint32_t (&b)[2], T tile, int depth, int column) {
  const int lane = thread_index() % 32;
  if (kTransposed) load_matrix_x2(b, tile.at(column + lane % 8, depth + lane / 8 % 2 * 8));
  else load_matrix_x2_trans(b, tile.at(depth + lane % 16, column));
}

template <bool kTransposeA, bool kTransposeB, class C, class A, class B, class Scale>
DEVICE_FN void multiply(C &c, A a, B b, Scale scale) {
  using Op = typename A::Op;
  constexpr int kDepth = kTransposeA ? A::kRows : A::kColumns;
  static_assert(C::kM == (kTransposeA ? A::kColumns : A::kRows), "rows of A");
  static_assert(C::kN == (kTransposeB ? B::kRows : B::kColumns), "columns of B");
  static_assert(kDepth == (kTransposeB ? B::kColumns : B::kRows), "inner dimensions");
  if (!C::active()) return;
  const int row = C::first_row(), column = C::first_column();
  UNROLL_2 for (int k = 0; k < kDepth; k += 16) {
    uint32_t x[C::kRowTiles][4];
    UNROLL for (int m = 0; m < C::kRowTiles; m++) {
      load_a<kTransposeA>(x[m], a, row + m * 16, k);
      scale(x[m], row + m * 16, k);
    }
    UNROLL for (int n = 0; n + 1 < C::kColumnTiles; n += 2) {
      uint32_t y[4];
      load_b<kTransposeB>(y, b, k, column + n * 8);
      UNROLL for (int m = 0; m < C::kRowTiles; m++) {
        mma_m16n8k16<Op>(c.value + (m * C::kColumnTiles + n) * 4, x[m], y[0], y[1]);
        mma_m16n8k16<Op>(c.value + (m * C::kColumnTiles + n + 1) * 4, x[m], y[2], y[3]);
      }
    }
    if (C::kColumnTiles % 2) {
      constexpr int n = C::kColumnTiles - 1;
      uint32_t y[2];
      load_b<kTransposeB>(y, b, k, column + n * 8);
      UNROLL for (int m = 0; m < C::kRowTiles; m++)
        mma_m16n8k16<Op>(c.value + (m * C::kColumnTiles + n) * 4, x[m], y[0], y[1]);
    }
  }
}

template <class C, class A, class B, class Scale = NoScale>
DEVICE_FN void multiply_nn(C &c, A a, B b, Scale scale = {}) {
  multiply<false, false>(c, a, b, scale);
}
template <class C, class A, class B, class Scale = NoScale>
DEVICE_FN void multiply_nt(C &c, A a, B b, Scale scale = {}) {
  multiply<false, true>(c, a, b, scale);
}
template <class C, class A, class B, class Scale = NoScale>
DEVICE_FN void multiply_tn(C &c, A a, B b, Scale scale = {}) {
  multiply<true, false>(c, a, b, scale);
}
template <class C, class A, class B, class Scale = NoScale>
DEVICE_FN void multiply_tt(C &c, A a, B b, Scale scale = {}) {
  multiply<true, true>(c, a, b, scale);
}

template <class C, class T>
DEVICE_FN void put_tile(const C &c, T tile) {
  static_assert(C::kM == T::kRows && C::kN == T::kColumns, "shape of the tile");
  C::each([&](int row, int column, int i) {
    store((uint32_t *)tile.at(row, column), pack<typename T::Op>(c.value[i], c.value[i + 1]));
  });
}

template <class Op, class C>
DEVICE_FN void put_global(const C &c, Op *dst, int64_t stride, int rows) {
  C::each([&](int row, int column, int i) {
    if (row < rows) store((uint32_t *)(dst + row * stride + column), pack<Op>(c.value[i], c.value[i + 1]));
  });
}

template <class C>
DEVICE_FN void sum_rows(float (&x)[C::kSlots], float *exchange) {
  if (C::active()) {
    UNROLL for (int s = 0; s < C::kSlots; s++) {  // the four lanes of a row; warps are active as a whole
      x[s] += shuffle_xor(x[s], 1);
      x[s] += shuffle_xor(x[s], 2);
    }
  }
  if (C::kWarpColumns == 1) return;
  if (C::active() && thread_index() % 4 == 0)
    UNROLL for (int s = 0; s < C::kSlots; s++)
      store(exchange + thread_index() / 32 / C::kWarpRows * C::kM + C::row_of_slot(s), x[s]);
  block_sync();
  if (C::active()) {
    UNROLL for (int s = 0; s < C::kSlots; s++) {
      x[s] = 0.f;
      UNROLL for (int w = 0; w < C::kWarpColumns; w++) x[s] += load(exchange + w * C::kM + C::row_of_slot(s));
    }
  }
  block_sync();  // the next sum may take the same exchange
}
