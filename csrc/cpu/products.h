// Matrix products on the CPU: by PyTorch's BLAS, or by the oneDNN that is part of PyTorch where that is faster.
//
// PyTorch's wheels for x86-64 link MKL, which chooses slower kernels on processors that are not Intel's and packs the
// whole weight matrix for every product; oneDNN does neither. oneDNN returns each product as a new matrix, which has to
// be copied. It is therefore used only where this copy is cheap beside the product: where the sums are long.
// `SSGRL_CPU_PRODUCTS=blas` or `onednn` overrides the choice by processor; `ssgrl-fast env` shows it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu_features.h"
#include "operators/tensors.h"

#ifdef SSGRL_HAS_ONEDNN
// Absent in a PyTorch that was built without oneDNN.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise(
    AtenTensorHandle input, AtenTensorHandle weight, AtenTensorHandle* bias, const char* attribute,
    const double** scalars, int64_t scalar_count, const char** algorithm, AtenTensorHandle* result);
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_cpu__linear_pointwise_binary(
    AtenTensorHandle input, AtenTensorHandle other, AtenTensorHandle weight, AtenTensorHandle* bias,
    const char* attribute, AtenTensorHandle* result);
#endif

namespace ssgrl::products {

constexpr int64_t kRowsAtOnce = 160;  // of a call of oneDNN
constexpr int64_t kFewRows = 512;     // from this many on, oneDNN saves more time than the copy of a matrix takes

// Whether oneDNN computes the large products of this dtype. It has no fast kernel for a slice of a matrix's columns:
// with few rows it is faster to multiply by the whole matrix, even where the rows must be copied for that.
inline bool by_onednn(ScalarType dtype) {
#ifdef SSGRL_HAS_ONEDNN
  return dtype == ScalarType::Float && aoti_torch_cpu__linear_pointwise && aoti_torch_cpu__linear_pointwise_binary &&
         product_library() == ProductLibrary::onednn;
#else
  return false;
#endif
}

// Whether a product [M, K] [K, N] of this dtype is large enough.
inline bool by_onednn(ScalarType dtype, int64_t m, int64_t k, int64_t n) {
  return by_onednn(dtype) && m >= 4 && k >= 512 && m * k * n >= int64_t(1) << 24;
}
// The same, and no operand needs a copy that costs more time than oneDNN saves.
inline bool by_onednn(const Tensor& a, const Tensor& b) {
  return by_onednn(a.scalar_type(), a.size(0), a.size(1), b.size(1)) && a.stride(1) == 1 &&
         (a.size(0) >= kFewRows || b.is_contiguous() || transposed(b).is_contiguous());
}

// out = a b + bias by oneDNN, or out += a b; the bias [columns of out] or absent. Some rows at a time, so that oneDNN's
// copies of them stay small.
inline void onednn(const Tensor& out, const Tensor& a, const Tensor& b, const Tensor* bias, bool accumulate) {
#ifdef SSGRL_HAS_ONEDNN
  const Tensor weight = transposed(b).is_contiguous() ? transposed(b) : transposed(dense(b));
  AtenTensorHandle shift = bias ? bias->get() : nullptr;
  AtenTensorHandle* optional = bias ? &shift : nullptr;
  const int64_t count = a.size(0), parts = (count + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = part * count / parts, end = (part + 1) * count / parts;
    const Tensor from = rows(a, begin, end);
    Tensor to = rows(out, begin, end);
    AtenTensorHandle result = nullptr;
    TORCH_ERROR_CODE_CHECK(
        accumulate
            ? aoti_torch_cpu__linear_pointwise_binary(from.get(), to.get(), weight.get(), nullptr, "add", &result)
            : aoti_torch_cpu__linear_pointwise(
                  from.get(), weight.get(), optional, "none", nullptr, 0, nullptr, &result));
    torch::stable::copy_(to, Tensor(result));
  }
#endif
}

// out = a b, or out += a b
inline void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate) {
  if (by_onednn(a, b)) {
    return onednn(out, a, b, nullptr, accumulate);
  }
  TORCH_ERROR_CODE_CHECK(
      accumulate ? aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1., 1.)
                 : aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
}

// out = a b + bias, the bias [columns of out] or absent
inline void affine(const Tensor& out, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
  if (!bias) {
    return product(out, a, b, false);
  }
  if (by_onednn(a, b)) {
    const Tensor kept = dense(*bias);
    return onednn(out, a, b, &kept, false);
  }
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), bias->get(), a.get(), b.get(), 1., 1.));
}

}  // namespace ssgrl::products
