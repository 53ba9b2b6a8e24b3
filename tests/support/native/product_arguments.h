// Prints what a product of csrc/cuda would hand to the GPU, without one: whether CUTLASS takes the problem, the grid,
// and every TMA descriptor, caught by a cuTensorMapEncodeTiled of our own, for one file of a program.
#pragma once

#if !defined(CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL)
#error "compile with -DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL, so that CUTLASS calls cuTensorMapEncodeTiled by its name"
#endif
#include <cuda.h>

#include <cstdio>
#include <cstdlib>

#include "cuda/sm90/gated_product.cuh"

// A line `map address dims... | strides in bytes... | box...` a descriptor.
extern "C" CUresult cuTensorMapEncodeTiled(
    CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  std::printf("map %zu", reinterpret_cast<size_t>(address));
  for (cuuint32_t i = 0; i < rank; ++i) std::printf(" %llu", static_cast<unsigned long long>(dims[i]));
  std::printf(" |");
  for (cuuint32_t i = 0; i + 1 < rank; ++i) std::printf(" %llu", static_cast<unsigned long long>(strides[i]));
  std::printf(" |");
  for (cuuint32_t i = 0; i < rank; ++i) std::printf(" %u", box[i]);
  std::printf("\n");
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (steps[i] != 1) return CUDA_ERROR_INVALID_VALUE;
  }
  const bool known = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_UINT16 ||
                     type == CU_TENSOR_MAP_DATA_TYPE_UINT8;
  return known && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

namespace ssgrl::cuda {

// A line `product tile implementable blocks shared_bytes`, after those of the descriptors.
template <class Kernel, class Call>
void show(const char* product, TileName tile, const Call& p) {
  using Gemm = typename Kernel::Gemm;
  const auto arguments = Kernel::arguments(p, {0, 132, nullptr});
  const bool taken = Gemm::can_implement(arguments) == cutlass::Status::kSuccess;
  const auto params = Gemm::GemmKernel::to_underlying_arguments(arguments, nullptr);
  const dim3 grid = Gemm::GemmKernel::get_grid_shape(params);
  std::printf(
      "%s %d %d %u %d\n", product, static_cast<int>(tile), taken, grid.x * grid.y * grid.z,
      static_cast<int>(Gemm::GemmKernel::SharedStorageSize));
}

// Nothing is read at the addresses.
inline void* at(int power, int64_t offset = 0) { return reinterpret_cast<void*>((int64_t{1} << power) + offset); }

}  // namespace ssgrl::cuda
