// Floats to e4m3 (4 bits of exponent, 3 of mantissa, no infinity), as codes: to the nearest, ties to even, saturating
// at
// +-448, infinities too; NaN becomes 0x7f.

#pragma once

#include "launch.h"

namespace ssgrl::cuda {

__device__ __forceinline__ uint32_t e4m3(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80u, magnitude = __float_as_uint(x) & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return 0x7fu;
  }
  const float value = fminf(__uint_as_float(magnitude), 448.f);
  if (value < 0x1p-6f) {  // subnormal codes count 2^-9, and the eighth is the smallest normal one
    return sign | static_cast<uint32_t>(rintf(value * 0x1p9f));
  }
  const uint32_t bits = __float_as_uint(value);
  return sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - ((127 - 7) << 3));
}

// Two codes, low in the lower byte.
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
