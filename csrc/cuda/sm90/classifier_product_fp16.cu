#include "classifier_product.cuh"

namespace ssgrl::cuda {

template <class Config>
using TypedClassifier = Classifier<cutlass::half_t, Config>;

template <>
std::string classifier_kernel<HalfType::float16>(const ClassifierProduct& product, TileName tile, const Place& place) {
  return enqueue_tile<TypedClassifier, Config>(product, tile, place);
}

}  // namespace ssgrl::cuda
