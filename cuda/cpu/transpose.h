// transpose.h - transposition in registers: the 128-bit pieces of a block's rows are loaded so that transposing 4 x 4
// numbers within each piece's lane finishes the block, with half the shuffles of a transposition by halves.
#pragma once

#include "vector.h"

namespace nm {
namespace NM_ISA {

#if NM_VECTOR_BYTES == 64
typedef __m512 LaneRows;

// Lane j of the four vectors x: the numbers from column `column` on of rows 4 j to 4 j + 3.
NM_INLINE void load_lanes(const float* const* rows, int column, LaneRows* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_zextps128_ps512(_mm_loadu_ps(rows[i] + column));
    x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x00f0, _mm_loadu_ps(rows[4 + i] + column));
    x[i] = _mm512_mask_broadcast_f32x4(x[i], 0x0f00, _mm_loadu_ps(rows[8 + i] + column));
    x[i] = _mm512_mask_broadcast_f32x4(x[i], 0xf000, _mm_loadu_ps(rows[12 + i] + column));
  }
}

NM_INLINE void transpose_lanes(LaneRows* x) {
  const __mmask16 all = (__mmask16)-1;
  const __mmask8 both = (__mmask8)-1;
  __m512d a = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(all, x[0], x[1]));
  __m512d b = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(all, x[0], x[1]));
  __m512d c = _mm512_castps_pd(_mm512_maskz_unpacklo_ps(all, x[2], x[3]));
  __m512d d = _mm512_castps_pd(_mm512_maskz_unpackhi_ps(all, x[2], x[3]));
  x[0] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(both, a, c));
  x[1] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(both, a, c));
  x[2] = _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(both, b, d));
  x[3] = _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(both, b, d));
}
#elif NM_VECTOR_BYTES == 32
typedef __m256 LaneRows;

NM_INLINE void load_lanes(const float* const* rows, int column, LaneRows* x) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + column)),
                                _mm_loadu_ps(rows[4 + i] + column), 1);
}

NM_INLINE void transpose_lanes(LaneRows* x) {
  __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(x[0], x[1]));
  __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(x[0], x[1]));
  __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(x[2], x[3]));
  __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(x[2], x[3]));
  x[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
  x[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
  x[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
  x[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}
#endif

// One block of kLanes<T> rows, the first `columns` of at most kLanes<T> columns.
template <class T>
NM_INLINE void transpose_block(const T* const* rows, int columns, T* to, int64_t to_stride) {
  for (int c = 0; c < columns; c++)
    for (int r = 0; r < kLanes<T>; r++) to[c * to_stride + r] = rows[r][c];
}

#if NM_VECTOR_BYTES > 16
NM_INLINE void transpose_block(const float* const* rows, int columns, float* to, int64_t to_stride) {
#pragma GCC unroll 4
  for (int c = 0; c < kLanes<float>; c += 4) {
    if (c >= columns) break;
    LaneRows x[4];
    load_lanes(rows, c, x);
    transpose_lanes(x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
      if (c + i < columns) store(to + (c + i) * to_stride, (Vec<float>)x[i]);
  }
}
#endif

// to[c, r] = from[r, c]. Reads from's columns and writes to's columns up to the next multiple of kLanes<T>; what is
// written there is arbitrary.
template <class T>
inline void transpose(int rows, int columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  const int lanes = kLanes<T>;
  for (int r = 0; r < rows; r += lanes) {
    const T* row[kLanes<T>];
    for (int i = 0; i < lanes; i++) row[i] = from + (r + i < rows ? r + i : rows - 1) * from_stride;
    for (int c = 0; c < columns; c += lanes) {
      if (c + lanes <= columns)
        transpose_block(row, kLanes<T>, to + c * to_stride + r, to_stride);
      else
        transpose_block(row, columns - c, to + c * to_stride + r, to_stride);
      for (int i = 0; i < lanes; i++) row[i] += lanes;
    }
  }
}

}  // namespace NM_ISA
}  // namespace nm
