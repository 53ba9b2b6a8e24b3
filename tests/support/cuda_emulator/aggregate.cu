// The launchers of csrc/cuda/graph_propagation/aggregate.h, and codes of e4m3.cuh, for
// tests/cuda/test_cuda_aggregate.py.

#include "bindings.h"
#include "cuda/common/e4m3.cuh"
#include "cuda/common/types.cuh"
#include "cuda/graph_propagation/aggregate.h"

using ssgrl::cuda::BFloat16;
using ssgrl::cuda::Half;

#define EXPORTED extern "C" __attribute__((visibility("default"))) const char*

namespace {

template <class T>
void aggregate_of(
    const void* adjacency, const void* h, int64_t h_stride, void* out, int64_t out_stride, int64_t images,
    int64_t classes, int64_t dim) {
  ssgrl::cuda::aggregate(
      static_cast<const T*>(adjacency), static_cast<const T*>(h), h_stride, static_cast<T*>(out), out_stride, images,
      classes, dim);
}

}  // namespace

EXPORTED emulated_aggregate(
    bool backwards, int64_t half, const void* adjacency, const void* h, int64_t h_stride, void* out, int64_t out_stride,
    int64_t images, int64_t classes, int64_t dim) {
  return emulated(backwards, [&] {
    const auto run = half ? aggregate_of<Half> : aggregate_of<BFloat16>;
    run(adjacency, h, h_stride, out, out_stride, images, classes, dim);
  });
}

EXPORTED emulated_aggregate8(
    bool backwards, const BFloat16* adjacency, const BFloat16* h, int64_t h_stride, const float* scale, double inward,
    double outward, uint8_t* x8, int64_t x8_stride, int64_t images, int64_t classes, int64_t dim) {
  return emulated(backwards, [&] {
    ssgrl::cuda::aggregate8(
        adjacency, h, h_stride, scale, static_cast<float>(inward), static_cast<float>(outward), x8, x8_stride, images,
        classes, dim);
  });
}

EXPORTED emulated_state_scale(
    bool backwards, const BFloat16* h0, float* scale, int64_t images, int64_t classes, int64_t dim) {
  return emulated(backwards, [&] { ssgrl::cuda::state_scale(h0, scale, images, classes, dim); });
}

EXPORTED emulated_e4m3(bool, const float* values, uint8_t* codes, int64_t count) {  // an even count
  return emulated(false, [&] {
    for (int64_t i = 0; i < count; i += 2) {
      const uint32_t pair = ssgrl::cuda::e4m3_pair(values[i], values[i + 1]);
      codes[i] = static_cast<uint8_t>(pair);
      codes[i + 1] = static_cast<uint8_t>(pair >> 8);
    }
  });
}
