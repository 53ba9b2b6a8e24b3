#include "gated_product.cuh"

namespace ssgrl::cuda {

template <>
std::string gates_kernel<HalfType::float16>(const GatedProduct& product, TileName tile, const Place& place) {
  return enqueue_tile<Gates, cutlass::half_t>(product, tile, place);
}

template <>
std::string blend_kernel<HalfType::float16>(const GatedProduct& product, TileName tile, const Place& place) {
  return enqueue_tile<Blend, cutlass::half_t>(product, tile, place);
}

}  // namespace ssgrl::cuda
