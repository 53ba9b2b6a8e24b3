// Conversion of floats to e4m3 codes (1 sign, 4 exponent and 3 mantissa bits, no infinity): round to nearest, ties to
// even, values beyond +-448 and infinities saturate at +-448, NaN becomes 0x7f.
#pragma once

#include "launch.h"

namespace ssgrl::cuda {

__device__ __forceinline__ uint32_t e4m3(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80u, magnitude = __float_as_uint(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return 0x7fu;
  }
  const float value = fminf(__uint_as_float(magnitude), 448.f);
  if (value < 0x1p-6f) {  // a subnormal code counts multiples of 2^-9; 8 x 2^-9 is the smallest normal value
    return sign | static_cast<uint32_t>(rintf(value * 0x1p9f));
  }
  const uint32_t bits = __float_as_uint(value);
  return sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - ((127 - 7) << 3));
}

// Two codes in one register, `low` in the lower byte.
__device__ __forceinline__ uint32_t e4m3_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
#else
  return e4m3(low) | e4m3(high) << 8;
#endif
}

}  // namespace ssgrl::cuda
