// Scores of semantic attention and their gradients by tensor-core products (split_form.cuh), for bfloat16 and float16:
// launchers on device pointers, with the shapes and rules of scores.h and the same results within the accuracy of those
// dtypes.

#pragma once

#include "scores.h"

namespace ssgrl::cuda {

// Number of parts of the sum over k.
int64_t split_score_parts(const AttentionSizes& n);

// scores [parts, B, C, L], summed by softmax().
template <class T>
void split_scores(const AttentionSizes& n, const T* u, const T* v, const float* p, float* scores);

// Size of the scratch of split_scores_backward, in floats.
int64_t split_score_backward_scratch(const AttentionSizes& n);

template <class T>
void split_scores_backward(
    const AttentionSizes& n, const T* u, const T* v, const float* p, const float* d_scores, T* d_u, T* d_v, float* d_p,
    float* scratch);

}  // namespace ssgrl::cuda
