// Prints what the gated products would hand to the GPU, without one: whether CUTLASS takes the problem, the grid, and
// every TMA descriptor, caught by a cuTensorMapEncodeTiled of our own (CUTLASS calls it directly under
// CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL). Addresses are offsets, in elements, into buffers that nothing reads.
//
//   arguments R D   prints a line `product tile implementable blocks shared_bytes` and, after each, a line
//                   `map address dims... | strides in bytes... | box...` a descriptor, in the order X, W, C, D (, z)
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL
#include <cuda.h>

#include <cstdio>
#include <cstdlib>

#include "gated_product.cuh"

extern "C" CUresult cuTensorMapEncodeTiled(
    CUtensorMap*, CUtensorMapDataType type, cuuint32_t rank, void* address, const cuuint64_t* dims,
    const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave interleave,
    CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  std::printf("map %zu", reinterpret_cast<size_t>(address) / 2);
  for (cuuint32_t i = 0; i < rank; ++i) std::printf(" %llu", static_cast<unsigned long long>(dims[i]));
  std::printf(" |");
  for (cuuint32_t i = 0; i + 1 < rank; ++i) std::printf(" %llu", static_cast<unsigned long long>(strides[i]));
  std::printf(" |");
  for (cuuint32_t i = 0; i < rank; ++i) std::printf(" %u", box[i]);
  std::printf("\n");
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (steps[i] != 1) return CUDA_ERROR_INVALID_VALUE;
  }
  const bool known = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || type == CU_TENSOR_MAP_DATA_TYPE_UINT16;
  return known && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

namespace ssgrl::cuda {

template <class Kernel>
void show(const char* product, TileName tile, const GatedProduct& p) {
  using Gemm = typename Kernel::Gemm;
  const auto arguments = Kernel::arguments(p, {0, 132, nullptr});
  const bool taken = Gemm::can_implement(arguments) == cutlass::Status::kSuccess;
  std::printf("descriptors\n");
  const auto params = Gemm::GemmKernel::to_underlying_arguments(arguments, nullptr);
  const dim3 grid = Gemm::GemmKernel::get_grid_shape(params);
  std::printf(
      "%s %d %d %u %d\n", product, static_cast<int>(tile), taken, grid.x * grid.y * grid.z,
      static_cast<int>(Gemm::GemmKernel::SharedStorageSize));
}

template <TileName tile>
void show_tile(const GatedProduct& p) {
  show<Gates<cutlass::bfloat16_t, Config<tile>>>("gates", tile, p);
  show<Blend<cutlass::bfloat16_t, Config<tile>>>("blend", tile, p);
}

}  // namespace ssgrl::cuda

int main(int, char** argv) {
  using namespace ssgrl::cuda;
  const int64_t rows = std::atoll(argv[1]), dim = std::atoll(argv[2]), stride = std::atoll(argv[3]);
  const auto at = [](int64_t element) { return reinterpret_cast<void*>(2 * element); };
  // the workspace from element 2^40 on, the weight from 2^41 on; the blend in place
  GatedProduct p{HalfType::bfloat16, rows, dim, at(int64_t{1} << 40), stride, at(int64_t{1} << 41), nullptr};
  p.out = at((int64_t{1} << 40) + dim);
  p.out_stride = stride;
  const std::string reason = shape_refusal(p, true);
  if (!reason.empty()) {
    std::printf("%s\n", reason.c_str());
    return 1;
  }
  show_tile<TileName::small>(p);
  show_tile<TileName::medium>(p);
  show_tile<TileName::large>(p);
  return 0;
}
