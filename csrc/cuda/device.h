// The Device of the operators (operators/tensors.h) on CUDA: products by PyTorch's BLAS, all else by the kernels of
// csrc/cuda.
//
// Under SSGRL_EMULATED (tests/support/cuda_emulator) the same operators run on CPU tensors, with these kernels in the
// emulator.
#pragma once

#if defined(SSGRL_EMULATED)
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#define SSGRL_SHIM(name) aoti_torch_cpu_##name
#else
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#include <torch/csrc/stable/accelerator.h>
#define SSGRL_SHIM(name) aoti_torch_cuda_##name
#endif

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/graph_propagation/gates.h"
#include "cuda/label_scores/class_rows.h"
#include "cuda/semantic_attention/scores.h"
#include "cuda/semantic_attention/split_tanh.h"
#include "operators/tensors.h"

namespace ssgrl {

struct Cuda {
  static bool prefers_whole(ScalarType, int64_t, int64_t, int64_t) { return false; }

  // Calls body(T()) with the storage type of a tensor, on the tensor's device.
  template <class Body>
  static auto dispatch(const char* op, const Tensor& tensor, Body body) {
#if !defined(SSGRL_EMULATED)
    STD_TORCH_CHECK(tensor.is_cuda(), op, ": the cuda kernels take cuda tensors");
    const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
#endif
    switch (tensor.scalar_type()) {
      case ScalarType::Float:
        return body(float());
      case ScalarType::Double:
        return body(double());
      case ScalarType::Half:
        return body(c10::Half());
      default:
        STD_TORCH_CHECK(
            tensor.scalar_type() == ScalarType::BFloat16, op,
            ": the cuda kernels compute in float32, float64, float16 and bfloat16");
        return body(c10::BFloat16());
    }
  }

  // out = a b, or out += a b
  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) {
    TORCH_ERROR_CODE_CHECK(
        accumulate ? SSGRL_SHIM(addmm_out)(out.get(), out.get(), a.get(), b.get(), 1., 1.)
                   : SSGRL_SHIM(mm_out)(out.get(), a.get(), b.get()));
  }
  // out = a b + bias, the bias [columns of out] or absent
  static void affine(const Tensor& out, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
    TORCH_ERROR_CODE_CHECK(
        bias ? SSGRL_SHIM(addmm_out)(out.get(), bias->get(), a.get(), b.get(), 1., 1.)
             : SSGRL_SHIM(mm_out)(out.get(), a.get(), b.get()));
  }
  // out[i] (+)= a[i] b[i] for each image i, in one call; a two-dimensional a or b is the same for all images
  static void image_products(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) {
    const Tensor each_a = for_each_image(a, out.size(0)), each_b = for_each_image(b, out.size(0));
    TORCH_ERROR_CODE_CHECK(
        accumulate ? SSGRL_SHIM(baddbmm_out)(out.get(), out.get(), each_a.get(), each_b.get(), 1., 1.)
                   : SSGRL_SHIM(bmm_out)(out.get(), each_a.get(), each_b.get()));
  }

