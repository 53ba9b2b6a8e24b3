// label_scores on the CPU (eq. 10): f_o as two products into one buffer, then tanh and the class's own row in one loop.
//
// Where h0 = attention features comes with its factors and L is small, the h0 half of f_o runs on the L rows of the
// features (identity 4): h0 W_b^T = attention (features W_b^T). Saved for the backward: the output before its tanh and
// features W_b^T.

#include "tensors.h"

namespace ssgrl {
namespace {

constexpr const char* kForward = "label_scores";
constexpr const char* kBackward = "label_scores_backward";

struct Sizes {
  int64_t images, classes, dim, outputs, locations;
  bool low_rank;
};

Sizes check(
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
  STD_TORCH_CHECK(attention.has_value() == features.has_value(), op, ": attention and features come together");
  if (features) {
    check_dims(op, "features", *features, 3);
    n.locations = features->size(1);
    check_shape(op, "features", *features, {n.images, n.locations, n.dim});
    check_shape(op, "attention", *attention, {n.images, n.classes, n.locations});
    check_like(op, "features", *features, h_T);
    n.low_rank = low_rank_pays(n.classes, n.locations, n.dim);
  }
  return n;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> forward(
    const Sizes& n, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const std::optional<Tensor>& bias_o,
    const Tensor& weight_c, const std::optional<Tensor>& bias_c, bool save) {
  const int64_t count = n.images * n.classes;
  const Tensor output = empty_like(h_T, {count, n.outputs});
  product(output, reshaped(h_T, {count, n.dim}), transposed(columns(weight_o, 0, n.dim)));
  const Tensor second = columns(weight_o, n.dim, 2 * n.dim);
  Tensor on_locations = nothing(h_T);
  if (n.low_rank) {
    on_locations = empty_like(h_T, {n.images * n.locations, n.outputs});
    product(on_locations, reshaped(*features, {n.images * n.locations, n.dim}), transposed(second));
    image_products(
        reshaped(output, {n.images, n.classes, n.outputs}), cast(*attention, h_T.scalar_type()),
        reshaped(on_locations, {n.images, n.locations, n.outputs}), true);
  } else {
    add_product(output, reshaped(h0, {count, n.dim}), transposed(second));
  }
  const auto& loop = loops<T>();
  const Tensor logits = empty_like(h_T, {n.images, n.classes}), weight = dense(weight_c);
  const auto bias = optional_dense(bias_o), offset = optional_dense(bias_c);
  for_rows(count, n.outputs, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t label = row % n.classes;
      Compute<T> sum = loop.states.score(
          data<T>(output) + row * n.outputs, optional_data<T>(bias), data<T>(weight) + label * n.outputs, n.outputs);
      if (offset) {
        Compute<T> shift;
        loop.states.widen(optional_data<T>(offset) + label, 1, &shift);
        sum += shift;
      }
      loop.states.narrow(&sum, 1, data<T>(logits) + row);
    }
  });
  return {logits, save ? output : nothing(h_T), save ? on_locations : nothing(h_T)};
}

struct Gradients {
  Tensor h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c;
};

// d_output [B C, O] from the logits' gradient, and with it the gradients of weight_c and bias_c. A task owns whole
// classes.
template <class T>
Tensor classifier_backward(
    const Sizes& n, const Tensor& grad, const Tensor& output, const Tensor& weight_c, Gradients& out) {
  using A = Compute<T>;
  const auto& loop = loops<T>();
  const Tensor d_output = empty_like(output, {n.images * n.classes, n.outputs}), weight = dense(weight_c);
  out.weight_c = empty_like(weight_c, {n.classes, n.outputs});
  out.bias_c = empty_like(weight_c, {n.classes});
  torch::stable::parallel_for(0, n.classes, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> sum(n.outputs);
    for (int64_t label = begin; label < end; ++label) {
      std::fill(sum.begin(), sum.end(), A(0));
      A total = 0;
      for (int64_t image = 0; image < n.images; ++image) {
        const int64_t row = image * n.classes + label;
        A g;
        loop.states.widen(data<T>(grad) + row, 1, &g);
        total += g;
        loop.states.score_backward(
            g, data<T>(output) + row * n.outputs, data<T>(weight) + label * n.outputs, n.outputs,
            data<T>(d_output) + row * n.outputs, sum.data());
      }
      loop.states.narrow(sum.data(), n.outputs, data<T>(out.weight_c) + label * n.outputs);
      loop.states.narrow(&total, 1, data<T>(out.bias_c) + label);
    }
  });
  out.bias_o = empty_like(weight_c, {n.outputs});
  std::vector<double> scratch(n.outputs);
  loop.states.column_sums(
      data<T>(d_output), n.images * n.classes, n.outputs, n.outputs, data<T>(out.bias_o), scratch.data());
  return d_output;
}

