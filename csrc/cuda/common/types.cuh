// Storage types of the CUDA kernels and their conversion to and from the type of arithmetic.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "launch.h"
#include "operators/compute.h"

namespace ssgrl::cuda {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;

template <class T>
__device__ __forceinline__ Compute<T> widen(T x) {
  return static_cast<Compute<T>>(x);
}

template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  return static_cast<T>(x);
}

// Element [i, k] of a matrix [rows, K], zero outside it.
template <class T>
__device__ __forceinline__ Compute<T> at_or_zero(const T* matrix, int64_t i, int64_t rows, int64_t k, int64_t columns) {
  return i < rows && k < columns ? widen(matrix[i * columns + k]) : Compute<T>(0);
}

}  // namespace ssgrl::cuda
