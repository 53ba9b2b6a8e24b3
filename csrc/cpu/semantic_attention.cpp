// semantic_attention on the CPU (eq. 3-6): score, softmax and pooling without a tensor of size B L C K or B L C D.
//
// Forward: one row of attention for each image and class, tanh and sum over K in one loop, softmax in place, then the
// pooling as one product an image (identity 2). Backward: tanh and its slope once more, for u, v and p together, each
// task owning a block of joint channels, so that no sum is shared between threads and the result does not depend on
// their number.

#include "tensors.h"

namespace ssgrl {
namespace {

constexpr const char* kForward = "semantic_attention";
constexpr const char* kBackward = "semantic_attention_backward";

struct Sizes {
  int64_t images, locations, classes, joint, dim;
};

Sizes check(const char* op, const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
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

template <class T>
std::tuple<Tensor, Tensor> forward(
    const Sizes& n, const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
  using A = Compute<T>;
  const auto& loop = loops<T>();
  const Tensor wide_u = cast(u, compute_type<T>), wide_v = cast(v, compute_type<T>), wide_p = dense(p);
  const Tensor attention = empty_like(p, {n.images, n.classes, n.locations});
  for_rows(n.images * n.classes, n.locations * n.joint, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / n.classes, label = row % n.classes;
      loop.scores.attention_row(
          data<A>(wide_u) + image * n.locations * n.joint, data<A>(wide_v) + label * n.joint, data<A>(wide_p),
          n.locations, n.joint, data<A>(attention) + row * n.locations);
    }
  });
  const Tensor pooled = empty_like(features, {n.images, n.classes, n.dim});
  image_products(pooled, cast(attention, features.scalar_type()), features);
  return {pooled, attention};
}

// d_scores [B, C, L]: from the gradients of pooled and attention through the pooling and the softmax.
template <class T>
Tensor score_gradient(
    const Sizes& n, const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_attention,
    const Tensor& features, const Tensor& attention) {
  using A = Compute<T>;
  const auto& loop = loops<T>();
  Tensor total = empty_like(attention, {n.images, n.classes, n.locations});
  if (grad_pooled) {
    const Tensor through = empty_like(features, {n.images, n.classes, n.locations});
    image_products(through, *grad_pooled, transposed(features));
    torch::stable::copy_(total, through);
  }
  const std::optional<Tensor> extra = optional_dense(grad_attention);
  for_rows(n.images * n.classes, n.locations, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      A* target = data<A>(total) + row * n.locations;
      for (int64_t l = 0; l < n.locations; ++l) {
        const A direct = extra ? optional_data<A>(extra)[row * n.locations + l] : A(0);
        target[l] = direct + (grad_pooled ? target[l] : A(0));
      }
      loop.scores.softmax_backward_row(data<A>(attention) + row * n.locations, n.locations, target);
    }
  });
  return total;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Sizes& n, const std::optional<Tensor>& grad_pooled, const std::optional<Tensor>& grad_attention,
    const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features, const Tensor& attention,
    bool need_features) {
  using A = Compute<T>;
  const auto& loop = loops<T>();
  const ScalarType wide = compute_type<T>, stored = features.scalar_type();
  const Tensor d_scores = score_gradient<T>(n, grad_pooled, grad_attention, features, attention);
  const Tensor wide_u = cast(u, wide), wide_v = cast(v, wide), wide_p = dense(p);
  const Tensor d_u = empty_like(p, {n.images, n.locations, n.joint});
  const Tensor d_v = empty_like(p, {n.classes, n.joint}), d_p = empty_like(p, {n.joint});
  const int64_t blocks = (n.joint + kJointBlock - 1) / kJointBlock;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    std::vector<A> scratch(2 * n.classes * kJointBlock);
    for (int64_t block = first; block < last; ++block) {
      loop.scores.joint_backward(
          data<A>(wide_u), data<A>(wide_v), data<A>(wide_p), data<A>(d_scores), n.images, n.locations, n.classes,
          n.joint, block * kJointBlock, std::min(n.joint, (block + 1) * kJointBlock), data<A>(d_u), data<A>(d_v),
          data<A>(d_p), scratch.data());
    }
  });
  Tensor d_features = nothing(features);
  if (need_features) {
    d_features = empty_like(features, {n.images, n.locations, n.dim});
    if (grad_pooled) {
      image_products(d_features, transposed(cast(attention, stored)), *grad_pooled);
    } else {
      torch::stable::zero_(d_features);
    }
  }
  return {cast(d_u, stored), cast(d_v, stored), d_p, d_features};
}

std::tuple<Tensor, Tensor> semantic_attention(
    const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& features) {
  const Sizes n = check(kForward, u, v, p, features);
  return dispatch(kForward, features, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(p.scalar_type() == compute_type<T>, kForward, ": p must be float32, or float64 beside float64");
    return forward<T>(n, u, v, p, features);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> semantic_attention_backward(
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
  return dispatch(kBackward, features, [&](auto type) {
    using T = decltype(type);
    STD_TORCH_CHECK(
        p.scalar_type() == compute_type<T> && attention.scalar_type() == compute_type<T>, kBackward,
        ": p and attention must be float32, or float64 beside float64");
    return backward<T>(n, grad_pooled, grad_attention, u, v, p, features, dense(attention), need_features);
  });
}

}  // namespace
}  // namespace ssgrl

STABLE_TORCH_LIBRARY_IMPL(ssgrl_fast, CPU, m) {
  m.impl("semantic_attention", TORCH_BOX(&ssgrl::semantic_attention));
  m.impl("semantic_attention_backward", TORCH_BOX(&ssgrl::semantic_attention_backward));
}
