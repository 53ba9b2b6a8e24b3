// graph_propagation_fp8 (eq. 7-9) on CUDA, for inference: a step is the aggregation, which also rounds the state to
// e4m3, and three products (gated_product_fp8.h). The new state overwrites the old one.
#pragma once

#include "cuda/common/stream.h"
#include "cuda/graph_propagation/aggregate.h"
#include "gated_product_fp8.h"
#include "operators/tensors.h"

namespace ssgrl::cuda {

constexpr const char* kFp8 = "graph_propagation_fp8";

// A contiguous, 16-byte aligned tensor, as TMA needs it: the argument, or a copy where it is a view that is not.
inline Tensor aligned(const Tensor& tensor) {
  const Tensor whole = dense(tensor);
  return misaligned("", whole.data_ptr()).empty() ? whole : torch::stable::clone(whole);
}

// h0 [B, C, D], adjacency [C, C], weight_zr [2D, 3D] and weight_h [D, 3D] in e4m3 with their scales per row (float32),
// biases; inward and outward are the powers of two that A h and A^T h are divided by. Returns h_T [B, C, D]. All other
// tensors are bfloat16.
inline Tensor graph_propagation_fp8(
    const Tensor& h0, const Tensor& adjacency, const Tensor& weight_zr, const Tensor& scale_zr,
    const std::optional<Tensor>& bias_zr, const Tensor& weight_h, const Tensor& scale_h,
    const std::optional<Tensor>& bias_h, double inward, double outward, int64_t steps) {
  check_dims(kFp8, "h0", h0, 3);
  const int64_t images = h0.size(0), classes = h0.size(1), dim = h0.size(2), rows = images * classes;
  STD_TORCH_CHECK(steps >= 1, kFp8, ": steps must be at least 1, got ", steps);
  STD_TORCH_CHECK(inward > 0 && outward > 0, kFp8, ": inward and outward must be positive");
  STD_TORCH_CHECK(h0.scalar_type() == ScalarType::BFloat16, kFp8, ": h0 must be bfloat16");
  const auto checked = [&](const char* name, const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> n) {
    check_shape(kFp8, name, tensor, n);
    STD_TORCH_CHECK(tensor.scalar_type() == type, kFp8, ": ", name, " has another dtype than it must have");
    STD_TORCH_CHECK(
        tensor.is_cpu() == h0.is_cpu() && tensor.get_device_index() == h0.get_device_index(), kFp8, ": ", name,
        " must be on the device of h0");
    return dense(tensor);
  };
  const auto bias = [&](const char* name, const std::optional<Tensor>& tensor, int64_t size) {
    return tensor ? std::optional<Tensor>(checked(name, *tensor, ScalarType::BFloat16, {size})) : std::nullopt;
  };
  const Tensor graph = checked("adjacency", adjacency, ScalarType::BFloat16, {classes, classes});
  const Tensor zr = aligned(checked("weight_zr", weight_zr, ScalarType::Float8_e4m3fn, {2 * dim, 3 * dim}));
  const Tensor h = aligned(checked("weight_h", weight_h, ScalarType::Float8_e4m3fn, {dim, 3 * dim}));
  const Tensor t_zr = checked("scale_zr", scale_zr, ScalarType::Float, {2 * dim});
  const Tensor t_h = checked("scale_h", scale_h, ScalarType::Float, {dim});
  const auto b_zr = bias("bias_zr", bias_zr, 2 * dim), b_h = bias("bias_h", bias_h, dim);

#if !defined(SSGRL_EMULATED)
  const torch::stable::accelerator::DeviceGuard guard(h0.get_device_index());
#endif
  const int device = h0.get_device_index();
  const Tensor start = aligned(h0), h_T = empty_like(h0, {images, classes, dim});
  if (rows == 0) {
    return h_T;
  }
  const Tensor inputs = torch::stable::new_empty(h0, {rows, 4 * dim}, ScalarType::Byte);
  const Tensor scale = torch::stable::new_empty(h0, {rows}, ScalarType::Float), z = empty_like(h0, {rows, dim});
  GatedProduct8 gate{
      rows,
      dim,
      inputs.data_ptr(),
      4 * dim,
      zr.data_ptr(),
      data<float>(t_zr),
      optional_data<c10::BFloat16>(b_zr),
      data<float>(scale),
      start.data_ptr(),
      z.data_ptr(),
      h_T.data_ptr(),
      dim};
  GatedProduct8 blend = gate;
  blend.weight = h.data_ptr();
  blend.weight_scale = data<float>(t_h);
  blend.bias = optional_data<c10::BFloat16>(b_h);

  void* const stream = current_stream(device);
  state_scale(data<c10::BFloat16>(start), data<float>(scale), images, classes, dim);
  for (int64_t t = 0; t < steps; ++t) {
    aggregate8(
        data<c10::BFloat16>(graph), static_cast<const c10::BFloat16*>(gate.h), dim, data<float>(scale),
        static_cast<float>(1 / inward), static_cast<float>(1 / outward), static_cast<uint8_t*>(gate.inputs), 4 * dim,
        images, classes, dim);
    check_done(kFp8, gates8(gate, device, stream));
    check_done(kFp8, blend8(blend, device, stream));
    gate.h = blend.h = h_T.data_ptr();
  }
  return h_T;
}

}  // namespace ssgrl::cuda
