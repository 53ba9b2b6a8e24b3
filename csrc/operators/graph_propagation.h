// graph_propagation (eq. 7-9). A step is: aggregation, product for z and r, gate loop, product for n, blend loop.
//
// Nothing is concatenated: the aggregation writes its columns of X, the gate loop writes r h beside them, and both
// products read column ranges of X (identity 3). The outputs of the products, the gates before sigma and tanh, are
// saved for the backward. gates.h describes how stored weights become products, low_rank.h the first step on L rows.

#pragma once

#include "low_rank.h"

namespace ssgrl {
namespace graph_propagation {

constexpr const char* kForward = "graph_propagation";
constexpr const char* kBackward = "graph_propagation_backward";

struct Sizes {
  int64_t images, classes, dim, locations, steps, rows;
  bool tied, low_rank;
};

inline Sizes check(
    const char* op, const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, int64_t steps,
    bool tied) {
  check_dims(op, "h0", h0, 3);
  STD_TORCH_CHECK(steps >= 1, op, ": steps must be at least 1, got ", steps);
  Sizes n{h0.size(0), h0.size(1), h0.size(2), 0, steps, h0.size(0) * h0.size(1), tied, false};
  check_shape(op, "adjacency", adjacency, {n.classes, n.classes});
  check_like(op, "adjacency", adjacency, h0);
  STD_TORCH_CHECK(
      weights.size() == 2 || weights.size() == 6, op, ": weights must be 2 or 6 tensors, got ", weights.size());
  const bool packed = weights.size() == 2;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_like(op, "a weight", weights[i], h0);
    if (packed) {
      check_shape(op, "a packed weight", weights[i], {i == 0 ? 2 * n.dim : n.dim, 3 * n.dim});
    } else {
      check_shape(op, "a weight block", weights[i], {n.dim, i % 2 == 0 ? 2 * n.dim : n.dim});
    }
  }
  STD_TORCH_CHECK(
      biases.empty() || biases.size() == (packed ? 2u : 3u), op, ": biases must be none or one a gate weight, got ",
      biases.size());
  for (size_t i = 0; i < biases.size(); ++i) {
    check_shape(op, "a bias", biases[i], {packed && i == 0 ? 2 * n.dim : n.dim});
    check_like(op, "a bias", biases[i], h0);
  }
  n.locations = check_factors(op, attention, features, h0);
  n.low_rank = features && low_rank_pays(n.classes, n.locations, n.dim);
  return n;
}

// Pointers to the z, r and n parts of the biases; null without biases.
template <class T>
struct Biases {
  TensorList kept;
  const T *z = nullptr, *r = nullptr, *n = nullptr;

