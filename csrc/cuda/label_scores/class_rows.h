// Launchers of classifier.cuh; T is float, double, Half or BFloat16. All pointers are of one device, the current one.
#pragma once

#include <cstdint>

namespace ssgrl::cuda {

// logits[i] = bias_c[c] + sum_o tanh(output[i, o]) weight[c, o], c = i mod C; output [rows, O] takes bias_o first
template <class T>
void class_scores(
    T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t rows, int64_t classes,
    int64_t outputs);

// logits[i] = bias_c[c] + the sum of partial [parts, rows] over its parts, c = i mod C; T is Half or BFloat16
template <class T>
void class_logits(const float* partial, const T* bias_c, T* logits, int64_t parts, int64_t rows, int64_t classes);

// from grad [B, C]: d_output [B C, O], d_weight [C, O], d_bias [C]
template <class T>
void class_scores_backward(
    const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, T* d_bias, int64_t images,
    int64_t classes, int64_t outputs);

}  // namespace ssgrl::cuda
