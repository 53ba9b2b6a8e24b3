// Scores of semantic attention and their gradients by tensor-core products, for bfloat16 and float16: launchers on
// device pointers, with the shapes and rules of scores.h, and the same results to those dtypes' budgets.

#pragma once

#include "scores.h"

namespace ssgrl::cuda {

// Into how many parts the sum over k is cut.
int64_t split_score_parts(const ScoreSizes& n);

// scores [parts, B, C, L], to be summed (softmax does).
template <class T>
void split_scores(const ScoreSizes& n, const T* u, const T* v, const float* p, float* scores);

// Floats that split_scores_backward needs as scratch.
int64_t split_score_backward_scratch(const ScoreSizes& n);

template <class T>
void split_scores_backward(
    const ScoreSizes& n, const T* u, const T* v, const float* p, const float* d_scores, T* d_u, T* d_v, float* d_p,
    float* scratch);

}  // namespace ssgrl::cuda
