// The Device of the operators (operators/tensors.h) on the CPU: products by products.h, all else by the vectorised
// loops of isa.h, with the rows distributed over PyTorch's threads.
#pragma once

#include "isa.h"
#include "products.h"

namespace ssgrl {

struct Cpu {
  // Whether one product with a whole matrix, [rows, sum] [sum, columns], is faster than products with slices of its
  // columns.
  static bool prefers_whole(ScalarType dtype, int64_t rows, int64_t sum, int64_t columns) {
    return products::by_onednn(dtype, rows, sum, columns) && rows < products::kFewRows;
  }

  // Calls body(T()) with the storage type of a tensor.
  template <class Body>
  static auto dispatch(const char* op, const Tensor& tensor, Body body) {
    const ScalarType dtype = tensor.scalar_type();
    STD_TORCH_CHECK(tensor.is_cpu(), op, ": the cpu kernels take cpu tensors");
    if (dtype == ScalarType::Float) {
      return body(float());
    }
    if (dtype == ScalarType::Double) {
      return body(double());
    }
    STD_TORCH_CHECK(dtype == ScalarType::BFloat16, op, ": the cpu kernels compute in float32, float64 and bfloat16");
    return body(BFloat16());
  }

  // products.h
  static void product(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) {
    products::product(out, a, b, accumulate);
  }
  static void affine(const Tensor& out, const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) {
    products::affine(out, a, b, bias);
  }
  // out[i] (+)= a[i] b[i] for each image i; a two-dimensional a or b is the same for all images
  static void image_products(const Tensor& out, const Tensor& a, const Tensor& b, bool accumulate = false) {
    for (int64_t image = 0; image < out.size(0); ++image) {
      product(slice(out, image), a.dim() == 3 ? slice(a, image) : a, b.dim() == 3 ? slice(b, image) : b, accumulate);
    }
  }

