// tanh as a separable polynomial ("split tanh"), and the scales that keep its powers within the range of float16.
//
// For x = u v and |x| <= reach: tanh x = sum_j c_j x^(2j+1) and sech^2 x = sum_j d_j x^(2j). Since (u v)^n = u^n v^n, a
// sum over one index of each term is a matrix product. A channel fits where max|u| max|v| <= reach over the elements
// that a block loads; channels that do not fit are evaluated value by value. NaN counts as the largest magnitude, so a
// channel with NaN does not fit.
//
// Operands are float16 for both dtypes (11 significant bits where bfloat16 has 8), scaled by powers of two, which is
// exact.

#pragma once

#include "cuda/common/halves.cuh"
#include "cuda/common/tanh.cuh"

// Minimum blocks per multiprocessor for __launch_bounds__. On sm_100 the code needs a few more than the 128 registers
// that two blocks leave per thread, so one is requested there; nothing is spilled in either case.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define SSGRL_SPLIT_BLOCKS 1
#else
#define SSGRL_SPLIT_BLOCKS 2
#endif

namespace ssgrl::cuda {

// Chebyshev fits in x^2 on [0, reach^2], the same as in kernels/split_tanh.py.
template <class T>
struct SplitForm;

template <>
struct SplitForm<BFloat16> {  // errors: tanh 3e-4 relative, sech^2 5e-4 absolute; bfloat16 rounds to 2e-3
  static constexpr float reach = 2.f;
  static constexpr int tanh_terms = 6, slope_terms = 7;
  static __device__ __forceinline__ float tanh(int j) {
    constexpr float c[] = {0.9997714452510996f,   -0.3287376667105625f,  0.11752640261351158f,
                           -0.03203953529557087f, 0.005254947298804881f, -0.00036924497162094116f};
    return c[j];
  }
  static __device__ __forceinline__ float slope(int j) {
    constexpr float d[] = {0.9994916236850546f,  -0.986096452264707f,    0.6016427824152948f,   -0.2545289816605264f,
                           0.06926078480173622f, -0.010583165665739677f, 0.0006801292534596235f};
    return d[j];
  }
};

template <>
struct SplitForm<Half> {  // errors: tanh 7e-6 relative, sech^2 6e-5 absolute; float16 rounds to 2.4e-4
  static constexpr float reach = 1.f;
  static constexpr int tanh_terms = 5, slope_terms = 5;
  static __device__ __forceinline__ float tanh(int j) {
    constexpr float c[] = {
        0.9999934257136104f, -0.3329909819816724f, 0.1304185683539615f, -0.044897063402679654f, 0.009075753104899413f};
    return c[j];
  }
  static __device__ __forceinline__ float slope(int j) {
    constexpr float d[] = {
        0.9999388349534242f, -0.9967893156125976f, 0.6389910598653248f, -0.28982278433573055f, 0.06770654397664445f};
    return d[j];
  }
};

// The exponent e of a magnitude, limited so that 2^e and 2^-e are normal numbers; infinity and NaN give the largest e.
__device__ __forceinline__ int exponent_of(float x) {
  const int biased = __float_as_int(x) >> 23 & 255;
  return min(max(biased, 2), 252) - 127;
}

// 2^e for e <= 127; zero below 2^-126.
__device__ __forceinline__ float power_of_two(int e) { return e < -126 ? 0.f : __int_as_float((e + 127) << 23); }

template <class T>
__device__ __forceinline__ float from_bits(uint32_t bits) {
  return static_cast<float>(T(static_cast<unsigned short>(bits), T::from_bits()));
}

template <class T>
__device__ __forceinline__ bool fits(float top_u, float top_v) {
  return top_u * top_v <= SplitForm<T>::reach && top_u < 8.5e37f && top_v < 8.5e37f;
}

}  // namespace ssgrl::cuda
