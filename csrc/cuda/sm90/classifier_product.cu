// Selects the kernel of the classifier product; the kernels are instantiated in classifier_product_bf16.cu and
// _fp16.cu.
#include "classifier_product.h"
#include "gated_product.h"

namespace ssgrl::cuda {

std::string classifier_refusal(const ClassifierProduct& product, int device, int64_t* parts) {
  int multiprocessors = 0;
  const std::string reason = refusal(shape_refusal(product), device, &multiprocessors);
  if (reason.empty()) {
    *parts = classifier_parts(product, classifier_tile(product, multiprocessors));
  }
  return reason;
}

std::string classifier_product(const ClassifierProduct& product, int device, void* stream) {
  int multiprocessors = 0;
  const std::string reason = refusal(shape_refusal(product), device, &multiprocessors);
  if (!reason.empty()) {
    return reason;
  }
  const TileName tile = classifier_tile(product, multiprocessors);
  const auto kernel =
      product.type == HalfType::bfloat16 ? classifier_kernel<HalfType::bfloat16> : classifier_kernel<HalfType::float16>;
  return kernel(product, tile, {device, multiprocessors, stream});
}

}  // namespace ssgrl::cuda
