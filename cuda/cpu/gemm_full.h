// gemm_full.h - products of small matrices that live in the caches: one register tile after another, no blocking beyond
// panels of B. Triangles (causal products, lower-triangular factors) skip what is not wanted.
#pragma once

#include "transpose.h"
#include "vector.h"

namespace nm {
namespace NM_ISA {

enum class Operand { full, bf16 };                   // bf16: factors rounded to bfloat16, products summed in float32
enum class Triangle { none, output, lower, upper };  // output: of C only [m, n <= m] is wanted, the rest is arbitrary
                                                     // lower: of A only [m, k <= m] counts, upper: only [m, k >= m]

// Element (r, c) is data[r * stride + c], or data[c * stride + r] if transposed. Strides are multiples of kLanes<T>;
// what lies between the last column and the next multiple is read but has no influence.
template <class T>
struct Matrix {
  const T* data;
  int stride;
  bool transposed;
};

// C[m, n] = keep * C[m, n] + add_scale * add[m, n] + scale * row[m] * sum_k A[m, k] B[k, n]. C is not read if keep is
// 0; its columns are written up to the next multiple of kLanes<T>. add may be C itself.
template <class T>
struct Result {
  T* data;
  int stride;
  T keep = 0;
  const T* add = nullptr;
  int add_stride = 0;
  T add_scale = 1;
  T scale = 1;
  const T* row = nullptr;
};

// The register tile: as many sums as leave registers for a row of B and one number of A.
constexpr int kTileRows = 6, kTileVectors = NM_VECTOR_BYTES == 64 ? 4 : 2;

// Columns of B from n on, as many as a register tile is wide; rows `stride` apart.
template <class T>
struct Panel {
  const T* data;
  int64_t stride;
  int n;
};

template <class T, int R, int V>
struct Tile {
  Vec<T> sums[R][V];
};

template <bool kTransposed, class T, int R, int V>
NM_INLINE void accumulate(Tile<T, R, V>& tile, const T* a, int64_t a_stride, const T* b, int64_t b_stride, int K) {
  for (int k = 0; k < K; k++, b += b_stride) {
    Vec<T> columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) columns[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      Vec<T> factor = broadcast(kTransposed ? a[k * a_stride + r] : a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) tile.sums[r][v] += factor * columns[v];
    }
  }
}

template <class T, int R, int V>
NM_INLINE void finish(Tile<T, R, V>& tile, const Result<T>& C, int m, int n) {
  if (C.row != nullptr || C.scale != 1) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      T factor = C.row != nullptr ? C.scale * C.row[m + r] : C.scale;
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) tile.sums[r][v] *= factor;
    }
  }
  T* to = C.data + (int64_t)m * C.stride + n;
  if (C.keep != 0) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) tile.sums[r][v] += C.keep * load(to + (int64_t)r * C.stride + v * kLanes<T>);
  }
  if (C.add != nullptr) {
    const T* add = C.add + (int64_t)m * C.add_stride + n;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        tile.sums[r][v] += C.add_scale * load(add + (int64_t)r * C.add_stride + v * kLanes<T>);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(to + (int64_t)r * C.stride + v * kLanes<T>, tile.sums[r][v]);
}

// The R x R block of A on the diagonal, with zeros for what does not count, as columns of R.
template <bool kTransposed, int R, class T>
NM_INLINE void copy_diagonal(T* block, const T* a, int64_t a_stride, int columns, Triangle triangle) {
  for (int k = 0; k < columns; k++)
    for (int r = 0; r < R; r++) {
      bool counts = triangle == Triangle::lower ? k <= r : k >= r;
      block[k * R + r] = !counts ? 0 : kTransposed ? a[k * a_stride + r] : a[r * a_stride + k];
    }
}

// Rows m to m_end of C in one panel, R at a time.
template <int R, int V, bool kTransposed, class T>
__attribute__((noinline)) void panel_rows(int m, int m_end, int K, const Matrix<T>& A, const Panel<T>& B,
                                          const Result<T>& C, Triangle triangle) {
  const int64_t row_step = kTransposed ? 1 : A.stride, k_step = kTransposed ? A.stride : 1;
  for (; m + R <= m_end; m += R) {
    Tile<T, R, V> tile{};
    const T* a = A.data + m * row_step;
    int begin = 0, end = K;
    if (triangle == Triangle::lower || triangle == Triangle::upper) {
      int columns = K - m < R ? K - m : R;
      if (columns > 0) {
        T block[R * R];
        copy_diagonal<kTransposed, R>(block, a + m * k_step, A.stride, columns, triangle);
        accumulate<true>(tile, (const T*)block, R, B.data + m * B.stride, B.stride, columns);
      }
      if (triangle == Triangle::lower) end = m < K ? m : K;
      if (triangle == Triangle::upper) begin = m + R < K ? m + R : K;
    }
    accumulate<kTransposed>(tile, a + begin * k_step, A.stride, B.data + begin * B.stride, B.stride, end - begin);
    finish(tile, C, m, B.n);
  }
}