  // X [rows, 4D], G [rows, 3D]: see RowLoops::gate
  template <class T>
  static void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t rows, int64_t dim) {
    for_each_row(
        rows, dim, [&](int64_t i) { loops<T>().rows.gate(gates + i * 3 * dim, bias_z, bias_r, x + i * 4 * dim, dim); });
  }
  // next [rows, D] with row stride `stride`
  template <class T>
  static void blend(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t rows, int64_t dim) {
    for_each_row(rows, dim, [&](int64_t i) {
      loops<T>().rows.blend(gates + i * 3 * dim, bias_n, x + i * 4 * dim, next + i * stride, dim);
    });
  }
  // d_gates [rows, wide], d_x [rows, 4D]. Columns 0:D of d_x hold the gradient of `next` on entry, that of h on return.
  template <class T>
  static void blend_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t rows, int64_t dim) {
    for_each_row(rows, dim, [&](int64_t i) {
      T* row = d_x + i * 4 * dim;
      loops<T>().rows.blend_backward(row, gates + i * 3 * dim, x + i * 4 * dim, d_gates + i * wide, row, dim);
    });
  }
  // Where tied, columns 3D:4D of d_gates receive d_z + d_r.
  template <class T>
  static void gate_backward(
      const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t rows, int64_t dim) {
    for_each_row(rows, dim, [&](int64_t i) {
      T* row = d_gates + i * wide;
      T* shared = tied ? row + 3 * dim : nullptr;
      loops<T>().rows.gate_backward(gates + i * 3 * dim, x + i * 4 * dim, row, d_x + i * 4 * dim, shared, dim);
    });
  }
  // out[j] = sum_i matrix[i * stride + j]
  template <class T>
  static void column_sums(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out) {
    torch::stable::parallel_for(0, columns, 256, [&](int64_t begin, int64_t end) {
      std::vector<double> scratch(end - begin);
      loops<T>().rows.column_sums(matrix + begin, count, stride, end - begin, out + begin, scratch.data());
    });
  }

  // output += bias_o; logits[i] = bias_c[c] + sum_o tanh(output[i, o]) weight[c, o], c = i mod C
  template <class T>
  static void class_logits(
      T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t rows, int64_t classes,
      int64_t outputs) {
    const auto& loop = loops<T>().rows;
    for_each_row(rows, outputs, [&](int64_t i) {
      const int64_t label = i % classes;
      Compute<T> sum = loop.class_logit(output + i * outputs, bias_o, weight + label * outputs, outputs);
      if (bias_c) {
        Compute<T> shift;
        loop.widen(bias_c + label, 1, &shift);
        sum += shift;
      }
      loop.narrow(&sum, 1, logits + i);
    });
  }
  // from grad [B, C]: d_output [B C, O], d_weight [C, O], d_bias [C]. A task takes whole classes, so no two write to
  // the same sum.
  template <class T>
  static void class_logits_backward(
      const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, T* d_bias, int64_t images,
      int64_t classes, int64_t outputs) {
    using A = Compute<T>;
    const auto& loop = loops<T>().rows;
    torch::stable::parallel_for(0, classes, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sum(outputs);
      for (int64_t label = begin; label < end; ++label) {
        std::fill(sum.begin(), sum.end(), A(0));
        A total = 0;
        for (int64_t image = 0; image < images; ++image) {
          const int64_t row = image * classes + label;
          A g;
          loop.widen(grad + row, 1, &g);
          total += g;
          loop.class_logit_backward(
              g, output + row * outputs, weight + label * outputs, outputs, d_output + row * outputs, sum.data());
        }
        loop.narrow(sum.data(), outputs, d_weight + label * outputs);
        loop.narrow(&total, 1, d_bias + label);
      }
    });
  }

  // attention [B, C, L] from u [B, L, K], v [C, K], p [K] (eq. 3-5)
  template <class T>
  static void attention(const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& attention) {
    using A = Compute<T>;
    const int64_t classes = v.size(0), locations = u.size(1), joint = u.size(2);
    const Tensor wide_u = cast(u, compute_type<T>), wide_v = cast(v, compute_type<T>), wide_p = dense(p);
    for_each_row(u.size(0) * classes, locations * joint, [&](int64_t i) {
      const int64_t image = i / classes, label = i % classes;
      loops<T>().attention.attention_row(
          data<A>(wide_u) + image * locations * joint, data<A>(wide_v) + label * joint, data<A>(wide_p), locations,
          joint, data<A>(attention) + i * locations);
    });
  }
  // d_scores [rows, L] from the gradients of the attention: `direct`, and `through` the pooled features (eq. 5-6);
  // either may be null
  template <class T>
  static void softmax_backward(
      const Compute<T>* attention, const Compute<T>* direct, const T* through, Compute<T>* d_scores, int64_t rows,
      int64_t locations) {
    for_each_row(rows, locations, [&](int64_t i) {
      Compute<T>* row = d_scores + i * locations;
      if (through) {
        loops<T>().rows.widen(through + i * locations, locations, row);
      }
      for (int64_t l = 0; l < locations; ++l) {
        row[l] = (direct ? direct[i * locations + l] : 0) + (through ? row[l] : 0);
      }
      loops<T>().attention.softmax_backward_row(attention + i * locations, locations, row);
    });
  }
  // d_u [B, L, K], d_v [C, K] in the dtype of the features and d_p [K], from d_scores [B, C, L]
  template <class T>
  static std::tuple<Tensor, Tensor, Tensor> attention_backward(
      const Tensor& u, const Tensor& v, const Tensor& p, const Tensor& d_scores) {
    using A = Compute<T>;
    const int64_t images = u.size(0), locations = u.size(1), classes = v.size(0), joint = u.size(2);
    const Tensor wide_u = cast(u, compute_type<T>), wide_v = cast(v, compute_type<T>), wide_p = dense(p);
    const Tensor d_u = empty_like(p, {images, locations, joint});
    const Tensor d_v = empty_like(p, {classes, joint}), d_p = empty_like(p, {joint});
    const int64_t blocks = (joint + kJointBlock - 1) / kJointBlock;
    torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      std::vector<A> scratch(2 * classes * kJointBlock);
      for (int64_t block = first; block < last; ++block) {
        loops<T>().attention.joint_backward(
            data<A>(wide_u), data<A>(wide_v), data<A>(wide_p), data<A>(d_scores), images, locations, classes, joint,
            block * kJointBlock, std::min(joint, (block + 1) * kJointBlock), data<A>(d_u), data<A>(d_v), data<A>(d_p),
            scratch.data());
      }
    });
    return {cast(d_u, u.scalar_type()), cast(d_v, v.scalar_type()), d_p};
  }

 private:
  // Distributes `count` rows over threads, at least about 16,384 elements to each.
  template <class Body>
  static void for_each_row(int64_t count, int64_t row_elements, const Body& body) {
    const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_elements));
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        body(i);
      }
    });
  }
};

}  // namespace ssgrl
