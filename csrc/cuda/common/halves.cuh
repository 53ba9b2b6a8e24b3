// Helpers for 16-bit elements: operand type, magnitudes of a packed pair, copies of eight into shared memory.

#pragma once

#include <type_traits>

#include "intrinsics.cuh"

namespace ssgrl::cuda {

template <class T>
using OperandOf = std::conditional_t<std::is_same_v<T, bf16::type>, bf16, f16>;

// The magnitude of the lower or upper of two 16-bit floats, as bits that order as the magnitudes do.
__device__ __forceinline__ uint32_t low_magnitude(uint32_t pair) { return pair & 0x7fffu; }
__device__ __forceinline__ uint32_t high_magnitude(uint32_t pair) { return pair >> 16 & 0x7fffu; }

// Copies eight 16-bit elements of row i of a matrix [rows, K], from column k on, into 16 bytes of shared memory;
// elements outside the matrix become zero. Asynchronous (cp.async) where `aligned`: K is a multiple of 8 and the matrix
// is 16-byte aligned.
template <class T>
__device__ __forceinline__ void load_eight(
    T* shared, const T* matrix, int64_t i, int64_t rows, int64_t k, int64_t end, int64_t columns, bool aligned) {
  const int64_t left = i < rows ? end - k : 0;
  const int count = static_cast<int>(left < 0 ? 0 : left < 8 ? left : 8);
  const T* from = matrix + (count > 0 ? i * columns + k : 0);
  if (aligned) {
    cp_async_16(shared, from, 2 * count);
  } else {
    for (int j = 0; j < 8; ++j) {
      shared[j] = j < count ? from[j] : T(0.f);
    }
  }
}

// The same as two asynchronous copies of four, where K is a multiple of 4 and the matrix is 8-byte aligned.
template <class T>
__device__ __forceinline__ void load_twice_four(
    T* shared, const T* matrix, int64_t i, int64_t rows, int64_t k, int64_t end, int64_t columns) {
#pragma unroll
  for (int j = 0; j < 8; j += 4) {
    const int64_t left = i < rows ? end - (k + j) : 0;
    const int count = static_cast<int>(left < 0 ? 0 : left < 4 ? left : 4);
    cp_async_8(shared + j, matrix + (count > 0 ? i * columns + k + j : 0), 2 * count);
  }
}

}  // namespace ssgrl::cuda
