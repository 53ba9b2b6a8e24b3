// The gated products in e4m3 for inference: scaled one-byte operands; state, gates and biases in bfloat16.
//
// X8 [R, 4D] holds [h / s | A h / (s r_1) | A^T h / (s r_2) | r h / s] for each row. s is a power of two derived from
// the largest |h_0| of the row's image (the new state is a convex combination of h and a tanh, so |h| <= max(|h_0|,
// 1)); r_1 and r_2 are powers of two derived from the largest row and column sums of the graph. The sum of a product
// runs over three blocks, so r_1 and r_2 cannot be factored out of it; they are part of the weights. Row n of W8 is
// W[n, block b] r_b / t_n, rounded, with t_n chosen such that the row uses the range of e4m3; the epilogue multiplies
// the sum by t_n s. The aggregation, which reads h in bfloat16, writes blocks 0 to 2 of X8; the reset gate's product
// writes block 3.
#pragma once

#include "gated_product_fp8_plan.h"

namespace ssgrl::cuda {

// Enqueue the products (gates8: z, then r h; blend8: the new h) on a stream of the device, which must be the current
// device. Return an empty string, or as a sentence the error or the reason why the product cannot be computed there, in
// which case nothing is enqueued.
std::string gates8(const GatedProduct8& product, int device, void* stream);
std::string blend8(const GatedProduct8& product, int device, void* stream);

}  // namespace ssgrl::cuda
