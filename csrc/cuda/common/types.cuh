// Storage types of the CUDA kernels and what they compute in.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "operators/compute.h"
#include "launch.h"

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

// Row i of [rows, K] at column k, zero outside.
template <class T>
__device__ __forceinline__ Compute<T> at_or_zero(const T* matrix, int64_t i, int64_t rows, int64_t k, int64_t columns) {
  return i < rows && k < columns ? widen(matrix[i * columns + k]) : Compute<T>(0);
}

}  // namespace ssgrl::cuda