  template <class T>
  static void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t rows, int64_t dim) {
    cuda::gate(gates, bias_z, bias_r, x, rows, dim);
  }
  template <class T>
  static void blend(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t rows, int64_t dim) {
    cuda::blend(gates, bias_n, x, next, stride, rows, dim);
  }
  template <class T>
  static void blend_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t rows, int64_t dim) {
    cuda::blend_backward(gates, x, d_gates, wide, d_x, rows, dim);
  }
  template <class T>
  static void gate_backward(
      const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t rows, int64_t dim) {
    cuda::gate_backward(gates, x, d_gates, wide, d_x, tied, rows, dim);
  }
  template <class T>
  static void column_sums(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out) {
    cuda::column_sums(matrix, count, stride, columns, out);
  }
  template <class T>
  static void class_logits(
      T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t rows, int64_t classes,
      int64_t outputs) {
    cuda::class_logits(output, bias_o, weight, bias_c, logits, rows, classes, outputs);
  }
  template <class T>
  static void class_logits_backward(
      const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, T* d_bias, int64_t images,
      int64_t classes, int64_t outputs) {
    cuda::class_logits_backward(grad, output, weight, d_output, d_weight, d_bias, images, classes, outputs);
  }

  // attention [B, C, L] from u [B, L, K], v [C, K], p [K] (eq. 3-5)
  template <class T>
  static void attention(const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& attention) {
    using A = Compute<T>;
    const cuda::AttentionSizes n{u.size(0), u.size(1), v.size(0), u.size(2)};
    const Tensor dense_u = dense(u), dense_v = dense(v), dense_p = dense(p);
    constexpr bool split = sizeof(T) == 2;  // 16-bit types: tanh by tensor-core products (split_form.cuh)
    const int64_t parts = split ? cuda::split_score_parts(n) : cuda::score_parts(n);
    const Tensor scores = parts == 1 ? attention : empty_like(attention, {parts, n.scores()});
    if constexpr (split) {
      cuda::split_scores(n, data<T>(dense_u), data<T>(dense_v), data<A>(dense_p), data<A>(scores));
    } else {
      cuda::scores(n, data<T>(dense_u), data<T>(dense_v), data<A>(dense_p), data<A>(scores));
    }
    cuda::softmax(n.images * n.classes, n.locations, parts, data<A>(scores), data<A>(attention));
  }
  // d_scores [rows, L] from the gradients of the attention: `direct`, and `through` the pooled features; either may be
  // null
  template <class T>
  static void softmax_backward(
      const Compute<T>* attention, const Compute<T>* direct, const T* through, Compute<T>* d_scores, int64_t rows,
      int64_t locations) {
    cuda::softmax_backward(rows, locations, attention, direct, through, d_scores);
  }
  // d_u [B, L, K], d_v [C, K] in the dtype of the features and d_p [K], from d_scores [B, C, L]
  template <class T>
  static std::tuple<Tensor, Tensor, Tensor> attention_backward(
      const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& d_scores) {
    using A = Compute<T>;
    const cuda::AttentionSizes n{u.size(0), u.size(1), v.size(0), u.size(2)};
    const Tensor dense_u = dense(u), dense_v = dense(v), dense_p = dense(p);
    const Tensor d_u = empty_like(u, {n.images, n.locations, n.joint}), d_v = empty_like(v, {n.classes, n.joint});
    const Tensor d_p = empty_like(p, {n.joint});
    constexpr bool split = sizeof(T) == 2;
    const Tensor scratch =
        empty_like(p, {split ? cuda::split_score_backward_scratch(n) : cuda::score_backward_scratch<T>(n)});
    if constexpr (split) {
      cuda::split_scores_backward(
          n, data<T>(dense_u), data<T>(dense_v), data<A>(dense_p), data<A>(d_scores), data<T>(d_u), data<T>(d_v),
          data<A>(d_p), data<A>(scratch));
    } else {
      cuda::scores_backward(
          n, data<T>(dense_u), data<T>(dense_v), data<A>(dense_p), data<A>(d_scores), data<T>(d_u), data<T>(d_v),
          data<A>(d_p), data<A>(scratch));
    }
    return {d_u, d_v, d_p};
  }

 private:
  // A matrix as a batch of `images` identical matrices, without a copy. The result does not own the memory of the
  // matrix.
  static Tensor for_each_image(const Tensor& matrix, int64_t images) {
    if (matrix.dim() == 3) {
      return matrix;
    }
    return torch::stable::from_blob(
        matrix.data_ptr(), {images, matrix.size(0), matrix.size(1)}, {0, matrix.stride(0), matrix.stride(1)},
        matrix.device(), matrix.scalar_type());
  }
};

}  // namespace ssgrl
