// Kernel launch: on PyTorch's current stream under nvcc, in the tests' CPU emulator under SSGRL_EMULATED.
//
// This header and intrinsics.cuh are the only ones that differ between the two. An empty grid launches nothing.

#pragma once

#include <cstddef>
#include <cstdint>

#if defined(SSGRL_EMULATED)

#include "emulator.h"

#define SSGRL_SHARED(type, name) type* const name = static_cast<type*>(ssgrl::emulator::shared_memory())

#else

#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>

#include "stream.h"

// The block's dynamic shared memory, 16-byte aligned, as an array of a type.
#define SSGRL_SHARED(type, name)                                           \
  extern __shared__ __align__(16) unsigned char ssgrl_fast_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(ssgrl_fast_shared_bytes)

#endif

namespace ssgrl::cuda {

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(SSGRL_EMULATED)

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, const A&... arguments) {
  const std::tuple<P...> values{static_cast<P>(arguments)...};
  emulator::run(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

#else

inline cudaStream_t current_stream() {
  int device = 0;
  STD_CUDA_CHECK(cudaGetDevice(&device));
  return static_cast<cudaStream_t>(current_stream(device));
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, const A&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    return;
  }
  if (shared_bytes > 48 * 1024) {  // above 48 KiB the kernel must opt in
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, current_stream()>>>(static_cast<P>(arguments)...);
  // clang-format on
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

#endif

}  // namespace ssgrl::cuda
