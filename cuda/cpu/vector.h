// vector.h - SIMD vectors of the instruction set being compiled for, in GCC's vector extensions.
//
// The CPU headers are compiled once per instruction set, each time into a namespace of its own (NM_ISA), and linked
// into one library. So they use no inline function of the C++ library: of equal copies the linker keeps any one,
// perhaps the AVX-512 one for a processor without it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef NM_ISA
#define NM_ISA portable
#endif

#if defined(__AVX512F__)
#define NM_VECTOR_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define NM_VECTOR_BYTES 32
#else
#define NM_VECTOR_BYTES 16
#endif

#define NM_INLINE inline __attribute__((always_inline))

namespace nm {
namespace NM_ISA {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float Vec __attribute__((vector_size(NM_VECTOR_BYTES)));
  typedef int32_t Int __attribute__((vector_size(NM_VECTOR_BYTES)));
};
template <>
struct Lanes<double> {
  typedef double Vec __attribute__((vector_size(NM_VECTOR_BYTES)));
  typedef int64_t Int __attribute__((vector_size(NM_VECTOR_BYTES)));
};
template <class T>
using Vec = typename Lanes<T>::Vec;
template <class T>
constexpr int kLanes = NM_VECTOR_BYTES / sizeof(T);

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

template <class T>
NM_INLINE Vec<T> load(const T* from) {
  Vec<T> x;
  memcpy(&x, from, sizeof x);
  return x;
}

NM_INLINE void store(float* to, Vec<float> x) { memcpy(to, &x, sizeof x); }
NM_INLINE void store(double* to, Vec<double> x) { memcpy(to, &x, sizeof x); }

template <class T>
NM_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x for every x, -0 and NaN too; the compiler sees a plain broadcast
}

#if NM_VECTOR_BYTES == 64
// The lower and the upper half of x, added. (With a mask because the headers of GCC 12 warn about themselves without.)
NM_INLINE __m256d add_halves(__m512d x) {
  const __mmask8 all = (__mmask8)-1;
  return _mm256_add_pd(_mm512_maskz_extractf64x4_pd(all, x, 0), _mm512_maskz_extractf64x4_pd(all, x, 1));
}

NM_INLINE __m256 add_halves(__m512 x) {
  const __mmask8 all = (__mmask8)-1;
  const __m512d pairs = _mm512_castps_pd(x);
  return _mm256_add_ps(_mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(all, pairs, 0)),
                       _mm256_castpd_ps(_mm512_maskz_extractf64x4_pd(all, pairs, 1)));
}
#elif NM_VECTOR_BYTES == 32
NM_INLINE __m256d add_halves(__m256d x) { return x; }  // already as short
NM_INLINE __m256 add_halves(__m256 x) { return x; }
#endif

// The sum of a vector's lanes.
NM_INLINE float sum(Vec<float> x) {
#if NM_VECTOR_BYTES > 16
  const __m256 eight = add_halves(x);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const Vec<float> four = x;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

NM_INLINE double sum(Vec<double> x) {
#if NM_VECTOR_BYTES > 16
  const __m256d four = add_halves(x);
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
#else
  const Vec<double> two = x;
#endif
  return two[0] + two[1];
}

// x where it lies within [low, high], else the nearer bound; NaN stays NaN.
NM_INLINE Vec<float> clamp(Vec<float> x, float low, float high) {
#if NM_VECTOR_BYTES == 64
  const __mmask16 all = (__mmask16)-1;
  __m512 above = _mm512_maskz_max_ps(all, (__m512)broadcast(low), (__m512)x);  // of a NaN, the second operand
  return (Vec<float>)_mm512_maskz_min_ps(all, (__m512)broadcast(high), above);
#elif NM_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_min_ps((__m256)broadcast(high), _mm256_max_ps((__m256)broadcast(low), (__m256)x));
#else
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
#endif
}

NM_INLINE Vec<double> clamp(Vec<double> x, double low, double high) {
  x = x < low ? broadcast(low) : x;
  return x > high ? broadcast(high) : x;
}

// -|x|: the sign bit set.
NM_INLINE Vec<float> below_zero(Vec<float> x) { return (Vec<float>)((Lanes<float>::Int)x | INT32_MIN); }
NM_INLINE Vec<double> below_zero(Vec<double> x) { return (Vec<double>)((Lanes<double>::Int)x | INT64_MIN); }

// 1 / x to one unit in the last place or so, for x from 1 to 2^100.
NM_INLINE Vec<float> reciprocal(Vec<float> x) {
#if NM_VECTOR_BYTES == 64
  Vec<float> y = (Vec<float>)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)x);
  return y * (1 - x * y) + y;
#else
  return 1 / x;
#endif
}

NM_INLINE Vec<double> reciprocal(Vec<double> x) { return 1 / x; }

// e^x for -106 <= x <= 89, to 2 units in the last place, denormal results included; NaN stays NaN.
NM_INLINE Vec<float> exp_within(Vec<float> x) {
  // n = x / ln 2 to the nearest integer: adding 1.5 * 2^23 leaves no bits for a fraction
  const float shift = 12582912.0f;
  Vec<float> shifted = x * 1.44269504f + shift;
  Vec<float> n = shifted - shift;
  Vec<float> r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts; |r| <= 0.347
  Vec<float> p = r * 1.3814539e-3f + 8.3687454e-3f;          // (e^r - 1 - r) / r^2, to 3e-9 of e^r
  p = p * r + 4.1668391e-2f;
  p = p * r + 1.66665204e-1f;
  p = p * r + 4.9999993e-1f;
  p = p * (r * r) + r + 1.0f;
#if NM_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)n);
#else
  // 2^n as the product of two halves: n reaches -150, beyond what one exponent holds
  typedef Lanes<float>::Int Int;
  Int exponent = (Int)shifted - 0x4b400000;
  Int half = exponent >> 1;
  return p * (Vec<float>)((half + 127) << 23) * (Vec<float>)((exponent - half + 127) << 23);
#endif
}

NM_INLINE Vec<double> exp_within(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; i++) x[i] = ::exp(x[i]);
  return x;
}

// e^x for every x: e^-104 rounds to 0, e^89 to infinity.
NM_INLINE Vec<float> exp(Vec<float> x) { return exp_within(clamp(x, -104.0f, 89.0f)); }
NM_INLINE Vec<double> exp(Vec<double> x) { return exp_within(x); }

}  // namespace NM_ISA
}  // namespace nm
