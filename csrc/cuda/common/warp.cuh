// Sums and maxima over the 32 lanes of a warp, in a fixed order; every lane gets the result.
#pragma once

#include <type_traits>

#include "launch.h"

namespace ssgrl::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, bits);
  }
  return value;
}

// The larger of two numbers; for floats fmax, which ignores a NaN.
template <class A>
__device__ __forceinline__ A larger(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    return max(a, b);
  } else {
    return fmax(a, b);
  }
}

template <class A>
__device__ __forceinline__ A warp_max(A value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    value = larger(value, __shfl_xor_sync(kAllLanes, value, bits));
  }
  return value;
}

}  // namespace ssgrl::cuda
