// tanh and its slope 1 - tanh^2, to float32's and float64's error budgets, from the smallest argument to saturation.
//
// float32. Below 0.5 tanh is an odd polynomial, x + x^3 s(x^2), fitted to 6e-8 relative. Above, it is 1 - 2 / (1 + q)
// with q = 2^(2 x log2 e): two special-function instructions, and the sign comes of itself. Their errors (2^-22 and
// 2^-23) leave 9e-7 relative at worst, at 0.5, and 2e-7 in the mean. Both are evaluated and one is chosen.
//
// The slope is 4q / (1 + q)^2 with q = e^(-2|x|): no 1 - tanh^2 that cancels, zero once q underflows.
//
// Shares of the two units, per multiprocessor and clock: 128 instructions are issued, 16 of them to the
// special-function unit. A tanh is 14 instructions, 2 of them special: 0.109 clocks of issue and 0.125 of the unit.
// Doing the exponential of every ninth tanh by polynomial (13 instructions for 3, with range reduction and NaN kept)
// would balance the two at 0.119, 5 % less and every issue slot taken, so no fixed share is moved. But where |x| <= 1
// throughout (`near_*`), one polynomial of 10 instructions with its product and sum does for the whole tanh, 0.078
// clocks and nothing of the unit. Kernels bound |x| by channel and choose for each: channels in reach run on the FMA
// pipe beside the others' special functions, in other warps of the same multiprocessor.

#pragma once

#include "intrinsics.cuh"
#include "types.cuh"

namespace ssgrl::cuda {

template <class A>
struct Tanh {
  A value;
  A slope;
};

constexpr float kNear = 1.f;  // bound of |x| for near_tanh

// |x| <= kNear, or NaN: 2.3e-7 relative.
__device__ __forceinline__ float near_tanh(float x) {
  const float y = x * x;
  float s = 0.00123944832f;
  s = fmaf(s, y, -0.00677657407f);
  s = fmaf(s, y, 0.0209039934f);
  s = fmaf(s, y, -0.0537550226f);
  s = fmaf(s, y, 0.133315578f);
  s = fmaf(s, y, -0.333333075f);
  return fmaf(x * y, s, x);
}

__device__ __forceinline__ float small_tanh(float x) {  // |x| <= 0.5
  const float y = x * x;
  float s = 0.0179887451f;
  s = fmaf(s, y, -0.0533871092f);
  s = fmaf(s, y, 0.13330476f);
  s = fmaf(s, y, -0.333333105f);
  return fmaf(x * y, s, x);
}

constexpr float kTwoLog2E = 2.88539008f;

__device__ __forceinline__ float exact_tanh(float x) {
  const float inverse = reciprocal_fast(1.f + exp2_fast(x * kTwoLog2E));
  const float wide = fmaf(-2.f, inverse, 1.f);
  return fabsf(x) < 0.5f ? small_tanh(x) : wide;
}

__device__ __forceinline__ Tanh<float> exact_tanh_and_slope(float x) {
  const float q = exp2_fast(fabsf(x) * -kTwoLog2E);
  const float inverse = reciprocal_fast(1.f + q), share = q * inverse;
  const float wide = copysignf(fmaf(-2.f, share, 1.f), x);
  return {fabsf(x) < 0.5f ? small_tanh(x) : wide, 4.f * (share * inverse)};
}

__device__ __forceinline__ Tanh<float> near_tanh_and_slope(float x) {
  const float t = near_tanh(x);
  return {t, fmaf(-t, t, 1.f)};
}

__device__ __forceinline__ double exact_tanh(double x) { return tanh(x); }

__device__ __forceinline__ Tanh<double> exact_tanh_and_slope(double x) {
  const double q = exp(-2. * fabs(x)), inverse = 1. / (1. + q);
  return {tanh(x), 4. * q * inverse * inverse};
}

// How a storage type's values are evaluated. bounded: channels within kNear take near_tanh.
template <class T>
struct TanhOf {
  static constexpr bool bounded = true;
  static __device__ __forceinline__ float value(float x) { return exact_tanh(x); }
  static __device__ __forceinline__ Tanh<float> both(float x) { return exact_tanh_and_slope(x); }
  static __device__ __forceinline__ float near_value(float x) { return near_tanh(x); }
  static __device__ __forceinline__ Tanh<float> near_both(float x) { return near_tanh_and_slope(x); }
};
template <>
struct TanhOf<BFloat16> : TanhOf<float> {
  static constexpr bool bounded = false;
  static __device__ __forceinline__ float value(float x) { return tanh_fast(x); }
};
template <>
struct TanhOf<double> {
  static constexpr bool bounded = false;
  static __device__ __forceinline__ double value(double x) { return exact_tanh(x); }
  static __device__ __forceinline__ Tanh<double> both(double x) { return exact_tanh_and_slope(x); }
  static __device__ __forceinline__ double near_value(double x) { return exact_tanh(x); }
  static __device__ __forceinline__ Tanh<double> near_both(double x) { return exact_tanh_and_slope(x); }
};

}  // namespace ssgrl::cuda
