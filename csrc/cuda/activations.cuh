// tanh, the logistic function and their slopes in float and double, each with its own relative accuracy.
#pragma once

#include "launch.h"

namespace ssgrl::cuda {

__device__ __forceinline__ float exp_of(float x) { return expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// 1 - tanh^2 = 4q / (1 + q)^2 with q = e^(-2|x|): right until q underflows, where 1 - t t would have cancelled long
// since.
template <class A>
__device__ __forceinline__ A sech_squared(A x) {
  const A q = exp_of(A(-2) * magnitude(x)), inverse = A(1) / (A(1) + q);
  return A(4) * q * inverse * inverse;
}

template <class A>
struct Logistic {
  A value;       // sigma(x)
  A complement;  // sigma(-x); their product is the slope
};

template <class A>
__device__ __forceinline__ Logistic<A> logistic(A x) {
  const A q = exp_of(-magnitude(x)), large = A(1) / (A(1) + q), small = q * large;
  return x < A(0) ? Logistic<A>{small, large} : Logistic<A>{large, small};
}

}  // namespace ssgrl::cuda
