// Kernels of state_scale (aggregate.h): the largest magnitude of each image's h0 in two launches, without atomics, so
// results are reproducible bit by bit. The first kernel writes the maximum of each part of an image into `scale`, which
// has C entries per image; the second reduces them and overwrites the C entries with the scale.

#pragma once

#include "cuda/common/halves.cuh"
#include "cuda/common/vector.cuh"
#include "cuda/common/warp.cuh"

namespace ssgrl::cuda {

constexpr int kTopThreads = 256;

// Grid: (images, parts), parts <= C. The maximum of part p of image b goes to scale[b C + p]. Magnitudes are compared
// as bits, which orders infinity above every number and NaN above infinity.
template <int V>
__global__ void __launch_bounds__(kTopThreads)
    part_tops_kernel(const BFloat16* h0, float* scale, int64_t classes, int64_t values, int64_t part) {
  __shared__ uint32_t tops[kTopThreads / 32];
  const BFloat16* const image = h0 + blockIdx.x * values;
  const int64_t begin = blockIdx.y * part, end = begin + part < values ? begin + part : values;
  uint32_t top = 0;
  for (int64_t i = begin + int64_t(threadIdx.x) * V; i < end; i += int64_t(kTopThreads) * V) {
    const auto stored = *reinterpret_cast<const Stored<BFloat16, V>*>(image + i);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      top = max(top, low_magnitude(stored.values[j].x));
    }
  }
  top = warp_max(top);
  if (threadIdx.x % 32 == 0) {
    tops[threadIdx.x / 32] = top;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kTopThreads / 32; ++i) {
      top = max(top, tops[i]);
    }
    scale[blockIdx.x * classes + blockIdx.y] = __uint_as_float(top << 16);
  }
}

// 2^(ceil(log2 max(1, m)) - 8) from the bits of m >= 0.
__device__ __forceinline__ float scale_of(uint32_t top) {
  if (top >= 0x7f800000u) {
    return __uint_as_float(0x7fc00000u);
  }
  const uint32_t least = 127, exponent = (top >> 23) + ((top & 0x7fffffu) != 0);
  return __uint_as_float((max(exponent, least) - 8) << 23);
}

// Grid: images. Block: one warp.
static __global__ void image_scale_kernel(float* scale, int64_t classes, int64_t parts) {
  float* const image = scale + blockIdx.x * classes;
  uint32_t top = 0;
  for (int64_t i = threadIdx.x; i < parts; i += 32) {
    top = max(top, __float_as_uint(image[i]));
  }
  const float value = scale_of(warp_max(top));
  for (int64_t i = threadIdx.x; i < classes; i += 32) {
    image[i] = value;
  }
}

}  // namespace ssgrl::cuda
