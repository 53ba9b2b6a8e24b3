// Launchers of states.cuh; T is float, double, Half or BFloat16. All pointers are of one device, the current one.
#pragma once

#include <cstdint>

namespace ssgrl::cuda {

// X [rows, 4D], G [rows, 3D], both dense; null biases are left out.
template <class T>
void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t rows, int64_t dim);

// next [rows, D] with rows `stride` apart; may be the first D columns of X
template <class T>
void blend(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t rows, int64_t dim);

// d_gates [rows, wide], d_x [rows, 4D], whose first D columns hold the gradient of the blend and take that of h
template <class T>
void blend_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t rows, int64_t dim);

// where tied, columns 3D:4D of d_gates take d_z + d_r
template <class T>
void gate_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t rows, int64_t dim);

// out[j] = sum_i matrix[i * stride + j] for j < columns
template <class T>
void column_sums(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out);

}  // namespace ssgrl::cuda
