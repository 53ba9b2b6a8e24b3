// Kernels of gates.h: the elementwise arithmetic of a propagation step (eq. 9) around its products, and its backward.
//
//   X [rows, 4D] = [h | A h | A^T h | r h]      G [rows, 3D] = [z | r | n] before sigma and tanh
//
// One block per row (image and class), threads along D. All are limited by memory bandwidth: a thread takes V
// neighbouring channels, 16 bytes where D and the addresses are aligned for it. Rows are counted by blockIdx.x, so
// fewer than 2^31 of them fit.
#pragma once

#include "cuda/common/logistic.cuh"
#include "cuda/common/tanh.cuh"
#include "cuda/common/vector.cuh"

namespace ssgrl::cuda {

constexpr int kGateThreads = 256;

// G[z], G[r] += bias; X[r h] = sigma(G[r]) h (eq. 9, second line)
template <class T, int V>
__global__ void __launch_bounds__(kGateThreads)
    gate_kernel(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t dim) {
  using A = Compute<T>;
  T *z = gates + int64_t(blockIdx.x) * 3 * dim, *r = z + dim, *h = x + int64_t(blockIdx.x) * 4 * dim;
  for (int64_t j = int64_t(threadIdx.x) * V; j < dim; j += int64_t(blockDim.x) * V) {
    A gate[V], shift[V], state[V];
    if (bias_z) {
      load(z + j, gate);
      load(bias_z + j, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        gate[i] += shift[i];
      }
      store(gate, z + j);
    }
    load(r + j, gate);
    load(h + j, state);
    if (bias_r) {
      load(bias_r + j, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        gate[i] = static_cast<A>(static_cast<T>(gate[i] + shift[i]));  // rounded, as the backward reads it
      }
      store(gate, r + j);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      state[i] *= logistic(gate[i]).value;
    }
    store(state, h + 3 * dim + j);
  }
}

// G[n] += bias; next = (1 - z) h + z tanh(G[n]) (eq. 9, last line); next may be the h of X
template <class T, int V>
__global__ void __launch_bounds__(kGateThreads)
    blend_kernel(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t dim) {
  using A = Compute<T>;
  T *z = gates + int64_t(blockIdx.x) * 3 * dim, *n = z + 2 * dim;
  const T* h = x + int64_t(blockIdx.x) * 4 * dim;
  for (int64_t j = int64_t(threadIdx.x) * V; j < dim; j += int64_t(blockDim.x) * V) {
    A gate[V], candidate[V], state[V];
    load(z + j, gate);
    load(n + j, candidate);
    load(h + j, state);
    if (bias_n) {
      A shift[V];
      load(bias_n + j, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        candidate[i] = static_cast<A>(static_cast<T>(candidate[i] + shift[i]));
      }
      store(candidate, n + j);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto blend = logistic(gate[i]);
      state[i] = blend.complement * state[i] + blend.value * exact_tanh(candidate[i]);
    }
    store(state, next + int64_t(blockIdx.x) * stride + j);
  }
}

// From d = d_X[h], the gradient of the new state:
//   d_G[z] = d (n - h) z (1 - z)      d_G[n] = d z sech^2(G[n])      d_X[h] = d (1 - z)
template <class T, int V>
__global__ void __launch_bounds__(kGateThreads)
    blend_backward_kernel(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t dim) {
  using A = Compute<T>;
  const T *z = gates + int64_t(blockIdx.x) * 3 * dim, *h = x + int64_t(blockIdx.x) * 4 * dim;
  T *d_z = d_gates + int64_t(blockIdx.x) * wide, *d_h = d_x + int64_t(blockIdx.x) * 4 * dim;
  for (int64_t j = int64_t(threadIdx.x) * V; j < dim; j += int64_t(blockDim.x) * V) {
    A gate[V], candidate[V], state[V], grad[V];
    load(z + j, gate);
    load(z + 2 * dim + j, candidate);
    load(h + j, state);
    load(d_h + j, grad);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto blend = logistic(gate[i]);
      const auto n = exact_tanh_and_slope(candidate[i]);
      gate[i] = grad[i] * (n.value - state[i]) * blend.value * blend.complement;
      candidate[i] = grad[i] * blend.value * n.slope;
      grad[i] *= blend.complement;
    }
    store(gate, d_z + j);
    store(candidate, d_z + 2 * dim + j);
    store(grad, d_h + j);
  }
}

// From d = d_X[r h]:
//   d_G[r] = d h r (1 - r)      d_X[h] += d r
// Where tied (both gates share U^z): d_G[3D:4D] = d_G[z] + d_G[r], the gradient of the shared product.
template <class T, int V>
__global__ void __launch_bounds__(kGateThreads)
    gate_backward_kernel(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t dim) {
  using A = Compute<T>;
  const T *r = gates + int64_t(blockIdx.x) * 3 * dim + dim, *h = x + int64_t(blockIdx.x) * 4 * dim;
  T *d_z = d_gates + int64_t(blockIdx.x) * wide, *d_h = d_x + int64_t(blockIdx.x) * 4 * dim;
  for (int64_t j = int64_t(threadIdx.x) * V; j < dim; j += int64_t(blockDim.x) * V) {
    A gate[V], state[V], grad[V], through[V];
    load(r + j, gate);
    load(h + j, state);
    load(d_h + 3 * dim + j, through);
    load(d_h + j, grad);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto reset = logistic(gate[i]);
      gate[i] = through[i] * state[i] * reset.value * reset.complement;
      grad[i] += through[i] * reset.value;
    }
    store(gate, d_z + dim + j);
    store(grad, d_h + j);
    if (tied) {
      A shared[V];
      load(d_z + j, shared);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        shared[i] += static_cast<A>(static_cast<T>(gate[i]));  // as stored
      }
      store(shared, d_z + 3 * dim + j);
    }
  }
}

// out[j] = sum_i matrix[i, j], in double and in a fixed order. A block sums kSumColumns columns, each of its warps
// every kSumRows-th row.
constexpr int kSumColumns = 32, kSumRows = 16;

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    column_sums_kernel(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out) {
  __shared__ double partial[kSumRows][kSumColumns];
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t j = int64_t(blockIdx.x) * kSumColumns + lane;
  double sum = 0;
  for (int64_t i = row; j < columns && i < count; i += kSumRows) {
    sum += static_cast<double>(static_cast<Compute<T>>(matrix[i * stride + j]));
  }
  partial[row][lane] = sum;
  __syncthreads();
  if (row == 0 && j < columns) {
    for (int i = 1; i < kSumRows; ++i) {
      sum += partial[i][lane];
    }
    out[j] = static_cast<T>(static_cast<Compute<T>>(sum));
  }
}

}  // namespace ssgrl::cuda
