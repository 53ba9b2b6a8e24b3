// label_scores for inference in bfloat16 and float16, with tanh and the class-specific rows in the epilogue of the
// product of f_o (classifier_product.h): the output of f_o [B C, O] is not stored.
//
// Where h0 W_b^T is cheaper on the L rows of the features (identity 4), it is computed first, as in the general form,
// and the epilogue adds it; otherwise h0 and W_b are a second pair of operands of the same product.
#pragma once

#include "classifier_product.h"
#include "cuda/common/stream.h"
#include "cuda/device.h"
#include "operators/label_scores.h"

namespace ssgrl::cuda {

// logits [B, C]; nullopt where the product cannot be used: other dtypes and devices, D or O not a multiple of 8.
template <class T>
std::optional<Tensor> fused_logits(
    const label_scores::Sizes& n, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const std::optional<Tensor>& bias_o,
    const Tensor& weight_c, const std::optional<Tensor>& bias_c) {
  if constexpr (sizeof(T) == 2) {
    const int64_t count = n.images * n.classes;
    if (count == 0) {
      return std::nullopt;
    }
    const Tensor state = dense(h_T), start = n.low_rank ? h0 : dense(h0), o = dense(weight_o), c = dense(weight_c);
    const auto bias = optional_dense(bias_o), offset = optional_dense(bias_c);
    const Tensor second = n.low_rank ? empty_like(h_T, {count, n.outputs}) : nothing(h_T);
    ClassifierProduct product{
        std::is_same_v<T, c10::BFloat16> ? HalfType::bfloat16 : HalfType::float16,
        count,
        n.dim,
        n.outputs,
        n.classes,
        state.data_ptr(),
        n.low_rank ? nullptr : start.data_ptr(),
        n.low_rank ? second.data_ptr() : nullptr,
        o.data_ptr(),
        optional_data<T>(bias),
        c.data_ptr(),
        nullptr};
    const int device = h_T.get_device_index();
    int64_t parts = 0;
    if (!classifier_refusal(product, device, &parts).empty()) {
      return std::nullopt;
    }
    if (n.low_rank) {
      label_scores::low_rank_half<Cuda>(n, *attention, *features, columns(o, n.dim, 2 * n.dim), second, false);
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
      return fused_logits<decltype(type)>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c);
    });
    if (logits) {
      return {*logits, nothing(h_T), nothing(h_T)};
    }
  }
  return label_scores::checked_forward<Cuda>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save);
}

}  // namespace ssgrl::cuda
