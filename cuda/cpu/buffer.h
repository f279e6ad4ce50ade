// buffer.h - scratch memory of one thread, and the loops over rows that everything is made of.
//
// Rows are 64-byte aligned and padded to whole vectors. The padding's content is arbitrary: loops without a reduction
// run over it, reductions leave it out.
#pragma once

#include <stdint.h>

#include "gemm.h"
#include "vector.h"

namespace nm::NM_ISA {

// A matrix in scratch memory, row-major.
template <class T>
struct Buffer {
  T* data = nullptr;
  int stride = 0;

  T* operator[](int row) const { return data + int64_t(row) * stride; }
  Matrix<T> plain() const { return {data, stride, false}; }
  Matrix<T> transposed() const { return {data, stride, true}; }
  // Where a product goes: in place of what is here, or on top of it.
  Result<T> replaced(T factor = 1) const {
    Result<T> result{data, stride};
    result.scale = factor;
    return result;
  }
  Result<T> increased(T factor = 1) const {
    Result<T> result = replaced(factor);
    result.keep = 1;
    return result;
  }
};

// Numbers from one row to the next: whole vectors, and no power of two, whose rows would meet in the same cache sets.
template <class T>
inline int stride_of(int columns) {
  int stride = (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
  return stride * int(sizeof(T)) % 512 ? stride : stride + kLanes<T>;
}

// Hands out memory in order; with no memory behind it, it only counts what it would hand out.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  int64_t bytes() const { return used_; }

  template <class T>
  T* row(int64_t numbers) {
    int64_t at = used_;
    // One vector more than asked for, since loops over rows write whole vectors.
    used_ += (numbers * int64_t(sizeof(T)) + NM_VECTOR_BYTES + 63) / 64 * 64;
    return reinterpret_cast<T*>(memory_ + at);
  }

  template <class T>
  Buffer<T> buffer(int rows, int columns) {
    const int stride = stride_of<T>(columns);
    return {row<T>(int64_t(rows) * stride), stride};
  }

 private:
  char* memory_;
  int64_t used_ = 0;
};

template <class T>
inline void fill(int n, T value, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, broadcast(value));
}

template <class T>
inline void copy_row(int n, const T* in, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, load(in + j));
}

// To memory of any alignment that is read again much later, without pushing what is at work out of the caches. Other
// threads see it after `end_of_copies`.
template <class T>
inline void copy_past_caches(int n, const T* in, T* out) {
#if NM_VECTOR_BYTES == 64
  if (uintptr_t(out) % 64 == 0 && n % kLanes<T> == 0) {
    for (int j = 0; j < n; j += kLanes<T>) _mm512_stream_si512((__m512i*)(out + j), (__m512i)load(in + j));
    return;
  }
#endif
  memcpy(out, in, size_t(n) * sizeof(T));
}

inline void end_of_copies() {
#if NM_VECTOR_BYTES == 64
  _mm_sfence();
#endif
}

template <class T>
inline void scale(int n, T factor, const T* in, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, factor * load(in + j));
}

template <class T>
inline void add_scaled(int n, T factor, const T* in, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, load(out + j) + factor * load(in + j));
}

template <class T>
inline void multiply(int n, const T* a, const T* b, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, load(a + j) * load(b + j));
}

template <class T>
inline void accumulate_product(int n, const T* a, const T* b, T* out) {
  for (int j = 0; j < n; j += kLanes<T>) store(out + j, load(out + j) + load(a + j) * load(b + j));
}

// The first `live` lanes of x, zero behind them.
template <class T>
inline Vec<T> first_lanes(Vec<T> x, int live) {
  if (live >= kLanes<T>) return x;
  alignas(64) T lanes[kLanes<T>];
  store(lanes, x);
  for (int j = live; j < kLanes<T>; j++) lanes[j] = 0;
  return load(lanes);
}

template <class T>
inline T dot(int n, const T* a, const T* b) {
  Vec<T> total = broadcast(T(0));
  for (int j = 0; j < n; j += kLanes<T>) total += first_lanes<T>(load(a + j) * load(b + j), n - j);
  return sum(total);
}

template <class T>
inline T total(int n, const T* a) {
  Vec<T> all = broadcast(T(0));
  for (int j = 0; j < n; j += kLanes<T>) all += first_lanes<T>(load(a + j), n - j);
  return sum(all);
}

}  // namespace nm::NM_ISA