// Rows m to m_end of C in V vectors of columns.
template <int V, bool kTransposed, class T>
void panel(int m, int m_end, int K, const Matrix<T>& A, const Panel<T>& B, const Result<T>& C, Triangle triangle) {
  int tail = m_end - (m_end - m) % kTileRows;
  if (m < tail) panel_rows<kTileRows, V, kTransposed>(m, tail, K, A, B, C, triangle);
  switch (m_end - tail) {
    case 1: return panel_rows<1, V, kTransposed>(tail, m_end, K, A, B, C, triangle);
    case 2: return panel_rows<2, V, kTransposed>(tail, m_end, K, A, B, C, triangle);
    case 3: return panel_rows<3, V, kTransposed>(tail, m_end, K, A, B, C, triangle);
    case 4: return panel_rows<4, V, kTransposed>(tail, m_end, K, A, B, C, triangle);
    case 5: return panel_rows<5, V, kTransposed>(tail, m_end, K, A, B, C, triangle);
  }
}

template <bool kTransposed, class T>
void panel(int vectors, int m, int m_end, int K, const Matrix<T>& A, const Panel<T>& B, const Result<T>& C,
           Triangle triangle) {
  if (vectors == 1) panel<1, kTransposed>(m, m_end, K, A, B, C, triangle);
  if (vectors == 2) panel<2, kTransposed>(m, m_end, K, A, B, C, triangle);
  if constexpr (kTileVectors == 4) {
    if (vectors == 3) panel<3, kTransposed>(m, m_end, K, A, B, C, triangle);
    if (vectors == 4) panel<4, kTransposed>(m, m_end, K, A, B, C, triangle);
  }
}

// A few rows of A times a transposed B, both contiguous in k: packing B would cost more than the product. One vector
// of sums per column of C, added up by transposing them.
template <class T>
void dot_rows(int M, int N, int K, const Matrix<T>& A, const Matrix<T>& B, const Result<T>& C) {
  const int lanes = kLanes<T>;
  for (int n = 0; n < N; n += lanes) {
    const T* columns[kLanes<T>];
    for (int j = 0; j < lanes; j++) columns[j] = B.data + (int64_t)(n + j < N ? n + j : N - 1) * B.stride;
    for (int m = 0; m < M; m++) {
      const T* a = A.data + (int64_t)m * A.stride;
      alignas(64) T partial[kLanes<T> * kLanes<T>], across[kLanes<T> * kLanes<T>];
      const T* rows[kLanes<T>];
      for (int half = 0; half < lanes; half += lanes / 2) {
        Vec<T> sums[kLanes<T> / 2] = {};
        for (int k = 0; k < K; k += lanes) {
          Vec<T> factor = load(a + k);
#pragma GCC unroll 8
          for (int j = 0; j < lanes / 2; j++) sums[j] += factor * load(columns[half + j] + k);
        }
#pragma GCC unroll 8
        for (int j = 0; j < lanes / 2; j++) {
          rows[half + j] = partial + (half + j) * lanes;
          store(partial + (half + j) * lanes, sums[j]);
        }
      }
      transpose_block(rows, lanes, across, lanes);
      Tile<T, 1, 1> tile{};
      for (int j = 0; j < lanes; j++) tile.sums[0][0] += load(across + j * lanes);
      finish(tile, C, m, n);
    }
  }
}

inline int64_t full_scratch(int max_k) { return (int64_t)max_k * kTileVectors * kLanes<float>; }

template <class T>
void gemm_full(int M, int N, int K, const Matrix<T>& A, const Matrix<T>& B, const Result<T>& C, Triangle triangle,
               T* scratch) {
  const bool whole_a = triangle == Triangle::none || triangle == Triangle::output;
  if (M <= 2 && B.transposed && !A.transposed && K % kLanes<T> == 0 && whole_a) return dot_rows(M, N, K, A, B, C);
  const int width = kTileVectors * kLanes<T>;
  for (int n = 0; n < N; n += width) {
    int columns = N - n < width ? N - n : width;
    Panel<T> part{B.data + n, B.stride, n};
    if (B.transposed) {
      transpose(columns, K, B.data + (int64_t)n * B.stride, B.stride, scratch, width);
      part = {scratch, width, n};
    }
    int vectors = (columns + kLanes<T> - 1) / kLanes<T>;
    // a triangle of C wants v vectors from the row on that its last vector begins at
    int m = 0;
    for (int v = triangle == Triangle::output ? 1 : vectors; v <= vectors; v++) {
      int m_end = M;
      if (triangle == Triangle::output) {
        m = n + (v - 1) * kLanes<T>;
        if (v < vectors && m + kLanes<T> < M) m_end = m + kLanes<T>;
      }
      if (m >= m_end) break;
      if (A.transposed)
        panel<true>(v, m, m_end, K, A, part, C, triangle);
      else
        panel<false>(v, m, m_end, K, A, part, C, triangle);
    }
  }
}

}  // namespace NM_ISA
}  // namespace nm
