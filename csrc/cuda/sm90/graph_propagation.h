// graph_propagation for inference in bfloat16 and float16, with the gates in the epilogues of its products
// (gated_product.h): a step is the aggregation (aggregate.h) and two products. Of the gates only z is stored.
//
// The states are in a workspace [R, 5D] = [z | h | A h | A^T h | r h]. Where the first step is cheaper on the L rows of
// the features (identity 4), the general form (operators/graph_propagation.h) computes that step.
#pragma once

#include "cuda/common/stream.h"
#include "cuda/device.h"
#include "cuda/graph_propagation/aggregate.h"
#include "gated_product.h"
#include "operators/graph_propagation.h"

namespace ssgrl::cuda {

// Up to this number of classes one kernel computes A h and A^T h, limited by memory because it reads h once. With more
// classes the tensor cores are the limit (4 C^2 D operations per image for 6 C D bytes), and two products of cuBLAS,
// which use the instructions of compute capability 9.0, are better.
constexpr int64_t kAggregateClasses = 512;

// Columns 1 and 2 of X: A h and A^T h. D is a multiple of 8, rows are 16-byte aligned, the adjacency is dense.
template <class T>
void fused_aggregate(const graph_propagation::Sizes& n, const Tensor& adjacency, const Tensor& x) {
  if constexpr (sizeof(T) == 2) {
    if (n.classes <= kAggregateClasses) {
      T* const h = data<T>(x);
      aggregate(data<T>(adjacency), h, x.stride(0), h + n.dim, x.stride(0), n.images, n.classes, n.dim);
      return;
    }
  }
  graph_propagation::aggregate<Cuda>(n, adjacency, x);
}

// h_T [B, C, D]; nullopt where these products cannot be used: other dtypes and devices, D not a multiple of 8, weights
// in six blocks, a tied reset gate.
template <class T>
std::optional<Tensor> fused_propagation(
    const graph_propagation::Sizes& n, const Tensor& h0, const Tensor& adjacency,
    const std::optional<Tensor>& attention, const std::optional<Tensor>& features, const TensorList& weights,
    const TensorList& biases) {
  if (sizeof(T) != 2 || n.tied || weights.size() != 2 || n.rows == 0 || (n.low_rank && n.steps == 1)) {
    return std::nullopt;
  }
  const Tensor weight_zr = dense(weights[0]), weight_h = dense(weights[1]), graph = dense(adjacency);
  const graph_propagation::Biases<T> bias(biases, n.dim);
  const Tensor workspace = empty_like(h0, {n.rows, 5 * n.dim});
  const Tensor x = columns(workspace, n.dim, 5 * n.dim), h_T = empty_like(h0, {n.images, n.classes, n.dim});
  const auto type = std::is_same_v<T, c10::BFloat16> ? HalfType::bfloat16 : HalfType::float16;
  const GatedProduct gate{type, n.rows, n.dim, workspace.data_ptr(), 5 * n.dim, weight_zr.data_ptr(), bias.z};
  GatedProduct last{type,   n.rows,         n.dim, workspace.data_ptr(), 5 * n.dim, weight_h.data_ptr(),
                    bias.n, h_T.data_ptr(), n.dim};
  const int device = h0.get_device_index();
  if (!gates_refusal(gate, device).empty() || !blend_refusal(last, device).empty()) {
    return std::nullopt;
  }
  GatedProduct between = last;
  between.out = data<T>(workspace) + n.dim;
  between.out_stride = 5 * n.dim;

  Tensor start = h0;
  int64_t left = n.steps;
  if (n.low_rank) {
    graph_propagation::Sizes one = n;
    one.steps = 1;
    start = std::get<0>(
        graph_propagation::typed_forward<Cuda, T>(one, h0, adjacency, attention, features, weights, biases, false));
    --left;
  }
  Tensor h = columns(x, 0, n.dim);
  torch::stable::copy_(h, reshaped(start, {n.rows, n.dim}));
  void* const stream = current_stream(device);
  for (; left > 0; --left) {
    fused_aggregate<T>(n, graph, x);
    check_done(graph_propagation::kForward, gates(gate, device, stream));
    check_done(graph_propagation::kForward, blend(left > 1 ? between : last, device, stream));
  }
  return h_T;
}

// graph_propagation of csrc/schemas.cpp on CUDA.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> graph_propagation_forward(
    const Tensor& h0, const Tensor& adjacency, const std::optional<Tensor>& attention,
    const std::optional<Tensor>& features, const TensorList& weights, const TensorList& biases, int64_t steps,
    bool tied, bool save) {
  const auto n = graph_propagation::check(
      graph_propagation::kForward, h0, adjacency, attention, features, weights, biases, steps, tied);
  if (!save) {
    const std::optional<Tensor> h_T = Cuda::dispatch(graph_propagation::kForward, h0, [&](auto type) {
      return fused_propagation<decltype(type)>(n, h0, adjacency, attention, features, weights, biases);
    });
    if (h_T) {
      return {*h_T, nothing(h0), nothing(h0), nothing(h0)};
    }
  }
  return graph_propagation::checked_forward<Cuda>(n, h0, adjacency, attention, features, weights, biases, save);
}

}  // namespace ssgrl::cuda
