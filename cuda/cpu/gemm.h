// gemm.h - the matrix products of the memory's chunk algorithm, see gemm_full.h for what a product is.
#pragma once

#include "gemm_full.h"
#if defined(__AMX_BF16__)
#include "gemm_amx.h"
#endif

namespace nm {
namespace NM_ISA {

// Numbers of T that gemm wants as scratch for products up to max_m x max_n x max_k.
inline int64_t gemm_scratch(int max_m, int max_n, int max_k) {
  (void)max_m, (void)max_n;
  int64_t numbers = full_scratch(max_k);
#if defined(__AMX_BF16__)
  const int64_t tiles = amx_scratch(max_m, max_n, max_k);
  if (tiles > numbers) numbers = tiles;
#endif
  return numbers;
}

// Operand::bf16 allows bfloat16 factors; where there is no faster way for them they stay as they are.
template <Operand kOperand, class T>
void gemm(int M, int N, int K, Matrix<T> A, Matrix<T> B, Result<T> C, Triangle triangle, T* scratch) {
#if defined(__AMX_BF16__)
  if constexpr (kOperand == Operand::bf16 && sizeof(T) == sizeof(float))
    if (M >= kLeastTileRows) return gemm_amx(M, N, K, A, B, C, triangle, scratch);
#endif
  gemm_full(M, N, K, A, B, C, triangle, scratch);
}

}  // namespace NM_ISA
}  // namespace nm
