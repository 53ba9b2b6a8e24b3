// The logistic function of x and of -x, each with its own relative accuracy, in float and double.
#pragma once

#include "launch.h"

namespace ssgrl::cuda {

template <class A>
struct Logistic {
  A value;       // sigma(x)
  A complement;  // sigma(-x); their product is the slope
};

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }

template <class A>
__device__ __forceinline__ Logistic<A> logistic(A x) {
  const A q = exp_of(x < A(0) ? x : -x), large = A(1) / (A(1) + q), small = q * large;
  return x < A(0) ? Logistic<A>{small, large} : Logistic<A>{large, small};
}

}  // namespace ssgrl::cuda
