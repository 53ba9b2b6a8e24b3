#include "gated_product.h"
#include "gated_product_fp8.cuh"
#include "gated_product_fp8.h"

namespace ssgrl::cuda {

std::string gates8(const GatedProduct8& product, int device, void* stream) {
  int multiprocessors = 0;
  std::string reason = refusal(shape_refusal(product, false), device, &multiprocessors);
  const Place place{device, multiprocessors, stream};
  const TileName tile = choose_tile(product.rows, product.dim, 1, multiprocessors);
  if (reason.empty()) {
    reason = enqueue_tile<Update8, Config8>(product, tile, place);
  }
  return reason.empty() ? enqueue_tile<Reset8, Config8>(product, tile, place) : reason;
}

std::string blend8(const GatedProduct8& product, int device, void* stream) {
  int multiprocessors = 0;
  const std::string reason = refusal(shape_refusal(product, true), device, &multiprocessors);
  if (!reason.empty()) {
    return reason;
  }
  const TileName tile = choose_tile(product.rows, product.dim, 1, multiprocessors);
  return enqueue_tile<Blend8, Config8>(product, tile, {device, multiprocessors, stream});
}

}  // namespace ssgrl::cuda
