// Arguments of the classifier product, their requirements, and how its sums are split. Plain C++ without CUDA, so that
// the host tests can compile it.
#pragma once

#include "gated_product_plan.h"

namespace ssgrl::cuda {

// Eq. 10 for inference: the logits before bias_c, as partial sums over ranges of the O outputs of f_o,
//
//   partial[p, r] = sum over n in range p of tanh(f_o[r, n]) weight_c[r mod C, n]
//   f_o[r, n]     = h_T[r] W_a[n] + h0[r] W_b[n] + bias_o[n],  weight_o = [W_a | W_b]
//
// f_o is not stored. All arrays are row-major and contiguous, and 16-byte aligned except bias_o and partial.
struct ClassifierProduct {
  HalfType type;         // of every array except partial; sums are in float
  int64_t rows;          // R = B C
  int64_t dim;           // D
  int64_t outputs;       // O
  int64_t classes;       // C
  const void* h_T;       // [R, D]
  const void* h0;        // [R, D]
  const void* weight_o;  // [O, 2D]
  const void* bias_o;    // [O], or null
  const void* weight_c;  // [C, O]
  float* partial;        // [classifier_parts, R]
};

// The tile of the product, and the number of parts of a row's sum: one per column of tiles.
inline TileName classifier_tile(const ClassifierProduct& p, int64_t multiprocessors) {
  return choose_tile(p.rows, p.outputs, 1, multiprocessors);
}

inline int64_t classifier_parts(const ClassifierProduct& p, TileName tile) {
  const int64_t wide = kTiles[static_cast<int>(tile)].columns;
  return (p.outputs + wide - 1) / wide;
}

// The reason why the kernels cannot be used for the shapes and addresses, as a sentence; empty where they can. As for
// the gated products, TMA needs addresses and row strides in multiples of 16 bytes.
inline std::string shape_refusal(const ClassifierProduct& p) {
  for (const std::string& reason :
       {rows_refusal(p.rows, p.dim), misaligned("h_T", p.h_T), misaligned("h0", p.h0),
        misaligned("weight_o", p.weight_o), misaligned("weight_c", p.weight_c)}) {
    if (!reason.empty()) {
      return reason;
    }
  }
  if (p.outputs < 8 || p.outputs % 8 != 0 || p.outputs > int64_t{1} << 18) {
    return "O must be a multiple of 8 from 8 to 2^18, got " + std::to_string(p.outputs);
  }
  if (p.classes < 1 || p.rows % p.classes != 0) {
    return "R must be a multiple of C, got R = " + std::to_string(p.rows) + " and C = " + std::to_string(p.classes);
  }
  if (p.h_T == nullptr || p.h0 == nullptr || p.weight_o == nullptr || p.weight_c == nullptr) {
    return "h_T, h0, weight_o and weight_c must be given, got a null pointer";
  }
  return "";
}

// The kernels, one file per type (classifier_product_*.cu). Return an empty string or the error.
template <HalfType type>
std::string classifier_kernel(const ClassifierProduct& product, TileName tile, const Place& place);

}  // namespace ssgrl::cuda
