// Kernels of class_rows.h: the class-specific rows of eq. 10 and their backward.
//
//   logits[b, c] = bias_c[c] + sum_o weight[c, o] tanh(output[b C + c, o] + bias_o[o])
//
// All are limited by memory bandwidth: a thread takes V neighbouring outputs, 16 bytes where O and the addresses are
// aligned for it.
#pragma once

#include "cuda/common/tanh.cuh"
#include "cuda/common/vector.cuh"
#include "cuda/common/warp.cuh"

namespace ssgrl::cuda {

constexpr int kClassRowThreads = 256;

// Sum over a block of whole warps in a fixed order; thread 0 receives it.
template <class A>
__device__ A block_sum(A value) {
  __shared__ A partial[32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = value;
  }
  __syncthreads();
  A total = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
      total += partial[warp];
    }
  }
  return total;
}

// output += bias_o; logits[row] = bias_c[c] + sum_o tanh(output[row, o]) weight[c, o], c = row mod C. One block per
// row.
template <class T, int V>
__global__ void __launch_bounds__(kClassRowThreads) class_logits_kernel(
    T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t classes, int64_t outputs) {
  using A = Compute<T>;
  const int64_t row = blockIdx.x, label = row % classes;
  T* own = output + row * outputs;
  A sum = 0;
  for (int64_t o = int64_t(threadIdx.x) * V; o < outputs; o += int64_t(blockDim.x) * V) {
    A value[V], factor[V];
    load(own + o, value);
    load(weight + label * outputs + o, factor);
    if (bias_o) {
      A shift[V];
      load(bias_o + o, shift);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        value[i] = static_cast<A>(static_cast<T>(value[i] + shift[i]));  // rounded, as the backward reads it
      }
      store(value, own + o);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sum += exact_tanh(value[i]) * factor[i];
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    logits[row] = static_cast<T>(sum + (bias_c ? static_cast<A>(bias_c[label]) : A(0)));
  }
}

// logits[row] = bias_c[c] + sum over parts of partial[part, row], in float and in order, c = row mod C. One thread per
// row.
template <class T>
__global__ void __launch_bounds__(kClassRowThreads) sum_class_logits_kernel(
    const float* partial, const T* bias_c, T* logits, int64_t parts, int64_t rows, int64_t classes) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= rows) {
    return;
  }
  float sum = 0;
  for (int64_t part = 0; part < parts; ++part) {
    sum += partial[part * rows + row];
  }
  logits[row] = static_cast<T>(bias_c ? sum + static_cast<float>(bias_c[row % classes]) : sum);
}

// With g = grad[b, c]: d_output = g weight sech^2(output), d_weight[c] = sum_b g tanh(output), images in order. A block
// takes one class and a range of O, so that d_weight needs no atomics.
template <class T, int V>
__global__ void __launch_bounds__(kClassRowThreads) class_logits_backward_kernel(
    const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, int64_t images, int64_t classes,
    int64_t outputs) {
  using A = Compute<T>;
  const int64_t label = blockIdx.x, o = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V;
  if (o >= outputs) {
    return;
  }
  A factor[V], sum[V];
  load(weight + label * outputs + o, factor);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    sum[i] = 0;
  }
  for (int64_t image = 0; image < images; ++image) {
    const int64_t row = image * classes + label;
    const A g = static_cast<A>(grad[row]);
    A value[V];
    load(output + row * outputs + o, value);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto t = exact_tanh_and_slope(value[i]);
      sum[i] += g * t.value;
      value[i] = g * factor[i] * t.slope;
    }
    store(value, d_output + row * outputs + o);
  }
  store(sum, d_weight + label * outputs + o);
}

}  // namespace ssgrl::cuda
