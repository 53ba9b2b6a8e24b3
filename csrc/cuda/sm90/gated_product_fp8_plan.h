// Arguments of a gated product in e4m3 and their requirements. Plain C++ without CUDA, so that the host tests can
// compile it.
#pragma once

#include "gated_product_plan.h"

namespace ssgrl::cuda {

struct GatedProduct8 {
  int64_t rows;               // R
  int64_t dim;                // D, a multiple of 16
  void* inputs;               // X8: e4m3 [R, 4D]
  int64_t inputs_stride;      // row stride, in elements
  const void* weight;         // W8: e4m3, gates [2D, 3D], the rows of z first, blend [D, 3D]; contiguous
  const float* weight_scale;  // t: [2D] or [D]
  const void* bias;           // bfloat16 [2D] or [D], or null
  const float* row_scale;     // s of each row's image: [R]
  const void* h;              // bfloat16 [R, D]
  void* z;                    // bfloat16 [R, D]
  void* out = nullptr;        // blend only: bfloat16 [R, D]; may be h
  int64_t state_stride;       // row stride of h, z and out, in elements
};

inline std::string shape_refusal(const GatedProduct8& p, bool blend) {
  if (p.dim % 16 != 0) {
    return "D must be a multiple of 16 in e4m3, got " + std::to_string(p.dim);
  }
  if (p.inputs_stride % 16 != 0 || p.inputs_stride < 4 * p.dim ||
      p.inputs_stride > std::numeric_limits<int32_t>::max()) {
    return "the inputs' row stride must be a multiple of 16 from " + std::to_string(4 * p.dim) + " to 2^31, got " +
           std::to_string(p.inputs_stride);
  }
  for (const std::string& reason :
       {rows_refusal(p.rows, p.dim), wrong_stride("the state's row stride", p.state_stride, p.dim),
        misaligned("X", p.inputs), misaligned("the weight", p.weight), misaligned("h", p.h), misaligned("z", p.z),
        misaligned("the output", p.out)}) {
    if (!reason.empty()) {
      return reason;
    }
  }
  if (p.inputs == nullptr || p.weight == nullptr || p.weight_scale == nullptr || p.row_scale == nullptr ||
      p.h == nullptr || p.z == nullptr || (blend && p.out == nullptr)) {
    return "X, the weight, both scales, h, z and the blend's output must be given, got a null pointer";
  }
  return "";
}

}  // namespace ssgrl::cuda
