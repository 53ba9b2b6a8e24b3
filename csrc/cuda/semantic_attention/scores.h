// Scores of semantic attention (eq. 3-5) on CUDA and their gradients, with tanh evaluated value by value in every
// dtype: launchers on device pointers.
//
// T is double, float, Half or BFloat16; sums, p, scores and attention are in Compute<T>. All matrices are dense. Row
// r = b L + l of u [R, K] is location l of image b. Kernels run on PyTorch's current stream. No atomic sums: equal
// arguments give equal bits.

#pragma once

#include <cstdint>

#include "operators/compute.h"

namespace ssgrl::cuda {

struct AttentionSizes {
  int64_t images, locations, classes, joint;
  int64_t scratch_bytes =
      128 << 20;  // target for the backward's scratch: above it parts are made as large as shared memory allows
  constexpr int64_t rows() const { return images * locations; }
  constexpr int64_t scores() const { return rows() * classes; }
};

// Number of parts of the sum over k, more than one where few rows and classes would not fill the GPU.
int64_t score_parts(const AttentionSizes& n);

// scores[b, c, l] = sum_k p[k] tanh(u[r, k] v[c, k]), u [R, K], v [C, K], p [K]; scores [parts, B, C, L], to be summed.
template <class T>
void scores(const AttentionSizes& n, const T* u, const T* v, const Compute<T>* p, Compute<T>* scores);

// attention [rows, L] = softmax_l(sum over parts of scores [parts, rows, L]), rows = B C.
// With one part, attention may be the same memory as scores.
template <class A>
void softmax(int64_t rows, int64_t locations, int64_t parts, const A* scores, A* attention);

// d_scores [rows, L] = a (g - sum_l a g), where g = grad_attention + from_pooled, [rows, L] each; one may be null.
template <class T>
void softmax_backward(
    int64_t rows, int64_t locations, const Compute<T>* attention, const Compute<T>* grad_attention,
    const T* from_pooled, Compute<T>* d_scores);

// Size of the scratch of scores_backward, in elements of Compute<T>.
template <class T>
int64_t score_backward_scratch(const AttentionSizes& n);

// From d_scores [B, C, L]: d_u [R, K], d_v [C, K] and d_p [K].
template <class T>
void scores_backward(
    const AttentionSizes& n, const T* u, const T* v, const Compute<T>* p, const Compute<T>* d_scores, T* d_u, T* d_v,
    Compute<T>* d_p, Compute<T>* scratch);

// out [count] = sum over parts of in [parts, count], in order.
template <class T>
void sum_parts(const Compute<T>* in, int64_t parts, int64_t count, T* out);

}  // namespace ssgrl::cuda
