// label_scores (eq. 10): f_o of [h_T, h0], then tanh and the product with the row of the class in one loop. The halves
// of f_o can cancel: in the reduced dtypes f_o is one product with its bias, rounded once from the product's
// accumulators; in float32 and float64 it is two products into one buffer, which needs no copy of the states, unless
// the device prefers whole matrices.
//
// In float32 and float64, if h0 = attention features is passed with its factors and L is small, the h0 half of f_o is
// computed on the L rows of the features (identity 4): h0 W_b^T = attention (features W_b^T). Saved for the backward:
// the output before tanh, and features W_b^T.

#pragma once

#include <array>

#include "low_rank.h"

namespace ssgrl {
namespace label_scores {

constexpr const char* kForward = "label_scores";
constexpr const char* kBackward = "label_scores_backward";

struct Sizes {
  int64_t images, classes, dim, outputs, locations;
  bool exact, low_rank;
};

inline Sizes check(
    const char* op, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const Tensor& weight_c) {
  check_dims(op, "h_T", h_T, 3);
  check_dims(op, "weight_o", weight_o, 2);
  Sizes n{h_T.size(0), h_T.size(1), h_T.size(2), weight_o.size(0), 0, false};
  check_shape(op, "h0", h0, {n.images, n.classes, n.dim});
  check_shape(op, "weight_o", weight_o, {n.outputs, 2 * n.dim});
  check_shape(op, "weight_c", weight_c, {n.classes, n.outputs});
  for (const Tensor* tensor : {&h0, &weight_o, &weight_c}) {
    check_like(op, "every tensor", *tensor, h_T);
  }
  n.locations = check_factors(op, attention, features, h_T);
  n.exact = h_T.scalar_type() == ScalarType::Float || h_T.scalar_type() == ScalarType::Double;
  n.low_rank = features && n.exact && low_rank_pays(n.classes, n.locations, n.dim);
  return n;
}

inline Sizes check_forward(
    const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention, const std::optional<Tensor>& features,
    const Tensor& weight_o, const std::optional<Tensor>& bias_o, const Tensor& weight_c,
    const std::optional<Tensor>& bias_c) {
  const Sizes n = check(kForward, h_T, h0, attention, features, weight_o, weight_c);
  if (bias_o) {
    check_shape(kForward, "bias_o", *bias_o, {n.outputs});
    check_like(kForward, "bias_o", *bias_o, h_T);
  }
  if (bias_c) {
    check_shape(kForward, "bias_c", *bias_c, {n.classes});
    check_like(kForward, "bias_c", *bias_c, h_T);
  }
  return n;
}

// The tensor without its history: an exported program calls the operator where autograd records, and copy_ would too.
inline Tensor detached(const Tensor& tensor) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(tensor)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out [B C, O] += h0 W_b^T by identity 4; `second` is W_b. Returns features W_b^T [B L, O].
template <class Device>
Tensor low_rank_half(
    const Sizes& n, const Tensor& attention, const Tensor& features, const Tensor& second, const Tensor& out) {
  const Tensor on_locations = empty_like(out, {n.images * n.locations, n.outputs});
  Device::product(on_locations, reshaped(features, {n.images * n.locations, n.dim}), transposed(second));
  Device::image_products(
      reshaped(out, {n.images, n.classes, n.outputs}), cast(attention, out.scalar_type()),
      reshaped(on_locations, {n.images, n.locations, n.outputs}), true);
  return on_locations;
}

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor> typed_forward(
    const Sizes& n, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const std::optional<Tensor>& bias_o,
    const Tensor& weight_c, const std::optional<Tensor>& bias_c, bool save) {
  const int64_t count = n.images * n.classes;
  const Tensor output = empty_like(h_T, {count, n.outputs}), state = reshaped(h_T, {count, n.dim});
  Tensor on_locations = nothing(h_T);
  std::optional<Tensor> bias;  // that the loop over the rows adds
  if (n.exact && (save || !Device::prefers_whole(h_T.scalar_type(), count, 2 * n.dim, n.outputs))) {
    const Tensor second = columns(weight_o, n.dim, 2 * n.dim);
    Device::product(output, state, transposed(columns(weight_o, 0, n.dim)));
    if (n.low_rank) {
      on_locations = low_rank_half<Device>(n, *attention, *features, second, output);
    } else {
      Device::product(output, reshaped(h0, {count, n.dim}), transposed(second), true);
    }
    bias = optional_dense(bias_o);
  } else {
    const Tensor both = empty_like(h_T, {count, 2 * n.dim});
    Tensor first = columns(both, 0, n.dim), second = columns(both, n.dim, 2 * n.dim);
    torch::stable::copy_(first, detached(state));
    torch::stable::copy_(second, detached(reshaped(h0, {count, n.dim})));
    Device::affine(output, both, transposed(weight_o), bias_o);
  }
  // tanh and the class-specific rows
  const Tensor logits = empty_like(h_T, {n.images, n.classes}), weight = dense(weight_c);
  const auto offset = optional_dense(bias_c);
  Device::class_logits(
      data<T>(output), optional_data<T>(bias), data<T>(weight), optional_data<T>(offset), data<T>(logits), count,
      n.classes, n.outputs);
  return {logits, save ? output : nothing(h_T), save ? on_locations : nothing(h_T)};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> checked_forward(
    const Sizes& n, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const std::optional<Tensor>& bias_o,
    const Tensor& weight_c, const std::optional<Tensor>& bias_c, bool save) {
  return Device::dispatch(kForward, h_T, [&](auto type) {
    using T = decltype(type);
    return typed_forward<Device, T>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save);
  });
}

struct Gradients {
  Tensor h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c;
};

// d_output [B C, O] from the gradient of the logits; also writes the gradients of weight_c and of both biases to `out`.
template <class Device, class T>
Tensor class_rows_backward(
    const Sizes& n, const Tensor& grad, const Tensor& output, const Tensor& weight_c, Gradients& out) {
  const int64_t count = n.images * n.classes;
  const Tensor d_output = empty_like(output, {count, n.outputs}), weight = dense(weight_c);
  out.weight_c = empty_like(weight_c, {n.classes, n.outputs});
  out.bias_c = empty_like(weight_c, {n.classes});
  out.bias_o = empty_like(weight_c, {n.outputs});
  Device::class_logits_backward(
      data<T>(grad), data<T>(output), data<T>(weight), data<T>(d_output), data<T>(out.weight_c), data<T>(out.bias_c),
      n.images, n.classes, n.outputs);
  Device::column_sums(data<T>(d_output), count, n.outputs, n.outputs, data<T>(out.bias_o));
  return d_output;
}

template <class Device, class T>
Gradients typed_backward(
    const Sizes& n, const Tensor& grad, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const Tensor& weight_c, const TensorList& saved,
    bool need_features) {
  const int64_t count = n.images * n.classes;
  Gradients out{nothing(h_T), nothing(h_T), nothing(h_T), nothing(h_T),
                nothing(h_T), nothing(h_T), nothing(h_T), nothing(h_T)};
  // through the class rows and tanh, then through the h_T half of f_o
  const Tensor d_output = class_rows_backward<Device, T>(n, grad, saved[0], weight_c, out);
  const Tensor first = columns(weight_o, 0, n.dim), second = columns(weight_o, n.dim, 2 * n.dim);
  out.h_T = empty_like(h_T, {n.images, n.classes, n.dim});
  Device::product(reshaped(out.h_T, {count, n.dim}), d_output, first);
  out.weight_o = empty_like(weight_o, {n.outputs, 2 * n.dim});
  Device::product(columns(out.weight_o, 0, n.dim), transposed(d_output), reshaped(h_T, {count, n.dim}));
  // the h0 half of f_o, full-rank or on the L rows of the features
  const Tensor d_second = columns(out.weight_o, n.dim, 2 * n.dim);
  const Tensor by_image = reshaped(d_output, {n.images, n.classes, n.outputs});
  if (!n.low_rank) {
    Tensor d_h0 = empty_like(h0, {n.images, n.classes, n.dim});
    Device::product(d_second, transposed(d_output), reshaped(h0, {count, n.dim}));
    Device::product(reshaped(d_h0, {count, n.dim}), d_output, second);
    out.h0 = d_h0;
  }
  if (!attention) {
    return out;
  }
  const ScalarType stored = h_T.scalar_type();
  const Tensor factor = cast(*attention, stored);
  const Tensor d_attention = empty_like(h_T, {n.images, n.classes, n.locations});
  if (need_features) {
    out.features = empty_like(h_T, {n.images, n.locations, n.dim});
  }
  if (n.low_rank) {
    const int64_t flat = n.images * n.locations;
    const Tensor d_locations = empty_like(h_T, {flat, n.outputs});
    Device::image_products(reshaped(d_locations, {n.images, n.locations, n.outputs}), transposed(factor), by_image);
    Device::image_products(d_attention, by_image, transposed(reshaped(saved[1], {n.images, n.locations, n.outputs})));
    Device::product(d_second, transposed(d_locations), reshaped(*features, {flat, n.dim}));
    if (need_features) {
      Device::product(reshaped(out.features, {flat, n.dim}), d_locations, second);
    }
  } else {
    add_factor_gradients<Device>(out.h0, factor, *features, d_attention, out.features, need_features, false);
    out.h0 = nothing(h_T);
  }
  out.attention = cast(d_attention, attention->scalar_type());
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention, const std::optional<Tensor>& features,
    const Tensor& weight_o, const std::optional<Tensor>& bias_o, const Tensor& weight_c,
    const std::optional<Tensor>& bias_c, bool save) {
  const Sizes n = check_forward(h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c);
  return checked_forward<Device>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const Tensor& weight_c, const TensorList& saved,
    bool need_features) {
  const Sizes n = check(kBackward, h_T, h0, attention, features, weight_o, weight_c);
  check_shape(kBackward, "grad", grad, {n.images, n.classes});
  check_like(kBackward, "grad", grad, h_T);
  STD_TORCH_CHECK(saved.size() == 2, kBackward, ": saved must hold 2 tensors, got ", saved.size());
  check_shape(kBackward, "saved[0]", saved[0], {n.images * n.classes, n.outputs});
  if (n.low_rank) {
    check_shape(kBackward, "saved[1]", saved[1], {n.images * n.locations, n.outputs});
  }
  const Gradients out = Device::dispatch(kBackward, h_T, [&](auto type) {
    using T = decltype(type);
    return typed_backward<Device, T>(
        n, dense(grad), h_T, h0, attention, features, weight_o, weight_c, saved, need_features);
  });
  return {out.h_T, out.h0, out.attention, out.features, out.weight_o, out.bias_o, out.weight_c, out.bias_c};
}

}  // namespace label_scores
}  // namespace ssgrl
