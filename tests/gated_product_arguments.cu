// Prints what the gated products would hand to the GPU, without one: whether CUTLASS takes the problem, the grid, and
// every TMA descriptor, caught by a cuTensorMapEncodeTiled of our own (CUTLASS calls it directly under
// CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL). Nothing is read at the addresses.
//
//   arguments R D STRIDE
//
// prints, for each product and tile, a line `map address dims... | strides in bytes... | box...` a descriptor, in the
// order X, W, C, D (, z), and then a line `product tile implementable blocks shared_bytes`.
#define CUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL
#include <cuda.h>

#include <cstdio>
#include <cstdlib>

#include "gated_product_fp8.cuh"

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

template <TileName tile>
void show_tile(const GatedProduct& p, const GatedProduct8& p8) {
  show<Gates<cutlass::bfloat16_t, Config<tile>>>("gates", tile, p);
  show<Blend<cutlass::bfloat16_t, Config<tile>>>("blend", tile, p);
  if (shape_refusal(p8, true).empty()) {
    show<Update8<Config8<tile>>>("update8", tile, p8);
    show<Reset8<Config8<tile>>>("reset8", tile, p8);
    show<Blend8<Config8<tile>>>("blend8", tile, p8);
  }
}

}  // namespace ssgrl::cuda

// The workspace from byte 2^41 on, the weight from 2^42; the blend in place. In e4m3: X from 2^43, h from 2^44, z from
// 2^45, the blend in place too.
int main(int, char** argv) {
  using namespace ssgrl::cuda;
  const int64_t rows = std::atoll(argv[1]), dim = std::atoll(argv[2]), stride = std::atoll(argv[3]);
  const auto at = [](int power, int64_t offset = 0) { return reinterpret_cast<void*>((int64_t{1} << power) + offset); };
  const GatedProduct p{HalfType::bfloat16, rows, dim, at(41), stride, at(42), nullptr, at(41, 2 * dim), stride};
  const auto* scale = static_cast<const float*>(at(46));
  const GatedProduct8 q{rows, dim, at(43), 4 * dim, at(42), scale, nullptr, scale, at(44), at(45), at(44), stride};
  show_tile<TileName::small>(p, q);
  show_tile<TileName::medium>(p, q);
  show_tile<TileName::large>(p, q);
  return shape_refusal(p, true).empty() ? 0 : 1;
}
