// semantic_attention (eq. 3-6): scores, softmax and pooling without a tensor of size B L C K or B L C D.
//
// Forward: the attention, then the pooling as one product per image (identity 2). Backward: through the pooling and the
// softmax to the scores; then tanh and its slope are evaluated again, once for the gradients of u, v and p together.
#pragma once

#include "tensors.h"

namespace ssgrl {
namespace semantic_attention {

constexpr const char* kForward = "semantic_attention";
constexpr const char* kBackward = "semantic_attention_backward";

struct Sizes {
  int64_t images, locations, classes, joint, dim;
};

inline Sizes check(const char* op, const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
  check_dims(op, "u", u, 3);
  check_dims(op, "v", v, 2);
  check_dims(op, "features", features, 3);
  const Sizes n{u.size(0), u.size(1), v.size(0), u.size(2), features.size(2)};
  check_shape(op, "v", v, {n.classes, n.joint});
  check_shape(op, "p", p, {n.joint});
  check_shape(op, "features", features, {n.images, n.locations, n.dim});
  check_like(op, "u", u, features);
  check_like(op, "v", v, features);
  return n;
}

template <class Device, class T>
std::tuple<Tensor, Tensor> typed_forward(
    const Sizes& n, const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
  const Tensor attention = empty_like(p, {n.images, n.classes, n.locations});
  Device::template attention<T>(u, v, p, attention);
  const Tensor pooled = empty_like(features, {n.images, n.classes, n.dim});
  Device::image_products(pooled, cast(attention, features.scalar_type()), features);
  return {pooled, attention};
}

// d_scores [B, C, L] from the gradients of pooled and attention, through the pooling and the softmax.
template <class Device, class T>
Tensor score_gradient(
    const Sizes& n, const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_attention,
    const Tensor& features, const Tensor& attention) {
  using A = Compute<T>;
  std::optional<Tensor> through;
  if (grad_pooled) {
    through = empty_like(features, {n.images, n.classes, n.locations});
    Device::image_products(*through, *grad_pooled, transposed(features));
  }
  const std::optional<Tensor> direct = optional_dense(grad_attention);
  const Tensor d_scores = empty_like(attention, {n.images, n.classes, n.locations});
  Device::softmax_backward(
      data<A>(attention), optional_data<A>(direct), optional_data<T>(through), data<A>(d_scores), n.images * n.classes,
      n.locations);
  return d_scores;
}

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> typed_backward(
    const Sizes& n, const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_attention,
    const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features, const Tensor& attention,
    bool need_features) {
  const Tensor d_scores = score_gradient<Device, T>(n, grad_pooled, grad_attention, features, attention);
  const auto [d_u, d_v, d_p] = Device::template attention_backward<T>(u, v, p, d_scores);
  Tensor d_features = nothing(features);
  if (need_features) {
    d_features = empty_like(features, {n.images, n.locations, n.dim});
    if (grad_pooled) {
      Device::image_products(d_features, transposed(cast(attention, features.scalar_type())), *grad_pooled);
    } else {
      torch::stable::zero_(d_features);
    }
  }
  return {d_u, d_v, d_p, d_features};
}

template <class Device>
std::tuple<Tensor, Tensor> forward(const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
  const Sizes n = check(kForward, u, v, p, features);
  return Device::dispatch(kForward, features, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(p.scalar_type() == compute_type<T>, kForward, ": p must be float32, or float64 beside float64");
    return typed_forward<Device, T>(n, u, v, p, features);
  });
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_attention, const Tensor& u,
    const Tensor& v, const Tensor& p, const Tensor& features, const Tensor& attention, bool need_features) {
  const Sizes n = check(kBackward, u, v, p, features);
  check_shape(kBackward, "attention", attention, {n.images, n.classes, n.locations});
  if (grad_pooled) {
    check_shape(kBackward, "grad_pooled", *grad_pooled, {n.images, n.classes, n.dim});
    check_like(kBackward, "grad_pooled", *grad_pooled, features);
  }
  if (grad_attention) {
    check_shape(kBackward, "grad_attention", *grad_attention, {n.images, n.classes, n.locations});
    check_like(kBackward, "grad_attention", *grad_attention, p);
  }
  return Device::dispatch(kBackward, features, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(
        p.scalar_type() == compute_type<T> && attention.scalar_type() == compute_type<T>, kBackward,
        ": p and attention must be float32, or float64 beside float64");
    return typed_backward<Device, T>(
        n, grad_pooled, grad_attention, u, v, p, features, dense(attention), need_features);
  });
}

}  // namespace semantic_attention
}  // namespace ssgrl
