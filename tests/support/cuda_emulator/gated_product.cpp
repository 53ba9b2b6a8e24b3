// The gated products' contract (csrc/cuda/sm90/gated_product.h, gated_product_fp8.h) in plain loops, for the operators
// in the emulator: what is around the products is tested there, the products themselves by
// tests/cuda/test_cuda_product*.py.

#include "cuda/sm90/gated_product.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Float8_e4m3fn.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>

#include "cuda/sm90/gated_product_fp8.h"
#include "cuda/sm90/gated_product_math.h"

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

using E4m3 = c10::Float8_e4m3fn;
using State = c10::BFloat16;

// Every product of two e4m3 is exact in float; sums are taken in double, as no order of float's is the tensor cores'.
float sum8(const GatedProduct8& p, int64_t row, int block, int64_t channel) {
  const E4m3* const x = static_cast<const E4m3*>(p.inputs) + row * p.inputs_stride + block * p.dim;
  const E4m3* const weight = static_cast<const E4m3*>(p.weight) + channel * 3 * p.dim;
  double total = 0;
  for (int64_t k = 0; k < 3 * p.dim; ++k) {
    total += static_cast<double>(static_cast<float>(x[k]) * static_cast<float>(weight[k]));
  }
  return static_cast<float>(total);
}

float bias8(const GatedProduct8& p, int64_t channel) {
  return p.bias ? static_cast<float>(static_cast<const State*>(p.bias)[channel]) : 0.f;
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

std::string gates8(const GatedProduct8& p, int, void*) {
  const std::string reason = shape_refusal(p, false);
  for (int64_t row = 0; reason.empty() && row < p.rows; ++row) {
    const State* const h = static_cast<const State*>(p.h) + row * p.state_stride;
    const float image = p.row_scale[row];
    for (int64_t j = 0; j < p.dim; ++j) {
      const float update = ScaledUpdate{}(sum8(p, row, 0, j), p.weight_scale[j], bias8(p, j), image);
      static_cast<State*>(p.z)[row * p.state_stride + j] = update;
    }
    for (int64_t j = 0; j < p.dim; ++j) {
      const int64_t r = p.dim + j;
      const float reset = ScaledReset{}(sum8(p, row, 0, r), p.weight_scale[r], bias8(p, r), image, h[j]);
      static_cast<E4m3*>(p.inputs)[row * p.inputs_stride + 3 * p.dim + j] =
          E4m3(std::isnan(reset) ? reset : std::clamp(reset, -448.f, 448.f));
    }
  }
  return reason;
}

std::string blend8(const GatedProduct8& p, int, void*) {
  const std::string reason = shape_refusal(p, true);
  for (int64_t row = 0; reason.empty() && row < p.rows; ++row) {
    const int64_t at = row * p.state_stride;
    for (int64_t j = 0; j < p.dim; ++j) {
      static_cast<State*>(p.out)[at + j] = ScaledBlend<ExactTanh>{}(
          sum8(p, row, 1, j), p.weight_scale[j], bias8(p, j), p.row_scale[row], static_cast<const State*>(p.h)[at + j],
          static_cast<const State*>(p.z)[at + j]);
    }
  }
  return reason;
}

}  // namespace ssgrl::cuda