template <class T>
Gradients backward(
    const Sizes& n, const Tensor& grad, const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const Tensor& weight_o, const Tensor& weight_c, const TensorList& saved,
    bool need_features) {
  const int64_t count = n.images * n.classes;
  Gradients out{nothing(h_T), nothing(h_T), nothing(h_T), nothing(h_T),
                nothing(h_T), nothing(h_T), nothing(h_T), nothing(h_T)};
  const Tensor d_output = classifier_backward<T>(n, grad, saved[0], weight_c, out);
  const Tensor first = columns(weight_o, 0, n.dim), second = columns(weight_o, n.dim, 2 * n.dim);
  out.h_T = empty_like(h_T, {n.images, n.classes, n.dim});
  product(reshaped(out.h_T, {count, n.dim}), d_output, first);
  out.weight_o = empty_like(weight_o, {n.outputs, 2 * n.dim});
  product(columns(out.weight_o, 0, n.dim), transposed(d_output), reshaped(h_T, {count, n.dim}));
  const Tensor d_second = columns(out.weight_o, n.dim, 2 * n.dim);
  const Tensor by_image = reshaped(d_output, {n.images, n.classes, n.outputs});
  if (!n.low_rank) {
    Tensor d_h0 = empty_like(h0, {n.images, n.classes, n.dim});
    product(d_second, transposed(d_output), reshaped(h0, {count, n.dim}));
    product(reshaped(d_h0, {count, n.dim}), d_output, second);
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
    image_products(reshaped(d_locations, {n.images, n.locations, n.outputs}), transposed(factor), by_image);
    image_products(d_attention, by_image, transposed(reshaped(saved[1], {n.images, n.locations, n.outputs})));
    product(d_second, transposed(d_locations), reshaped(*features, {flat, n.dim}));
    if (need_features) {
      product(reshaped(out.features, {flat, n.dim}), d_locations, second);
    }
  } else {
    add_factor_gradients(out.h0, factor, *features, d_attention, out.features, need_features, false);
    out.h0 = nothing(h_T);
  }
  out.attention = cast(d_attention, attention->scalar_type());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> label_scores(
    const Tensor& h_T, const Tensor& h0, const std::optional<Tensor>& attention, const std::optional<Tensor>& features,
    const Tensor& weight_o, const std::optional<Tensor>& bias_o, const Tensor& weight_c,
    const std::optional<Tensor>& bias_c, bool save) {
  const Sizes n = check(kForward, h_T, h0, attention, features, weight_o, weight_c);
  if (bias_o) {
    check_shape(kForward, "bias_o", *bias_o, {n.outputs});
    check_like(kForward, "bias_o", *bias_o, h_T);
  }
  if (bias_c) {
    check_shape(kForward, "bias_c", *bias_c, {n.classes});
    check_like(kForward, "bias_c", *bias_c, h_T);
  }
  return dispatch(kForward, h_T, [&](auto type) {
    using T = decltype(type);
    return forward<T>(n, h_T, h0, attention, features, weight_o, bias_o, weight_c, bias_c, save);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> label_scores_backward(
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
  const Gradients out = dispatch(kBackward, h_T, [&](auto type) {
    using T = decltype(type);
    return backward<T>(n, dense(grad), h_T, h0, attention, features, weight_o, weight_c, saved, need_features);
  });
  return {out.h_T, out.h0, out.attention, out.features, out.weight_o, out.bias_o, out.weight_c, out.bias_c};
}

}  // namespace
}  // namespace ssgrl

STABLE_TORCH_LIBRARY_IMPL(ssgrl_fast, CPU, m) {
  m.impl("label_scores", TORCH_BOX(&ssgrl::label_scores));
  m.impl("label_scores_backward", TORCH_BOX(&ssgrl::label_scores_backward));
}
