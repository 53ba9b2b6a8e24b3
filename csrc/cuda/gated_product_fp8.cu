#include "gated_product.h"
#include "gated_product_fp8.cuh"
#include "gated_product_fp8.h"

namespace ssgrl::cuda {
namespace {

std::string refusal(const GatedProduct8& product, bool blend, int device, int* multiprocessors) {
  const std::string reason = shape_refusal(product, blend);
  return reason.empty() ? device_refusal(device, multiprocessors) : reason;
}

}  // namespace

std::string gates8_refusal(const GatedProduct8& product, int device) {
  int multiprocessors = 0;
  return refusal(product, false, device, &multiprocessors);
}

std::string blend8_refusal(const GatedProduct8& product, int device) {
  int multiprocessors = 0;
  return refusal(product, true, device, &multiprocessors);
}

std::string gates8(const GatedProduct8& product, int device, cudaStream_t stream) {
  int multiprocessors = 0;
  std::string reason = refusal(product, false, device, &multiprocessors);
  const Place place{device, multiprocessors, stream};
  if (reason.empty()) {
    reason = enqueue<Update8>(product, place);
  }
  return reason.empty() ? enqueue<Reset8>(product, place) : reason;
}

std::string blend8(const GatedProduct8& product, int device, cudaStream_t stream) {
  int multiprocessors = 0;
  const std::string reason = refusal(product, true, device, &multiprocessors);
  return reason.empty() ? enqueue<Blend8>(product, {device, multiprocessors, stream}) : reason;
}

}  // namespace ssgrl::cuda
