// Gates of a propagation step (eq. 9) and their backward: launchers of gates.cuh. T is float, double, Half or BFloat16;
// all pointers belong to the current device.
#pragma once

#include <cstdint>

namespace ssgrl::cuda {

// G[z], G[r] += bias; X[r h] = sigma(G[r]) h. X [rows, 4D] and G [rows, 3D] are dense; a bias may be null.
template <class T>
void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t rows, int64_t dim);

// next = (1 - z) h + z tanh(G[n] + bias_n): [rows, D] with row stride `stride`; may be the first D columns of X.
template <class T>
void blend(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t rows, int64_t dim);

// d_gates [rows, wide], d_x [rows, 4D]. Columns 0:D of d_x hold the gradient of `next` on entry, that of h on return.
template <class T>
void blend_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t rows, int64_t dim);

// Where tied, columns 3D:4D of d_gates receive d_z + d_r.
template <class T>
void gate_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t rows, int64_t dim);

// out[j] = sum_i matrix[i * stride + j] for i < count and j < columns.
template <class T>
void column_sums(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out);

}  // namespace ssgrl::cuda
