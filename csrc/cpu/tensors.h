// What the CPU operators share: views, matrix products through PyTorch's BLAS, dtype dispatch, threads.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../checks.h"
#include "isa.h"

namespace ssgrl {

using torch::headeronly::ScalarType;
using TensorList = std::vector<Tensor>;

inline Tensor columns(const Tensor& matrix, int64_t begin, int64_t end) {
  Tensor whole = matrix;
  return torch::stable::narrow(whole, 1, begin, end - begin);
}
inline Tensor rows(const Tensor& matrix, int64_t begin, int64_t end) {
  Tensor whole = matrix;
  return torch::stable::narrow(whole, 0, begin, end - begin);
}
inline Tensor transposed(const Tensor& matrix) {
  return torch::stable::transpose(matrix, matrix.dim() - 2, matrix.dim() - 1);
}
inline Tensor slice(const Tensor& batch, int64_t index) { return torch::stable::select(batch, 0, index); }
inline Tensor reshaped(const Tensor& tensor, std::vector<int64_t> sizes) {
  return torch::stable::reshape(tensor, torch::headeronly::IntHeaderOnlyArrayRef(sizes));
}
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline Tensor empty_like(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}
inline Tensor empty_like(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}
inline Tensor nothing(const Tensor& like) { return empty_like(like, {0}); }
inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return dense(tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype));
}

// out = a b
inline void product(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}
// out += a b
inline void add_product(const Tensor& out, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1., 1.));
}
inline void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  accumulate ? add_product(out, a, b) : product(out, a, b);
}
// out[i] = a[i] b[i] for each image; a matrix serves all images
inline void image_products(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) {
  for (int64_t image = 0; image < out.size(0); ++image) {
    product(slice(out, image), a.dim() == 3 ? slice(a, image) : a, b.dim() == 3 ? slice(b, image) : b, accumulate);
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
const T* optional_data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
}
inline std::optional<Tensor> optional_dense(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional<Tensor>(dense(*tensor)) : std::nullopt;
}

template <class T>
constexpr ScalarType compute_type = std::is_same_v<Compute<T>, double> ? ScalarType::Double : ScalarType::Float;

// Calls body(T()) with the storage type of a tensor.
template <class Body>
auto dispatch(const char* op, const Tensor& tensor, Body body) {
  const ScalarType dtype = tensor.scalar_type();
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": the cpu kernels take cpu tensors");
  if (dtype == ScalarType::Float) {
    return body(float());
  }
  if (dtype == ScalarType::Double) {
    return body(double());
  }
  STD_TORCH_CHECK(dtype == ScalarType::BFloat16, op, ": the cpu kernels compute in float32, float64 and bfloat16");
  return body(BFloat16());
}

// Splits count rows among threads, each taking rows worth about 16,384 elements or more.
template <class Body>
void for_rows(int64_t count, int64_t row_elements, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_elements));
  torch::stable::parallel_for(0, count, grain, body);
}

// Identity 4: whether the products with h0 = attention features are cheaper on the L rows of the features.
inline bool low_rank_pays(int64_t classes, int64_t locations, int64_t dim) {
  return locations * (classes + dim) < classes * dim;
}

// Gradients of the factors of h0 from its own, d_h0 [B, C, D]: d_attention += d_h0 F^T, d_features += a^T d_h0.
inline void add_factor_gradients(
    const Tensor& d_h0, const Tensor& attention, const Tensor& features, const Tensor& d_attention,
    const Tensor& d_features, bool need_features, bool accumulate) {
  image_products(d_attention, d_h0, transposed(features), accumulate);
  if (need_features) {
    image_products(d_features, transposed(attention), d_h0, accumulate);
  }
}

}  // namespace ssgrl
