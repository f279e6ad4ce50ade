// gemm_amx.h - products of bfloat16 factors on AMX tiles. Converting and packing the factors takes longer than
// multiplying them, so each is packed once per product.
//
// A tile of A holds 16 rows of 32 numbers; one of B holds 16 pairs of rows (k, k + 1) of 16 columns, the pair's two
// numbers side by side. Both are 16 rows of 64 bytes and each other's transpose in units of pairs.
#pragma once

#include "gemm_full.h"

namespace nm {
namespace NM_ISA {

constexpr int kTile = 512;         // numbers of a tile: 16 x 32
constexpr int kLeastTileRows = 8;  // with fewer rows of A, packing B does not pay

// Whether all of A's rows m to m + 16 count from k to k + 32.
NM_INLINE bool counts_whole(Triangle triangle, int m, int k, int K) {
  return k + 32 <= K && (triangle != Triangle::lower || k + 31 <= m) && (triangle != Triangle::upper || k >= m + 15);
}

// The bits from begin to end of the 32 there are.
NM_INLINE uint32_t bits(int begin, int end) {
  begin = begin < 0 ? 0 : begin > 32 ? 32 : begin;
  end = end < begin ? begin : end > 32 ? 32 : end;
  return (uint32_t)(((uint64_t)1 << end) - ((uint64_t)1 << begin));
}

// 32 numbers as bfloat16: low in the lower half.
NM_INLINE void store_bf16(uint16_t* to, __m512 low, __m512 high) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

// 16 rows (`rows` of them exist) of 32 numbers k, k + 1, ... of a row-major factor. Rows that do not exist are left as
// they are: they only reach rows of C that do not exist.
NM_INLINE void pack_rows(const Matrix<float>& from, int row, int rows, int k, int K, Triangle triangle,
                         uint16_t* tile) {
  const float* at = from.data + (int64_t)row * from.stride + k;
  if (rows == 16 && counts_whole(triangle, row, k, K)) {
#pragma GCC unroll 4
    for (int r = 0; r < 16; r++, at += from.stride) store_bf16(tile + 32 * r, load(at), load(at + 16));
    return;
  }
  for (int r = 0; r < rows; r++, at += from.stride) {
    int begin = triangle == Triangle::upper ? row + r : 0;
    int end = triangle == Triangle::lower && row + r < K ? row + r + 1 : K;
    uint32_t mask = bits(begin - k, end - k);
    store_bf16(tile + 32 * r, _mm512_maskz_loadu_ps((__mmask16)mask, at), _mm512_maskz_loadu_ps(mask >> 16, at + 16));
  }
}

// 16 pairs of rows k, k + 1, ... of 16 columns of a row-major factor. A triangle is that of the transpose: the columns
// are the rows of A.
NM_INLINE void pack_pairs(const Matrix<float>& from, int column, int k, int K, Triangle triangle, uint16_t* tile) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                              23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const float* at = from.data + (int64_t)k * from.stride + column;
  const bool whole = counts_whole(triangle, column, k, K);
#pragma GCC unroll 4
  for (int pair = 0; pair < 16; pair++, at += 2 * from.stride) {
    __m512 row[2];
    for (int i = 0; i < 2; i++) {
      if (whole) {
        row[i] = load(at + i * from.stride);
      } else {
        int depth = k + 2 * pair + i, begin = triangle == Triangle::lower ? depth : 0;
        int end = depth >= K ? 0 : triangle == Triangle::upper ? depth + 1 : column + 16;
        row[i] = _mm512_maskz_loadu_ps((__mmask16)bits(begin - column, end - column), at + i * from.stride);
      }
    }
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(row[1], row[0]);
    _mm512_storeu_si512(tile + 32 * pair, _mm512_permutexvar_epi16(interleave, both));
  }
}

NM_INLINE void transpose_pairs(const uint16_t* from, uint16_t* to) {
  const float* rows[16];
  for (int r = 0; r < 16; r++) rows[r] = (const float*)(from + 32 * r);
  transpose_block(rows, 16, (float*)to, 16);
}

// Rows m to m + 16 of A, k to k + 32.
NM_INLINE void pack_a(const Matrix<float>& A, int m, int M, int k, int K, Triangle triangle, uint16_t* tile) {
  if (A.transposed) {
    alignas(64) uint16_t pairs[kTile];
    pack_pairs(A, m, k, K, triangle, pairs);
    transpose_pairs(pairs, tile);
  } else {
    pack_rows(A, m, M - m < 16 ? M - m : 16, k, K, triangle, tile);
  }
}

// Columns n to n + 16 of B, k to k + 32.
NM_INLINE void pack_b(const Matrix<float>& B, int n, int N, int k, int K, uint16_t* tile) {
  if (B.transposed) {
    alignas(64) uint16_t rows[kTile];
    pack_rows(B, n, N - n < 16 ? N - n : 16, k, K, Triangle::none, rows);
    transpose_pairs(rows, tile);
  } else {
    pack_pairs(B, n, k, K, Triangle::none, tile);
  }
}

// Tiles: 0 to 3 sums, 4 and 5 of A, 6 and 7 of B, all of 16 rows of 64 bytes.
struct TileConfiguration {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The sums of one or two by one or two tiles over `steps` tiles of A and of B; a second row or column of tiles begins
// `next` numbers after the first.
NM_INLINE void multiply_tiles(bool two_rows, bool two_columns, const uint16_t* a, const uint16_t* b, int64_t next,
                              int steps, float* to, int64_t stride) {
  _tile_zero(0);
  if (two_columns) _tile_zero(1);
  if (two_rows) _tile_zero(2);
  if (two_rows && two_columns) _tile_zero(3);
  for (int i = 0; i < steps; i++, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (two_columns) {
      _tile_loadd(7, b + next, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two_rows) {
      _tile_loadd(5, a + next, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (two_rows && two_columns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, to, 4 * stride);
  if (two_columns) _tile_stored(1, to + 16, 4 * stride);
  if (two_rows) _tile_stored(2, to + 16 * stride, 4 * stride);
  if (two_rows && two_columns) _tile_stored(3, to + 16 * stride + 16, 4 * stride);
}

template <int R, int V>
NM_INLINE void finish_sums(const float* sums, int rows, const Result<float>& C, int m, int n) {
  for (int r = 0; r + R <= rows; r += R) {
    Tile<float, R, V> tile;
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) tile.sums[i][v] = load(sums + (r + i) * 32 + v * 16);
    finish(tile, C, m + r, n);
  }
  if (R > 1 && rows % R) finish_sums<1, V>(sums + rows / R * R * 32, rows % R, C, m + rows / R * R, n);
}

inline int64_t amx_scratch(int max_m, int max_n, int max_k) {
  int whole = max_m < max_n ? max_m : max_n;
  return 16 + 32 * 32 + (round_up(whole, 32) + 32) * round_up(max_k, 32) / 2;
}

// Of A and B, the one with fewer tiles is packed as a whole, the other by 32 rows or columns.
inline void gemm_amx(int M, int N, int K, const Matrix<float>& A, const Matrix<float>& B, const Result<float>& C,
                     Triangle triangle, float* scratch) {
  const int steps = (K + 31) / 32;
  const bool a_whole = M <= N;
  float* sums = (float*)round_up((intptr_t)scratch, 64);
  uint16_t* whole = (uint16_t*)(sums + 32 * 32);
  uint16_t* part = whole + round_up(a_whole ? M : N, 32) / 16 * steps * kTile;
  auto pack_rows_of_a = [&](int m, uint16_t* to) {
    for (int half = 0; half < 2 && m + 16 * half < M; half++)
      for (int i = 0; i < steps; i++) pack_a(A, m + 16 * half, M, 32 * i, K, triangle, to + (half * steps + i) * kTile);
  };
  auto pack_columns_of_b = [&](int n, uint16_t* to) {
    for (int half = 0; half < 2 && n + 16 * half < N; half++)
      for (int i = 0; i < steps; i++) pack_b(B, n + 16 * half, N, 32 * i, K, to + (half * steps + i) * kTile);
  };
  static constexpr TileConfiguration configuration;  // static: the instruction's asm names its first bytes only
  _tile_loadconfig(&configuration);
  const bool plain = C.keep == 0 && C.add == nullptr && C.scale == 1 && C.row == nullptr;
  auto multiply = [&](int m, int n, const uint16_t* a, const uint16_t* b) {
    if (triangle == Triangle::output && n > m + 31) return;
    const int begin = triangle == Triangle::upper ? m / 32 : 0;
    const int end = triangle == Triangle::lower && m / 32 + 1 < steps ? m / 32 + 1 : steps;
    const int rows = M - m < 32 ? M - m : 32;
    const bool direct = plain && rows % 16 == 0, wide = N - n > 16;
    float* to = direct ? C.data + (int64_t)m * C.stride + n : sums;
    multiply_tiles(rows > 16, wide, a + begin * kTile, b + begin * kTile, steps * kTile, end - begin, to,
                   direct ? C.stride : 32);
    if (direct) return;
    if (wide)
      finish_sums<8, 2>(sums, rows, C, m, n);
    else
      finish_sums<8, 1>(sums, rows, C, m, n);
  };
  const int64_t next = 2 * steps * kTile;  // to the next 32 rows or columns
  if (a_whole) {
    for (int m = 0; m < M; m += 32) pack_rows_of_a(m, whole + m / 32 * next);
    for (int n = 0; n < N; n += 32) {
      pack_columns_of_b(n, part);
      asm volatile("" ::: "memory");  // the tile loads do not say that they read memory
      for (int m = 0; m < M; m += 32) multiply(m, n, whole + m / 32 * next, part);
    }
  } else {
    for (int n = 0; n < N; n += 32) pack_columns_of_b(n, whole + n / 32 * next);
    for (int m = 0; m < M; m += 32) {
      pack_rows_of_a(m, part);
      asm volatile("" ::: "memory");
      for (int n = 0; n < N; n += 32) multiply(m, n, part, whole + n / 32 * next);
    }
  }
  _tile_release();
}

}  // namespace NM_ISA
}  // namespace nm
