// Selects the kernel of a gated product; the kernels are instantiated in gated_product_bf16.cu and
// gated_product_fp16.cu.
#include <cuda_runtime_api.h>

#include "gated_product.h"

namespace ssgrl::cuda {

std::string refusal(const std::string& shape, int device, int* multiprocessors) {
  if (!shape.empty()) {
    return shape;
  }
  int major = 0, minor = 0;
  for (const auto& [attribute, value] :
       {std::pair{cudaDevAttrComputeCapabilityMajor, &major}, std::pair{cudaDevAttrComputeCapabilityMinor, &minor},
        std::pair{cudaDevAttrMultiProcessorCount, multiprocessors}}) {
    const cudaError_t status = cudaDeviceGetAttribute(value, attribute, device);
    if (status != cudaSuccess) {
      return "device " + std::to_string(device) + " does not answer: " + cudaGetErrorString(status);
    }
  }
  return major == 9 && minor == 0 ? ""
                                  : "the products by CUTLASS need compute capability 9.0, got " +
                                        std::to_string(major) + "." + std::to_string(minor);
}

std::string gates_refusal(const GatedProduct& product, int device) {
  int multiprocessors = 0;
  return refusal(shape_refusal(product, false), device, &multiprocessors);
}

std::string blend_refusal(const GatedProduct& product, int device) {
  int multiprocessors = 0;
  return refusal(shape_refusal(product, true), device, &multiprocessors);
}

std::string gates(const GatedProduct& product, int device, void* stream) {
  int multiprocessors = 0;
  const std::string reason = refusal(shape_refusal(product, false), device, &multiprocessors);
  if (!reason.empty()) {
    return reason;
  }
  const TileName tile = choose_tile(product.rows, product.dim, 2, multiprocessors);
  const auto kernel =
      product.type == HalfType::bfloat16 ? gates_kernel<HalfType::bfloat16> : gates_kernel<HalfType::float16>;
  return kernel(product, tile, {device, multiprocessors, stream});
}

std::string blend(const GatedProduct& product, int device, void* stream) {
  int multiprocessors = 0;
  const std::string reason = refusal(shape_refusal(product, true), device, &multiprocessors);
  if (!reason.empty()) {
    return reason;
  }
  const TileName tile = choose_tile(product.rows, product.dim, 1, multiprocessors);
  const auto kernel =
      product.type == HalfType::bfloat16 ? blend_kernel<HalfType::bfloat16> : blend_kernel<HalfType::float16>;
  return kernel(product, tile, {device, multiprocessors, stream});
}

}  // namespace ssgrl::cuda
