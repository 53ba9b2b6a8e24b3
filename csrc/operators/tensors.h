// Helpers of the operators on every device: views, casts, and the condition of identity 4.
//
// Each operator is one template over a Device (csrc/cpu/device.h, csrc/cuda/device.h), which provides matrix products
// by PyTorch's BLAS and the elementwise loops over whole matrices.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "compute.h"

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
// A matrix [B each, N] as [B, each, N], without a copy for any row stride.
inline Tensor by_image(const Tensor& matrix, int64_t each) {
  return reshaped(matrix, {each ? matrix.size(0) / each : 0, each, matrix.size(1)});
}
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}
inline Tensor empty_like(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes);
}
inline Tensor nothing(const Tensor& like) { return empty_like(like, {0}); }
inline Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return dense(tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype));
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

// Gradients of the factors of h0 from d_h0 [B, C, D]: d_attention (+)= d_h0 F^T, d_features (+)= a^T d_h0.
template <class Device>
void add_factor_gradients(
    const Tensor& d_h0, const Tensor& attention, const Tensor& features, const Tensor& d_attention,
    const Tensor& d_features, bool need_features, bool accumulate) {
  Device::image_products(d_attention, d_h0, transposed(features), accumulate);
  if (need_features) {
    Device::image_products(d_features, transposed(attention), d_h0, accumulate);
  }
}

}  // namespace ssgrl
