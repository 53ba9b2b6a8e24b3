// Scores of semantic attention (eq. 3-5) on CUDA and their gradients, exact in every dtype: launchers on device
// pointers.
//
// T is double, float, Half or BFloat16; sums, p, scores and attention are in Compute<T>. All matrices are dense, rows r
// = (b, l) of u counted through the images. Work starts on PyTorch's current stream; results do not depend on anything
// but the arguments: no sum is formed by atomics.

#pragma once

#include <cstdint>

#include "operators/compute.h"

namespace ssgrl::cuda {

struct ScoreSizes {
  int64_t images, locations, classes, joint;
  int64_t scratch_bytes = 128 << 20;  // beyond it the backward's scratch grows as slowly as shared memory allows
  constexpr int64_t rows() const { return images * locations; }
  constexpr int64_t scores() const { return rows() * classes; }
};

// Into how many parts the sum over k is cut, so that few rows and classes still fill a GPU.
int64_t score_parts(const ScoreSizes& n);

// scores[b, c, l] = sum_k p[k] tanh(u[r, k] v[c, k]), u [R, K], v [C, K], p [K]; scores [parts, B, C, L], to be summed.
template <class T>
void scores(const ScoreSizes& n, const T* u, const T* v, const Compute<T>* p, Compute<T>* scores);

// attention [rows, L] = softmax_l(sum over parts of scores [parts, rows, L]), rows = B C.
// Of one part attention may be the scores themselves.
template <class A>
void softmax(int64_t rows, int64_t locations, int64_t parts, const A* scores, A* attention);

// d_scores [rows, L] = a (g - sum_l a g), where g = grad_attention + from_pooled, [rows, L] each; one may be null.
template <class T>
void softmax_backward(
    int64_t rows, int64_t locations, const Compute<T>* attention, const Compute<T>* grad_attention,
    const T* from_pooled, Compute<T>* d_scores);

// Elements of Compute<T> that scores_backward needs as scratch.
template <class T>
int64_t score_backward_scratch(const ScoreSizes& n);

// From d_scores [B, C, L]: d_u [R, K], d_v [C, K] and d_p [K].
template <class T>
void scores_backward(
    const ScoreSizes& n, const T* u, const T* v, const Compute<T>* p, const Compute<T>* d_scores, T* d_u, T* d_v,
    Compute<T>* d_p, Compute<T>* scratch);

// out [count] = the sum over parts of in [parts, count], in their order.
template <class T>
void sum_parts(const Compute<T>* in, int64_t parts, int64_t count, T* out);

}  // namespace ssgrl::cuda
