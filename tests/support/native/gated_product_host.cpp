// The parts of the gated products that need no GPU, as C functions for tests/cuda/test_cuda_product.py.
#include "cuda/sm90/gated_product_fp8_plan.h"
#include "cuda/sm90/gated_product_math.h"

using namespace ssgrl::cuda;

extern "C" {

void gate(int64_t n, const float* sums, const float* bias, const float* h, int batch, float* out) {
  const GateElement element = GateElement::of_batch(batch);
  for (int64_t i = 0; i < n; ++i) {
    out[i] = element(sums[i], bias[i], h[i]);
  }
}

void blend_fast(int64_t n, const float* sums, const float* bias, const float* h, const float* z, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = BlendElement<FastTanh>{}(sums[i], bias[i], h[i], z[i]);
  }
}

void blend_exact(int64_t n, const float* sums, const float* bias, const float* h, const float* z, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = BlendElement<ExactTanh>{}(sums[i], bias[i], h[i], z[i]);
  }
}

void scaled_update(
    int64_t n, const float* sums, const float* scale, const float* bias, const float* image, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ScaledUpdate{}(sums[i], scale[i], bias[i], image[i]);
  }
}

void scaled_reset(
    int64_t n, const float* sums, const float* scale, const float* bias, const float* image, const float* h,
    float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ScaledReset{}(sums[i], scale[i], bias[i], image[i], h[i]);
  }
}

void scaled_blend(
    int64_t n, const float* sums, const float* scale, const float* bias, const float* image, const float* h,
    const float* z, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ScaledBlend<FastTanh>{}(sums[i], scale[i], bias[i], image[i], h[i], z[i]);
  }
}

// The reason, or an empty text; addresses in bytes.
const char* refusal(
    int64_t rows, int64_t dim, int64_t columns, int64_t stride, int64_t weight, int64_t out, int64_t out_stride,
    int blend) {
  static std::string reason;
  const auto at = [](int64_t address) { return reinterpret_cast<void*>(address); };
  const GatedProduct product{HalfType::bfloat16, rows,    dim,     at(columns), stride,
                             at(weight),         nullptr, at(out), out_stride};
  reason = shape_refusal(product, blend != 0);
  return reason.c_str();
}

const char* refusal8(
    int64_t rows, int64_t dim, int64_t inputs, int64_t inputs_stride, int64_t weight, int64_t z, int64_t out,
    int64_t state_stride, int64_t blend) {
  static std::string reason;
  const auto at = [](int64_t address) { return reinterpret_cast<void*>(address); };
  static const float scale = 1.0f;
  reason = shape_refusal(
      GatedProduct8{
          rows, dim, at(inputs), inputs_stride, at(weight), &scale, nullptr, &scale, at(1 << 25), at(z), at(out),
          state_stride},
      blend != 0);
  return reason.c_str();
}

int tile(int64_t rows, int64_t dim, int64_t batches, int64_t multiprocessors) {
  return static_cast<int>(choose_tile(rows, dim, batches, multiprocessors));
}

void tile_size(int name, int64_t* size) {
  size[0] = kTiles[name].rows;
  size[1] = kTiles[name].columns;
  size[2] = kTiles[name].cluster;
}

}  // extern "C"
