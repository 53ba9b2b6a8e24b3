// label_scores for inference in bfloat16 and float16, with tanh and the class-specific rows in the epilogue of the
// product of f_o (classifier_product.h): the output of f_o [B C, O] is not stored.
#pragma once

#include "classifier_product.h"
#include "cuda/common/stream.h"
#include "cuda/device.h"
#include "operators/label_scores.h"

namespace ssgrl::cuda {

// logits [B, C]; nullopt where the product cannot be used: other dtypes and devices, D or O not a multiple of 8.
template <class T>
std::optional<Tensor> fused_logits(
    const label_scores::Sizes& n, const Tensor& h_T, const Tensor& h0, const Tensor& weight_o,
    const std::optional<Tensor>& bias_o, const Tensor& weight_c, const std::optional<Tensor>& bias_c) {
  if constexpr (sizeof(T) == 2) {
    const int64_t count = n.images * n.classes;
    if (count == 0) {
      return std::nullopt;
    }
    const Tensor state = dense(h_T), start = dense(h0), o = dense(weight_o), c = dense(weight_c);
    const auto bias = optional_dense(bias_o), offset = optional_dense(bias_c);
    ClassifierProduct product{
        std::is_same_v<T, c10::BFloat16> ? HalfType::bfloat16 : HalfType::float16,
        count,
        n.dim,
        n.outputs,
        n.classes,
        state.data_ptr(),
        start.data_ptr(),
        o.data_ptr(),
        optional_data<T>(bias),
        c.data_ptr(),
        nullptr};
    const int device = h_T.get_device_index();
    int64_t parts = 0;
    if (!classifier_refusal(product, device, &parts).empty()) {
      return std::nullopt;
    }
    const Tensor partial = torch::stable::new_empty(h_T, {parts, count}, ScalarType::Float);
    product.partial = data<float>(partial);
    check_done(label_scores::kForward, classifier_product(product, device, current_stream(device)));
    const Tensor logits = empty_like(h_T, {n.images, n.classes});
    sum_class_logits(product.partial, optional_data<T>(offset), data<T>(logits), parts, count, n.classes);
    return logits;
  } else {
    return std::nullopt;
  }
}

// label_scores of csrc/schemas.cpp on CUDA.
inline std::tuple<Tensor, Tensor, Tensor> label_scores_forward(
    const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention, const std::optional<Tensor>& features,
    const Tensor& weight_o, const std::optional<Tensor>& bias_o, const Tensor& weight_c,
    const std::optional<Tensor>& bias_c, bool save) {
  const auto n = label_scores::check_forward(h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c);
  if (!save) {
    const std::optional<Tensor> logits = Cuda::dispatch(label_scores::kForward, h_T, [&](auto type) {
      return fused_logits<decltype(type)>(n, h_T, h0, weight_o, bias_o, weight_c, bias_c);
    });
    if (logits) {
      return {*logits, nothing(h_T), nothing(h_T)};
    }
  }
  return label_scores::checked_forward<Cuda>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save);
}

}  // namespace ssgrl::cuda
