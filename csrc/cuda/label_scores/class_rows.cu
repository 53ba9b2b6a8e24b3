#include "class_rows.cuh"
#include "class_rows.h"
#include "cuda/common/rows.h"
#include "cuda/graph_propagation/gates.h"

namespace ssgrl::cuda {

template <class T>
void class_logits(
    T* output, const T* bias_o, const T* weight, const T* bias_c, T* logits, int64_t rows, int64_t classes,
    int64_t outputs) {
  by_vector<T>(outputs, {output, bias_o, weight}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    launch(
        class_logits_kernel<T, V>, one_a_row(rows), threads_for<V>(outputs), 0, output, bias_o, weight, bias_c, logits,
        classes, outputs);
  });
}

template <class T>
void sum_class_logits(const float* partial, const T* bias_c, T* logits, int64_t parts, int64_t rows, int64_t classes) {
  launch(
      sum_class_logits_kernel<T>, one_a_row(ceil_div(rows, int64_t{kClassRowThreads})), dim3(kClassRowThreads), 0,
      partial, bias_c, logits, parts, rows, classes);
}

template <class T>
void class_logits_backward(
    const T* grad, const T* output, const T* weight, T* d_output, T* d_weight, T* d_bias, int64_t images,
    int64_t classes, int64_t outputs) {
  by_vector<T>(outputs, {output, weight, d_output, d_weight}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const dim3 block = threads_for<V>(outputs), classes_in_x = one_a_row(classes);
    const dim3 grid(classes_in_x.x, static_cast<unsigned>(ceil_div(outputs, int64_t(block.x) * V)));
    launch(
        class_logits_backward_kernel<T, V>, grid, block, 0, grad, output, weight, d_output, d_weight, images, classes,
        outputs);
  });
  column_sums(grad, images, classes, classes, d_bias);
}

#define SSGRL_INSTANTIATE(T)                                                                   \
  template void class_logits(T*, const T*, const T*, const T*, T*, int64_t, int64_t, int64_t); \
  template void class_logits_backward(const T*, const T*, const T*, T*, T*, T*, int64_t, int64_t, int64_t);

SSGRL_INSTANTIATE(float)
SSGRL_INSTANTIATE(double)
SSGRL_INSTANTIATE(c10::Half)
SSGRL_INSTANTIATE(c10::BFloat16)

template void sum_class_logits(const float*, const c10::Half*, c10::Half*, int64_t, int64_t, int64_t);
template void sum_class_logits(const float*, const c10::BFloat16*, c10::BFloat16*, int64_t, int64_t, int64_t);

}  // namespace ssgrl::cuda
