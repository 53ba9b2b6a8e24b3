// The classifier product's contract (csrc/cuda/sm90/classifier_product.h) in plain loops, for label_scores in the
// emulator, split as on an H100; the product itself is tested by tests/cuda/test_cuda_classifier.py.

#include "cuda/sm90/classifier_product.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cuda/sm90/gated_product_math.h"

namespace ssgrl::cuda {

namespace {

constexpr int64_t kMultiprocessors = 132;

template <class T>
float dot(const void* x, int64_t row, int64_t dim, const T* weight) {
  const T* const own = static_cast<const T*>(x) + row * dim;
  float total = 0;
  for (int64_t k = 0; k < dim; ++k) {
    total += static_cast<float>(own[k]) * static_cast<float>(weight[k]);
  }
  return total;
}

template <class T>
float f_o(const ClassifierProduct& p, int64_t row, int64_t n) {
  const T* const weight = static_cast<const T*>(p.weight_o) + n * 2 * p.dim;
  return dot(p.h_T, row, p.dim, weight) + dot(p.h0, row, p.dim, weight + p.dim);
}

template <class T>
void partial_sums(const ClassifierProduct& p, int64_t wide) {
  for (int64_t part = 0; part * wide < p.outputs; ++part) {
    for (int64_t row = 0; row < p.rows; ++row) {
      float total = 0;
      for (int64_t n = part * wide; n < std::min((part + 1) * wide, p.outputs); ++n) {
        const float bias = p.bias_o ? static_cast<float>(static_cast<const T*>(p.bias_o)[n]) : 0.f;
        const T own = static_cast<const T*>(p.weight_c)[row % p.classes * p.outputs + n];
        total += ClassTerm<ExactTanh>{}(f_o<T>(p, row, n), bias, static_cast<float>(own));
      }
      p.partial[part * p.rows + row] = total;
    }
  }
}

}  // namespace

std::string classifier_refusal(const ClassifierProduct& product, int, int64_t* parts) {
  const std::string reason = shape_refusal(product);
  if (reason.empty()) {
    *parts = classifier_parts(product, classifier_tile(product, kMultiprocessors));
  }
  return reason;
}

std::string classifier_product(const ClassifierProduct& product, int, void*) {
  const std::string reason = shape_refusal(product);
  if (reason.empty()) {
    const int64_t wide = kTiles[static_cast<int>(classifier_tile(product, kMultiprocessors))].columns;
    product.type == HalfType::bfloat16 ? partial_sums<c10::BFloat16>(product, wide)
                                       : partial_sums<c10::Half>(product, wide);
  }
  return reason;
}

}  // namespace ssgrl::cuda
