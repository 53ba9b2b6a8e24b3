// The vectorised loops of csrc/cpu, compiled once per instruction set and selected when the library is loaded.
//
// Loops<T> is the table of them for a storage type T; arithmetic is in Compute<T>: double for double, float for float
// and bfloat16. A loop processes one row given by pointers; the caller (device.h) distributes rows over threads.
#pragma once

#include <cstdint>

#include "cpu_features.h"
#include "operators/compute.h"

namespace ssgrl {

struct BFloat16 {
  uint16_t bits;
};

// Loops of semantic_attention over K joint channels; A is float or double.
template <class A>
struct AttentionLoops {
  // out[l] = softmax_l(sum_k p[k] tanh(u[l, k] v[k])) for one class and one image (eq. 3-5)
  void (*attention_row)(const A* u, const A* v, const A* p, int64_t locations, int64_t joint, A* out);
  // d_scores[l] = a[l] (g[l] - sum_m a[m] g[m]), the backward of the softmax (eq. 5); overwrites g
  void (*softmax_backward_row)(const A* attention, int64_t locations, A* gradient);
  // d_u, d_v and d_p for the joint channels [begin, end), at most kJointBlock of them; the outputs are overwritten
  void (*joint_backward)(
      const A* u, const A* v, const A* p, const A* d_scores, int64_t images, int64_t locations, int64_t classes,
      int64_t joint, int64_t begin, int64_t end, A* d_u, A* d_v, A* d_p, A* scratch);
};

constexpr int64_t kJointBlock = 32;  // joint channels per task of joint_backward

// Loops over one row of graph_propagation and label_scores. X = [h | A h | A^T h | r h] has 4D columns, the gates
// [z | r | n] before sigma and tanh have 3D.
template <class T>
struct RowLoops {
  using A = Compute<T>;
  // gates += bias in columns z, r; x[3D:] = sigma(r) h
  void (*gate)(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t dim);
  // gates += bias in column n; out = (1 - z) h + z tanh(n)
  void (*blend)(T* gates, const T* bias_h, const T* h, T* out, int64_t dim);
  // from d = dL/dh_t: d_gates of z and n; d_x[:D] = d (1 - z). d and d_x may be the same row
  void (*blend_backward)(const T* d, const T* gates, const T* h, T* d_gates, T* d_x, int64_t dim);
  // from d_x[3D:] = dL/d(r h): d_gates of r; d_x[:D] += d_x[3D:] r; if shared is not null, shared = d_z + d_r
  void (*gate_backward)(const T* gates, const T* h, T* d_gates, T* d_x, T* shared, int64_t dim);
  // output += bias; returns sum_o tanh(output[o]) weight[o] (eq. 10)
  A (*class_logit)(T* output, const T* bias, const T* weight, int64_t outputs);
  // d_output = g weight (1 - tanh^2(output)); d_weight += g tanh(output)
  void (*class_logit_backward)(A g, const T* output, const T* weight, int64_t outputs, T* d_output, A* d_weight);
  // out[j] = sum_i rows[i * stride + j] for j < columns, summed in double
  void (*column_sums)(const T* rows, int64_t count, int64_t stride, int64_t columns, T* out, double* scratch);
  void (*widen)(const T* in, int64_t count, A* out);
  void (*narrow)(const A* in, int64_t count, T* out);
};

template <class T>
struct Loops {
  AttentionLoops<Compute<T>> attention;
  RowLoops<T> rows;
};

namespace generic {
template <class T>
const Loops<T>& table();
}
namespace avx2 {
template <class T>
const Loops<T>& table();
}
namespace avx512 {
template <class T>
const Loops<T>& table();
}

template <class T>
const Loops<T>& loops() {
#ifdef __x86_64__
  static const Loops<T>& chosen = detect_isa() == Isa::avx512 ? avx512::table<T>()
                                  : detect_isa() == Isa::avx2 ? avx2::table<T>()
                                                              : generic::table<T>();
#else
  static const Loops<T>& chosen = generic::table<T>();
#endif
  return chosen;
}

}  // namespace ssgrl
