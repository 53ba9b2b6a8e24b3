// The gated products in e4m3 on a GPU against products of the same operands summed in double, and their speed.
//
//   fp8_device R D
//
// prints a line `product error TFLOP/s` for gates8's z and r h and for blend8, the error in relative L2 of what was
// stored: bfloat16, but e4m3 for r h. Ends with 1 and a sentence where a call fails.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "gated_product_device.h"
#include "cuda/sm90/gated_product_fp8.h"

using namespace ssgrl::cuda;
using E4m3 = __nv_fp8_e4m3;
using State = __nv_bfloat16;

// out[r, d] = sum over k of x[r, k] w[d, k], scaled by its channel and its row, with its bias
__global__ void sums(
    const E4m3* x, int64_t stride, const E4m3* weight, const float* scale, const float* row_scale, const State* bias,
    int64_t rows, int64_t dim, double* out) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * dim) {
    return;
  }
  const int64_t r = i / dim, d = i % dim;
  double sum = 0;
  for (int64_t k = 0; k < 3 * dim; ++k) {
    sum += double{static_cast<float>(x[r * stride + k])} * double{static_cast<float>(weight[d * 3 * dim + k])};
  }
  out[i] = sum * scale[d] * row_scale[r] + double{static_cast<float>(bias[d])};
}

template <class T, class Truth>
double error(const std::vector<T>& found, int64_t stride, int64_t rows, int64_t dim, Truth&& truth) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < rows * dim; ++i) {
    const double expected = truth(i), value = static_cast<float>(found[i / dim * stride + i % dim]);
    difference += (value - expected) * (value - expected);
    size += expected * expected;
  }
  return std::sqrt(difference / size);
}

int main(int, char** argv) {
  const int64_t rows = std::atoll(argv[1]), dim = std::atoll(argv[2]), row = 4 * dim;
  std::mt19937 random(7);
  const float spread = 2 / std::sqrt(3.0f * dim);  // of a weight, so that sums have a deviation of 2
  E4m3* const inputs = upload(draw<E4m3>(random, rows * row, 8.0f));
  const E4m3* const weight = upload(draw<E4m3>(random, 2 * dim * 3 * dim, 64.0f));
  std::vector<float> row_scales(rows);  // two images or more, of different sizes
  for (int64_t r = 0; r < rows; ++r) {
    row_scales[r] = 1.0f / static_cast<float>(64 << (r * 4 / rows));
  }
  const float* const row_scale = upload(row_scales);
  const float* const scale = upload(std::vector<float>(2 * dim, 128 * spread / (8.0f * 64.0f)));
  const State* const bias = upload(draw<State>(random, 2 * dim, 0.5f));
  const std::vector<State> h = draw<State>(random, rows * dim, 1.0f);
  State *state = upload(h), *z = upload(h);
  double* out = nullptr;
  check(cudaMalloc(&out, rows * dim * sizeof(double)));
  const auto true_sums = [&](int block, int gate) {
    sums<<<(rows * dim + 255) / 256, 256>>>(
        inputs + block * dim, row, weight + gate * 3 * dim * dim, scale + gate * dim, row_scale, bias + gate * dim,
        rows, dim, out);
    return download(out, rows * dim);
  };
  const GatedProduct8 product{rows, dim, inputs, row, weight, scale, bias, row_scale, state, z, state, dim};
  const auto call = [&](auto function) {
    const std::string reason = function(product, 0, nullptr);
    if (!reason.empty()) {
      fail(reason);
    }
  };
  const auto sigma = [](double x) { return 1 / (1 + std::exp(-x)); };
  const auto update = true_sums(0, 0), reset = true_sums(0, 1);
  call(gates8);
  const auto stored_z = download(z, rows * dim);
  const auto stored_reset = download(inputs, rows * row);
  const double z_error = error(stored_z, dim, rows, dim, [&](int64_t i) { return sigma(update[i]); });
  const std::vector<E4m3> last(stored_reset.begin() + 3 * dim, stored_reset.end());
  const double reset_error = error(last, row, rows, dim, [&](int64_t i) {
    return sigma(reset[i]) * static_cast<float>(h[i]) / row_scales[i / dim];
  });
  const auto candidate = true_sums(1, 0);
  call(blend8);
  const double blend_error = error(download(state, rows * dim), dim, rows, dim, [&](int64_t i) {
    const double gate = static_cast<float>(stored_z[i]);
    return (1 - gate) * static_cast<float>(h[i]) + gate * std::tanh(candidate[i]);
  });
  const double gates_rate = teraflops([&] { call(gates8); }, 6.0 * rows * dim * dim);
  std::printf("z %g %g\nreset %g %g\n", z_error, gates_rate, reset_error, gates_rate);
  std::printf("blend %g %g\n", blend_error, teraflops([&] { call(blend8); }, 3.0 * rows * dim * dim));
  return 0;
}
