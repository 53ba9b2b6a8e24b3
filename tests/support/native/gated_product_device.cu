// The gated products on a GPU against products summed in double, in every tile, and their speed.
//
//   device TYPE R D
//
// with TYPE bf16 or fp16 prints a line `product tile error TFLOP/s` for each product and tile: the error in relative L2
// of what was stored. Ends with 1 and a sentence where a call fails, or where something else than the product's own
// columns has changed.
//
// The rows of the workspace are 16 elements longer than 5D and filled with NaN past it, as are 64 rows past R: whatever
// a kernel reads or writes out of bounds shows. h has an infinite and a NaN element, which z must not see.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

#include "gated_product_device.h"
#include "cuda/sm90/gated_product_plan.h"

using namespace ssgrl::cuda;

namespace {

// out[r, d] = the gate (batch 0: z, batch 1: r h) or the blend, from sums in double
template <class T>
__global__ void truth(
    const T* columns, int64_t stride, const T* weight, const T* bias, int64_t rows, int64_t dim, int batch, bool blend,
    double* out) {
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (i >= rows * dim) {
    return;
  }
  const int64_t r = i / dim, d = i % dim, row = batch * dim + d;
  const T* const x = columns + r * stride + (blend ? 2 : 1) * dim;
  double sum = static_cast<float>(bias[row]);
  for (int64_t k = 0; k < 3 * dim; ++k) {
    sum += double{static_cast<float>(x[k])} * double{static_cast<float>(weight[row * 3 * dim + k])};
  }
  const double h = static_cast<float>(columns[r * stride + dim + d]), z = static_cast<float>(columns[r * stride + d]);
  const double gate = 1 / (1 + exp(-sum));
  out[i] = blend ? (1 - z) * h + z * tanh(sum) : batch == 1 ? gate * h : gate;
}

template <class T>
struct Check {
  HalfType type;
  int64_t rows, dim, stride;
  std::vector<T> start;  // the workspace with its margins
  T *columns, *weight, *bias;
  double* expected;
  Place place;

  Check(HalfType type, int64_t rows, int64_t dim) : type(type), rows(rows), dim(dim), stride(5 * dim + 16) {
    std::mt19937 random(7);
    start = draw<T>(random, (rows + 64) * stride, 1.0f);
    for (int64_t i = 0; i < static_cast<int64_t>(start.size()); ++i) {
      if (i / stride >= rows || i % stride >= 5 * dim) {
        start[i] = T(NAN);
      }
    }
    weight = upload(draw<T>(random, 2 * dim * 3 * dim, 2 / std::sqrt(3.0f * dim)));
    bias = upload(draw<T>(random, 2 * dim, 0.5f));
    columns = upload(start);
    check(cudaMalloc(&expected, rows * dim * sizeof(double)));
    place = {0, 0, nullptr};
    check(cudaDeviceGetAttribute(&place.multiprocessors, cudaDevAttrMultiProcessorCount, 0));
  }

  std::vector<T> read() const { return download(columns, start.size()); }

  // The truth of one column from what the workspace holds now.
  std::vector<double> true_column(int batch, bool blend) const {
    truth<<<(rows * dim + 255) / 256, 256>>>(columns, stride, weight, bias, rows, dim, batch, blend, expected);
    return download(expected, rows * dim);
  }

  // Relative L2 over the elements whose truth is finite; where it is not, both must be NaN or the same infinity.
  double error(const std::vector<T>& found, int column, const std::vector<double>& truth) const {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < rows * dim; ++i) {
      const double value = static_cast<float>(found[i / dim * stride + column * dim + i % dim]);
      if (std::isfinite(truth[i])) {
        difference += (value - truth[i]) * (value - truth[i]);
        size += truth[i] * truth[i];
      } else if (!(std::isnan(truth[i]) ? std::isnan(value) : value == truth[i])) {
        fail("an element that is not finite came out otherwise");
      }
    }
    return std::sqrt(difference / size);
  }

  void unchanged(const std::vector<T>& before, const std::vector<T>& after, int first, int second) const {
    for (int64_t i = 0; i < static_cast<int64_t>(before.size()); ++i) {
      const int64_t column = i / stride < rows && i % stride < 5 * dim ? i % stride / dim : -1;
      if (column != first && column != second && std::memcmp(&before[i], &after[i], sizeof(T)) != 0) {
        fail("element " + std::to_string(i % stride) + " of row " + std::to_string(i / stride) + " was overwritten");
      }
    }
  }

  template <class Gates, class Blend>
  void run(TileName tile, Gates gates, Blend blend) {
    std::vector<T> input = start;
    input[dim] = T(INFINITY);  // h of the first row: only r h, and the sums of that row, see it
    if (rows > 1) {
      input[stride + dim + 1] = T(NAN);
    }
    check(cudaMemcpy(columns, input.data(), input.size() * sizeof(T), cudaMemcpyHostToDevice));
    GatedProduct product{type, rows, dim, columns, stride, weight, bias, columns + dim, stride};
    const auto call = [&](auto kernel) {
      const std::string reason = kernel(product, tile, place);
      if (!reason.empty()) {
        fail(reason);
      }
    };
    const auto z = true_column(0, false), reset = true_column(1, false);
    call(gates);
    check(cudaDeviceSynchronize());
    const auto gated = read();
    unchanged(input, gated, 0, 4);
    const double gates_error = std::fmax(error(gated, 0, z), error(gated, 4, reset));
    const auto next = true_column(0, true);
    call(blend);
    check(cudaDeviceSynchronize());
    const auto blended = read();
    unchanged(gated, blended, 1, 1);
    const double blend_error = error(blended, 1, next);
    check(cudaMemcpy(columns, start.data(), start.size() * sizeof(T), cudaMemcpyHostToDevice));  // finite throughout
    std::printf(
        "gates %d %g %g\n", static_cast<int>(tile), gates_error,
        teraflops([&] { call(gates); }, 6.0 * rows * dim * dim));
    std::printf(
        "blend %d %g %g\n", static_cast<int>(tile), blend_error,
        teraflops([&] { call(blend); }, 3.0 * rows * dim * dim));
  }
};

template <HalfType type, class T>
void every_tile(int64_t rows, int64_t dim) {
  Check<T> checked(type, rows, dim);
  for (const TileName tile : {TileName::small, TileName::medium, TileName::large}) {
    checked.run(tile, gates_kernel<type>, blend_kernel<type>);
  }
}

}  // namespace

int main(int, char** argv) {
  const int64_t rows = std::atoll(argv[2]), dim = std::atoll(argv[3]);
  if (std::strcmp(argv[1], "bf16") == 0) {
    every_tile<HalfType::bfloat16, __nv_bfloat16>(rows, dim);
  } else {
    every_tile<HalfType::float16, __half>(rows, dim);
  }
  return 0;
}
