// The gated products' contract (csrc/cuda/gated_product.h) in plain loops, for the operators in the emulator: what is
// around the products is tested there, the products themselves by tests/test_cuda_product*.py.

#include "cuda/gated_product.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/gated_product_math.h"

namespace ssgrl::cuda {

namespace {

template <class T>
float sum(const T* x, const T* weight, const T* bias, int64_t count, int64_t channel) {
  float total = bias ? static_cast<float>(bias[channel]) : 0.f;
  for (int64_t k = 0; k < count; ++k) {
    total += static_cast<float>(x[k]) * static_cast<float>(weight[channel * count + k]);
  }
  return total;
}

template <class T>
void gate_rows(const GatedProduct& p) {
  const int64_t D = p.dim;
  for (int64_t row = 0; row < p.rows; ++row) {
    T* const z = static_cast<T*>(p.columns) + row * p.stride;
    T *const h = z + D, *const reset = z + 4 * D;
    for (int64_t j = 0; j < 2 * D; ++j) {
      const float value = GateElement::of_batch(j >= D)(
          sum(h, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), 3 * D, j), 0.f,
          static_cast<float>(h[j % D]));
      (j < D ? z : reset)[j % D] = static_cast<T>(value);
    }
  }
}

template <class T>
void blend_rows(const GatedProduct& p) {
  const int64_t D = p.dim;
  for (int64_t row = 0; row < p.rows; ++row) {
    const T* const z = static_cast<const T*>(p.columns) + row * p.stride;
    const T* const h = z + D;
    for (int64_t j = 0; j < D; ++j) {
      const float value = BlendElement<ExactTanh>{}(
          sum(h + D, static_cast<const T*>(p.weight), static_cast<const T*>(p.bias), 3 * D, j), 0.f,
          static_cast<float>(h[j]), static_cast<float>(z[j]));
      static_cast<T*>(p.out)[row * p.out_stride + j] = static_cast<T>(value);
    }
  }
}

}  // namespace

std::string gates_refusal(const GatedProduct& product, int) { return shape_refusal(product, false); }
std::string blend_refusal(const GatedProduct& product, int) { return shape_refusal(product, true); }

std::string gates(const GatedProduct& product, int, void*) {
  const std::string reason = shape_refusal(product, false);
  if (reason.empty()) {
    product.type == HalfType::bfloat16 ? gate_rows<c10::BFloat16>(product) : gate_rows<c10::Half>(product);
  }
  return reason;
}

std::string blend(const GatedProduct& product, int, void*) {
  const std::string reason = shape_refusal(product, true);
  if (reason.empty()) {
    product.type == HalfType::bfloat16 ? blend_rows<c10::BFloat16>(product) : blend_rows<c10::Half>(product);
  }
  return reason;
}

}  // namespace ssgrl::cuda
