#include "cuda/common/rows.h"
#include "gates.cuh"
#include "gates.h"

namespace ssgrl::cuda {

template <class T>
void gate(T* gates, const T* bias_z, const T* bias_r, T* x, int64_t rows, int64_t dim) {
  by_vector<T>(dim, {gates, bias_z, bias_r, x}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    launch(gate_kernel<T, V>, one_a_row(rows), threads_for<V>(dim), 0, gates, bias_z, bias_r, x, dim);
  });
}

template <class T>
void blend(T* gates, const T* bias_n, const T* x, T* next, int64_t stride, int64_t rows, int64_t dim) {
  by_vector<T>(dim, {gates, bias_n, x, next}, [&](auto width) {  // stride is D or 4D
    constexpr int V = decltype(width)::value;
    launch(blend_kernel<T, V>, one_a_row(rows), threads_for<V>(dim), 0, gates, bias_n, x, next, stride, dim);
  });
}

template <class T>
void blend_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, int64_t rows, int64_t dim) {
  by_vector<T>(dim, {gates, x, d_gates, d_x}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    launch(blend_backward_kernel<T, V>, one_a_row(rows), threads_for<V>(dim), 0, gates, x, d_gates, wide, d_x, dim);
  });
}

template <class T>
void gate_backward(const T* gates, const T* x, T* d_gates, int64_t wide, T* d_x, bool tied, int64_t rows, int64_t dim) {
  by_vector<T>(dim, {gates, x, d_gates, d_x}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    launch(
        gate_backward_kernel<T, V>, one_a_row(rows), threads_for<V>(dim), 0, gates, x, d_gates, wide, d_x, tied, dim);
  });
}

template <class T>
void column_sums(const T* matrix, int64_t count, int64_t stride, int64_t columns, T* out) {
  const dim3 grid(static_cast<unsigned>(ceil_div(columns, kSumColumns)));
  launch(column_sums_kernel<T>, grid, dim3(kSumColumns, kSumRows), 0, matrix, count, stride, columns, out);
}

#define SSGRL_INSTANTIATE(T)                                                                \
  template void gate(T*, const T*, const T*, T*, int64_t, int64_t);                         \
  template void blend(T*, const T*, const T*, T*, int64_t, int64_t, int64_t);               \
  template void blend_backward(const T*, const T*, T*, int64_t, T*, int64_t, int64_t);      \
  template void gate_backward(const T*, const T*, T*, int64_t, T*, bool, int64_t, int64_t); \
  template void column_sums(const T*, int64_t, int64_t, int64_t, T*);

SSGRL_INSTANTIATE(float)
SSGRL_INSTANTIATE(double)
SSGRL_INSTANTIATE(c10::Half)
SSGRL_INSTANTIATE(c10::BFloat16)

}  // namespace ssgrl::cuda
