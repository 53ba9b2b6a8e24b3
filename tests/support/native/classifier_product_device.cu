// The classifier's product on a GPU against sums in double, in every tile and form, and its speed.
//
//   device TYPE R D O C
//
// with TYPE bf16 or fp16 prints a line `form tile error TFLOP/s`: "pairs" with h0, "second" with h0's half given; the
// error of the rows' sums in relative L2. The speed counts the multiply-adds with weight_o alone. Ends with 1 and a
// sentence where a call fails, repeats itself with other bits, or writes outside of its sums.
//
// Whatever a kernel reads out of bounds shows: behind h_T, h0, h0's half, weight_o, bias_o and weight_c lies NaN. One
// row of h_T has an infinite and one a NaN element, which no other row may see.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "cuda/sm90/classifier_product_plan.h"
#include "gated_product_device.h"

using namespace ssgrl::cuda;

namespace {

constexpr int64_t kMargin = 1 << 16;  // elements

// One block a row: its sum over the outputs, each in double.
template <class T>
__global__ void truth(
    const T* h_T, const T* h0, const T* weight, const T* bias, const T* weight_c, int64_t dim, int64_t outputs,
    int64_t classes, double* out) {
  __shared__ double terms[256];
  const int64_t row = blockIdx.x;
  double own = 0;
  for (int64_t n = threadIdx.x; n < outputs; n += blockDim.x) {
    double f_o = static_cast<float>(bias[n]);
    for (int64_t k = 0; k < dim; ++k) {
      f_o += double{static_cast<float>(h_T[row * dim + k])} * static_cast<float>(weight[n * 2 * dim + k]);
      f_o += double{static_cast<float>(h0[row * dim + k])} * static_cast<float>(weight[(2 * n + 1) * dim + k]);
    }
    own += tanh(f_o) * static_cast<float>(weight_c[row % classes * outputs + n]);
  }
  terms[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int i = 0; i < blockDim.x; ++i) {
      sum += terms[i];
    }
    out[row] = sum;
  }
}

template <class T>
T* with_margin(std::vector<T> values) {
  values.resize(values.size() + kMargin, T(NAN));
  return upload(values);
}

// Relative L2 over the rows whose truth is finite; where it is not, both must be NaN.
double error(const std::vector<float>& partial, int64_t parts, const std::vector<double>& truth) {
  const int64_t rows = static_cast<int64_t>(truth.size());
  double difference = 0, size = 0;
  for (int64_t row = 0; row < rows; ++row) {
    double value = 0;
    for (int64_t part = 0; part < parts; ++part) {
      value += partial[part * rows + row];
    }
    if (std::isfinite(truth[row])) {
      difference += (value - truth[row]) * (value - truth[row]);
      size += truth[row] * truth[row];
    } else if (!std::isnan(value)) {
      fail("row " + std::to_string(row) + " is not NaN");
    }
  }
  return std::sqrt(difference / size);
}

template <HalfType type, class T>
void every_tile(int64_t rows, int64_t dim, int64_t outputs, int64_t classes) {
  std::mt19937 random(7);
  std::vector<T> states = draw<T>(random, rows * dim, 1.0f);
  const T* const finite = with_margin(states);
  states[0] = T(INFINITY);
  if (rows > 1) {
    states[dim + 1] = T(NAN);
  }
  const T* const h_T = with_margin(states);
  const T* const h0 = with_margin(draw<T>(random, rows * dim, 1.0f));
  const T* const weight = with_margin(draw<T>(random, outputs * 2 * dim, 1 / std::sqrt(2.0f * dim)));
  const T* const bias = with_margin(draw<T>(random, outputs, 0.5f));
  const T* const weight_c = with_margin(draw<T>(random, classes * outputs, 1 / std::sqrt(1.0f * outputs)));
  Place place{0, 0, nullptr};
  check(cudaDeviceGetAttribute(&place.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  const int64_t most = (outputs + 63) / 64 * rows;
  float* const partial = upload(std::vector<float>(most + kMargin));
  double* const expected = upload(std::vector<double>(rows));
  ClassifierProduct product{type, rows, dim, outputs, classes, h_T, h0, weight, bias, weight_c, partial};
  truth<<<rows, 256>>>(h_T, h0, weight, bias, weight_c, dim, outputs, classes, expected);
  const std::vector<double> sums = download(expected, rows);
  for (const TileName tile : {TileName::small, TileName::medium, TileName::large}) {
    const int64_t parts = classifier_parts(product, tile);
    const auto call = [&] {
      const std::string reason = classifier_kernel<type>(product, tile, place);
      if (!reason.empty()) {
        fail(reason);
      }
    };
    const auto found = [&] {
      check(cudaMemset(partial, 0xff, (most + kMargin) * sizeof(float)));  // NaN
      call();
      return download(partial, most + kMargin);
    };
    const std::vector<float> once = found(), twice = found();
    if (std::memcmp(once.data(), twice.data(), once.size() * sizeof(float)) != 0) {
      fail("a second call gives other bits");
    }
    for (size_t i = parts * rows; i < once.size(); ++i) {
      if (!std::isnan(once[i])) {
        fail("something is written past the sums");
      }
    }
    const double found_error = error(once, parts, sums);
    product.h_T = finite;
    std::printf("pairs %d %g %g\n", static_cast<int>(tile), found_error, teraflops(call, 2.0 * rows * dim * outputs));
    product.h_T = h_T;
  }
}

}  // namespace

int main(int, char** argv) {
  const auto number = [&](int i) { return static_cast<int64_t>(std::atoll(argv[i])); };
  if (std::strcmp(argv[1], "bf16") == 0) {
    every_tile<HalfType::bfloat16, __nv_bfloat16>(number(2), number(3), number(4), number(5));
  } else {
    every_tile<HalfType::float16, __half>(number(2), number(3), number(4), number(5));
  }
  return 0;
}
