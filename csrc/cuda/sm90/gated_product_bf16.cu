#include "gated_product.cuh"

namespace ssgrl::cuda {

template <class Config>
using TypedGates = Gates<cutlass::bfloat16_t, Config>;
template <class Config>
using TypedBlend = Blend<cutlass::bfloat16_t, Config>;

template <>
std::string gates_kernel<HalfType::bfloat16>(const GatedProduct& product, TileName tile, const Place& place) {
  return enqueue_tile<TypedGates, Config>(product, tile, place);
}

template <>
std::string blend_kernel<HalfType::bfloat16>(const GatedProduct& product, TileName tile, const Place& place) {
  return enqueue_tile<TypedBlend, Config>(product, tile, place);
}

}  // namespace ssgrl::cuda
