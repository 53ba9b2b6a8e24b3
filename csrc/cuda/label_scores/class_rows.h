// The class-specific rows of eq. 10 and their backward: launchers of class_rows.cuh. T is float, double, Half or
// BFloat16; all pointers belong to the current device.
#pragma once

#include <cstdint>

namespace ssgrl::cuda {

// output [rows, O] += bias_o; logits[i] = bias_c[c] + sum_o tanh(output[i, o]) weight[c, o], c = i mod C.
template <class T>
void class_logits(
    T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t rows, int64_t classes,
    int64_t outputs);

// logits[i] = bias_c[c] + sum over parts of partial [parts, rows], c = i mod C; T is Half or BFloat16.
template <class T>
void sum_class_logits(const float* partial, const T* bias_c, T* logits, int64_t parts, int64_t rows, int64_t classes);

// From grad [B, C], the gradient of the logits: d_output [B C, O], d_weight [C, O], d_bias [C].
template <class T>
void class_logits_backward(
    const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, T* d_bias, int64_t images,
    int64_t classes, int64_t outputs);

}  // namespace ssgrl::cuda