  Biases(const TensorList& biases, int64_t dim) {
    for (const Tensor& bias : biases) {
      kept.push_back(dense(bias));
    }
    if (!kept.empty()) {
      z = data<T>(kept.front());
      r = kept.size() == 2 ? z + dim : data<T>(kept[1]);
      n = data<T>(kept.back());
    }
  }
};

inline Tensor unit(const Tensor& matrix, int64_t dim, int64_t begin, int64_t end) {
  return columns(matrix, begin * dim, end * dim);
}

// Columns 1 and 2 of X: A h and A^T h of each image (eq. 8).
template <class Device>
void aggregate(const Sizes& n, const Tensor& adjacency, const Tensor& x) {
  const Tensor h = by_image(unit(x, n.dim, kState, 1), n.classes);
  Device::image_products(by_image(unit(x, n.dim, 1, 2), n.classes), adjacency, h);
  Device::image_products(by_image(unit(x, n.dim, 2, 3), n.classes), transposed(adjacency), h);
}

// G (+)= X W^T for each block of the list; `low` is not null in the first step if identity 4 is used.
template <class Device>
void run_blocks(
    const Sizes& n, const std::vector<Block>& blocks, const Tensor& x, const Tensor& g, const LowRank* low,
    Products* products) {
  Written written;
  for (const Block& block : blocks) {
    const Tensor out = unit(g, n.dim, block.out, block.out + block.width);
    bool add = written.test_and_set(block.out, block.out + block.width);
    if (low) {
      low_rank_forward<Device>(block, *low, *products, out, add);
      if (block.last > kReset) {
        const Tensor last = weight_column(block, kReset, n.dim);
        Device::product(out, unit(x, n.dim, kReset, kReset + 1), transposed(last), add || block.first < kReset);
      }
    } else {
      Device::product(out, unit(x, n.dim, block.first, block.last), transposed(block.weight), add);
    }
    if (block.shared) {
      Tensor reset = unit(g, n.dim, 1, 2);
      torch::stable::copy_(reset, out);
      written.test_and_set(1, 2);
    }
  }
}

template <class Device, class T>
std::tuple<Tensor, Tensor, Tensor, Tensor> typed_forward(
    const Sizes& n, const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, bool save) {
  // buffers: all steps if save, else one that every step reuses
  const GatePlan plan = gate_plan(weights, n.tied, n.dim);
  const Biases<T> bias(biases, n.dim);
  const int64_t kept = save ? n.steps : 1;
  const Tensor states = empty_like(h0, {kept, n.rows, 4 * n.dim}), gates = empty_like(h0, {kept, n.rows, 3 * n.dim});
  const Tensor h_T = empty_like(h0, {n.images, n.classes, n.dim});
  Tensor buffer = nothing(h0);
  std::optional<LowRank> low;
  // identity 4: the first step on the L rows of the features
  if (n.low_rank) {
    low = low_rank<Device>(*attention, *features, adjacency);
    buffer = empty_like(h0, {products_rows(plan, n.images, n.locations), n.dim});
    Tensor unread = unit(slice(states, 0), n.dim, 1, 3);  // A h and A^T h are not used in this step
    torch::stable::zero_(unread);
  }
  Tensor first = unit(slice(states, 0), n.dim, kState, 1);
  torch::stable::copy_(first, reshaped(h0, {n.rows, n.dim}));
  const bool whole_candidate = !save && Device::prefers_whole(h0.scalar_type(), n.rows, 3 * n.dim, n.dim);
  // the steps (eq. 8-9); the last one writes h_T, the others the h of the next X
  for (int64_t t = 0; t < n.steps; ++t) {
    const Tensor x = slice(states, save ? t : 0), g = slice(gates, save ? t : 0);
    const LowRank* low_now = t == 0 && low ? &*low : nullptr;
    std::optional<Products> products;
    if (low_now) {
      products.emplace(buffer, *low_now);
    } else {
      aggregate<Device>(n, adjacency, x);
    }
    T *px = data<T>(x), *pg = data<T>(g);
    run_blocks<Device>(n, plan.gates, x, g, low_now, products ? &*products : nullptr);
    Device::gate(pg, bias.z, bias.r, px, n.rows, n.dim);
    if (low_now && whole_candidate) {
      aggregate<Device>(n, adjacency, x);
      low_now = nullptr;
    }
    run_blocks<Device>(n, plan.candidate, x, g, low_now, products ? &*products : nullptr);
    const bool last = t + 1 == n.steps;
    T* next = last ? data<T>(h_T) : data<T>(states) + (save ? (t + 1) * n.rows * 4 * n.dim : 0);
    const int64_t stride = last ? n.dim : 4 * n.dim;
    Device::blend(pg, bias.n, px, next, stride, n.rows, n.dim);
  }
  if (!save) {
    return {h_T, nothing(h0), nothing(h0), nothing(h0)};
  }
  return {h_T, states, gates, buffer};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> checked_forward(
    const Sizes& n, const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, bool save) {
  return Device::dispatch(kForward, h0, [&](auto type) {
    return typed_forward<Device, decltype(type)>(n, h0, adjacency, attention, features, weights, biases, save);
  });
}

struct Gradients {
  Tensor h0, attention, features;
  TensorList weights, biases;
};

// d_x (+)= d_g W for each block: the gradient of the columns of X from that of the columns of G.
template <class Device>
void run_blocks_backward(
    const Sizes& n, const std::vector<Block>& blocks, const Tensor& d_g, const Tensor& d_x, Written& written) {
  for (const Block& block : blocks) {
    const int64_t from = block.shared ? kShared : block.out;
    const bool add = written.test_and_set(block.first, block.last);
    Device::product(
        unit(d_x, n.dim, block.first, block.last), unit(d_g, n.dim, from, from + block.width), block.weight, add);
  }
}

// The backward of one step. d_x[:, :D] holds dL/dh_t on entry and dL/dh_(t-1) on return, without the contribution of
// the aggregation and, in a low-rank step, without that of the products.
template <class Device, class T>
void step_backward(
    const Sizes& n, const GatePlan& plan, const Tensor& x, const Tensor& g, const Tensor& d_g, const Tensor& d_x,
    bool low) {
  const T *px = data<T>(x), *pg = data<T>(g);
  T *pdg = data<T>(d_g), *pdx = data<T>(d_x);
  const int64_t wide = d_g.size(1);
  Device::blend_backward(pg, px, pdg, wide, pdx, n.rows, n.dim);
  Written written;
  written.test_and_set(kState, 1);
  if (low) {
    const Block& block = plan.candidate.back();
    const Tensor from = unit(d_g, n.dim, kCandidate, kCandidate + 1);
    Device::product(unit(d_x, n.dim, kReset, kReset + 1), from, weight_column(block, kReset, n.dim));
  } else {
    run_blocks_backward<Device>(n, plan.candidate, d_g, d_x, written);
  }
  Device::gate_backward(pg, px, pdg, wide, pdx, n.tied, n.rows, n.dim);
  if (!low) {
    run_blocks_backward<Device>(n, plan.gates, d_g, d_x, written);
  }
}

// d_x[:, :D] += A^T d_x[:, D:2D] + A d_x[:, 2D:3D] for each image
template <class Device>
void aggregate_backward(const Sizes& n, const Tensor& adjacency, const Tensor& d_x) {
  const Tensor d_h = by_image(unit(d_x, n.dim, kState, 1), n.classes);
  Device::image_products(d_h, transposed(adjacency), by_image(unit(d_x, n.dim, 1, 2), n.classes), true);
  Device::image_products(d_h, adjacency, by_image(unit(d_x, n.dim, 2, 3), n.classes), true);
}

// One product per block over the rows of all steps (identity 6); if the first step was low-rank, over all but the
// first. The column r h is full-rank in every step.
template <class Device>
void weight_gradients(
    const Sizes& n, const std::vector<Block>& blocks, const std::vector<Block>& d_blocks, const Tensor& states,
    const Tensor& d_gates) {
  const int64_t skipped = n.low_rank ? n.rows : 0, total = n.steps * n.rows, wide = d_gates.size(2);
  const Tensor x = reshaped(states, {total, 4 * n.dim}), d_g = reshaped(d_gates, {total, wide});
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const int64_t from = block.shared ? kShared : block.out;
    const Tensor d_out = unit(d_g, n.dim, from, from + block.width);
    const Tensor in = unit(x, n.dim, block.first, block.last);
    Device::product(d_blocks[i].weight, transposed(rows(d_out, skipped, total)), rows(in, skipped, total));
    if (n.low_rank && block.last > kReset) {
      const Tensor reset = unit(x, n.dim, kReset, kReset + 1);
      Device::product(
          weight_column(d_blocks[i], kReset, n.dim), transposed(rows(d_out, 0, n.rows)), rows(reset, 0, n.rows), true);
    }
  }
}

template <class Device, class T>
void bias_gradients(const Sizes& n, const Tensor& d_gates, const TensorList& d_biases) {
  int64_t at = 0;
  for (const Tensor& bias : d_biases) {
    Device::column_sums(data<T>(d_gates) + at, n.steps * n.rows, d_gates.size(2), bias.numel(), data<T>(bias));
    at += bias.numel();
  }
}

// The gradients of the factors of h0 and, if the first step was low-rank, its contribution to the weights.
template <class Device>
void factor_gradients(
    const Sizes& n, const GatePlan& plan, const GatePlan& d_plan, const Tensor& adjacency, const Tensor& attention,
    const Tensor& features, const Tensor& buffer, const Tensor& d_g, bool need_features, Gradients& out) {
  // h0 = attention features
  const Tensor factor = cast(attention, features.scalar_type());
  const Tensor d_attention = empty_like(features, {n.images, n.classes, n.locations});
  if (need_features) {
    out.features = empty_like(features, {n.images, n.locations, n.dim});
  }
  add_factor_gradients<Device>(out.h0, factor, features, d_attention, out.features, need_features, false);
  // the low-rank products of the first step, and the gradients of A a and A^T a back to a
  if (n.low_rank) {
    const LowRank low = low_rank<Device>(attention, features, adjacency);
    Products products(buffer, low);
    Tensor d_inward = torch::stable::new_zeros(features, {n.images, n.classes, n.locations});
    Tensor d_outward = torch::stable::new_zeros(features, {n.images, n.classes, n.locations});
    const Tensor d_factors[3] = {d_attention, d_inward, d_outward};
    for (const auto& [list, d_list] :
         {std::pair(&plan.gates, &d_plan.gates), std::pair(&plan.candidate, &d_plan.candidate)}) {
      for (size_t i = 0; i < list->size(); ++i) {
        const Block& block = (*list)[i];
        const int64_t from = block.shared ? kShared : block.out;
        low_rank_backward<Device>(
            block, low, products, unit(d_g, n.dim, from, from + block.width), (*d_list)[i].weight, d_factors,
            out.features, need_features);
      }
    }
    Device::image_products(d_attention, transposed(adjacency), d_inward, true);
    Device::image_products(d_attention, adjacency, d_outward, true);
  }
  out.attention = cast(d_attention, attention.scalar_type());
  out.h0 = nothing(features);
}

template <class Device, class T>
Gradients typed_backward(
    const Sizes& n, const Tensor& grad, const Tensor& h0, const Tensor& adjacency,
    const std::optional<Tensor>& attention, const std::optional<Tensor>& features, const TensorList& weights,
    const TensorList& biases, const TensorList& saved, bool need_features) {
  const Tensor &states = saved[0], &gates = saved[1];
  // outputs, in the layout of the weights
  Gradients out{nothing(h0), nothing(h0), nothing(h0), {}, {}};
  for (const Tensor& weight : weights) {
    out.weights.push_back(empty_like(weight, {weight.size(0), weight.size(1)}));
  }
  for (const Tensor& bias : biases) {
    out.biases.push_back(empty_like(bias, {bias.size(0)}));
  }
  const GatePlan plan = gate_plan(weights, n.tied, n.dim), d_plan = gate_plan(out.weights, n.tied, n.dim);
  if (n.tied) {  // U^r is not used, so its gradient is zero
    Tensor unused = weights.size() == 2 ? columns(rows(out.weights[0], n.dim, 2 * n.dim), 0, n.dim) : out.weights[3];
    torch::stable::zero_(unused);
  }
  // backward through the steps: d_h becomes dL/dh0, the gradients of the gates are kept for all steps
  const Tensor d_gates = empty_like(h0, {n.steps, n.rows, (n.tied ? 4 : 3) * n.dim});
  const Tensor d_x = empty_like(h0, {n.rows, 4 * n.dim});
  Tensor d_h = unit(d_x, n.dim, kState, 1);
  torch::stable::copy_(d_h, reshaped(grad, {n.rows, n.dim}));
  for (int64_t t = n.steps - 1; t >= 0; --t) {
    const bool low = t == 0 && n.low_rank;
    step_backward<Device, T>(n, plan, slice(states, t), slice(gates, t), slice(d_gates, t), d_x, low);
    if (!low) {
      aggregate_backward<Device>(n, adjacency, d_x);
    }
  }
  // gradients of weights, biases, and h0 or its factors
  weight_gradients<Device>(n, plan.gates, d_plan.gates, states, d_gates);
  weight_gradients<Device>(n, plan.candidate, d_plan.candidate, states, d_gates);
  bias_gradients<Device, T>(n, d_gates, out.biases);
  out.h0 = empty_like(h0, {n.images, n.classes, n.dim});
  Tensor flat = reshaped(out.h0, {n.rows, n.dim});
  torch::stable::copy_(flat, d_h);
  if (attention) {
    factor_gradients<Device>(
        n, plan, d_plan, adjacency, *attention, *features, saved[2], slice(d_gates, 0), need_features, out);
  }
  return out;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, int64_t steps,
    bool tied, bool save) {
  const Sizes n = check(kForward, h0, adjacency, attention, features, weights, biases, steps, tied);
  return checked_forward<Device>(n, h0, adjacency, attention, features, weights, biases, save);
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, TensorList, TensorList> backward(
    const Tensor& grad, const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, const TensorList& saved,
    int64_t steps, bool tied, bool need_features) {
  const Sizes n = check(kBackward, h0, adjacency, attention, features, weights, biases, steps, tied);
  check_shape(kBackward, "grad", grad, {n.images, n.classes, n.dim});
  check_like(kBackward, "grad", grad, h0);
  STD_TORCH_CHECK(saved.size() == 3, kBackward, ": saved must hold 3 tensors, got ", saved.size());
  check_shape(kBackward, "saved[0]", saved[0], {steps, n.rows, 4 * n.dim});
  check_shape(kBackward, "saved[1]", saved[1], {steps, n.rows, 3 * n.dim});
  if (n.low_rank) {
    const int64_t expected = products_rows(gate_plan(weights, tied, n.dim), n.images, n.locations);
    check_shape(kBackward, "saved[2]", saved[2], {expected, n.dim});
  }
  const Gradients out = Device::dispatch(kBackward, h0, [&](auto type) {
    return typed_backward<Device, decltype(type)>(
        n, grad, h0, adjacency, attention, features, weights, biases, saved, need_features);
  });
  return {out.h0, out.attention, out.features, out.weights, out.biases};
}

}  // namespace graph_propagation
}  // namespace ssgrl
