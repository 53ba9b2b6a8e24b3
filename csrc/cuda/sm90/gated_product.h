// The two products of a propagation step, with the gates computed in their epilogues, for compute capability 9.0:
//
//   gates   z = sigma(X W_z^T + b_z) into column 0, r h = sigma(X W_r^T + b_r) h into column 4, X = [h | A h | A^T h]
//   blend   (1 - z) h + z tanh(X W_h^T + b_h) into `out`, X = [A h | A^T h | r h]
//
// (eq. 9 with packed weights, identity 3). Operands in bfloat16 or float16, sums and gates in float; z is rounded once,
// when it is stored. No workspace besides the caller's columns and no synchronisation, so both can be captured in a
// CUDA graph.
#pragma once

#include "gated_product_plan.h"

namespace ssgrl::cuda {

// The reason why the product cannot be computed on the device, as a sentence; empty where it can.
std::string gates_refusal(const GatedProduct& product, int device);
std::string blend_refusal(const GatedProduct& product, int device);

// Returns `shape` if it is not empty, else the reason why CUTLASS kernels cannot run on the device, else an empty
// string; writes the number of multiprocessors.
std::string refusal(const std::string& shape, int device, int* multiprocessors);

// Enqueues the product on a stream of the device, which must be the current device. Returns an empty string, or the
// error; nothing is enqueued where the *_refusal function gives a reason.
std::string gates(const GatedProduct& product, int device, void* stream);
std::string blend(const GatedProduct& product, int device, void* stream);

}  // namespace ssgrl::cuda
