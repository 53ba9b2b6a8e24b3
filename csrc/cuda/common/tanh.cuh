// tanh and its slope 1 - tanh^2 with small relative error in float32 and float64, from the smallest argument to
// saturation.
//
// float32. For |x| < 0.5: the odd polynomial x + x^3 s(x^2), fitted to a relative error of 6e-8. Otherwise:
// 1 - 2 / (1 + q) with q = 2^(2 x log2 e), two special-function instructions, correct for either sign. Their errors
// (2^-22 and 2^-23) give a relative error of at most 9e-7, at 0.5, and 2e-7 on average. Both forms are evaluated and
// one is selected.
//
// The slope is 4q / (1 + q)^2 with q = e^(-2|x|), which does not cancel as 1 - tanh^2 does; it is zero once q
// underflows.
//
// Cost. A multiprocessor issues 128 instructions per clock, 16 of them to the special-function unit. This tanh takes 14
// instructions, 2 of them special: 0.109 clocks of issue and 0.125 of the special-function unit. Evaluating the
// exponential of every ninth tanh by polynomial (13 instructions in place of 3, including range reduction and NaN)
// would balance both at 0.119, a gain of 5 % with every issue slot used, so that is not done. Where |x| <= 1 for a
// whole channel (`near_*`), one polynomial of 10 instructions, including its product and sum, replaces the tanh: 0.078
// clocks and no special function. Kernels bound |x| per channel and select the form per channel, so that in one
// multiprocessor some warps use the FMA pipe while others use the special-function unit.

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

// For |x| <= kNear, or NaN: relative error 2.3e-7.
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

// The form of tanh for each storage type. bounded: near_tanh exists, for channels within kNear.
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
