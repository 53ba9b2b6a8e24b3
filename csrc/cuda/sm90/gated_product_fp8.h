// The gated products in e4m3 for inference: operands of one byte, scaled; state, gates and biases in bfloat16.
//
// X8 [R, 4D] holds [h / s | A h / (s r_1) | A^T h / (s r_2) | r h / s] of each row. s is a power of two from the
// largest |h_0| of the row's image (a convex blend with tanh keeps |h| <= max(|h_0|, 1)), r_1 and r_2 are powers of two
// from the largest sums of the graph's rows and columns. A product's sum runs over three blocks, so r_1 and r_2 cannot
// come out of it: they go into the weights. Row n of W8 is W[n, block b] r_b / t_n, rounded, with t_n so chosen that
// the row fills e4m3's range; t_n s multiplies the sum in the epilogue. Who writes X8: the aggregation, which reads h
// in bfloat16, writes blocks 0 to 2; the reset gate's product writes block 3.
#pragma once

#include "gated_product_fp8_plan.h"

namespace ssgrl::cuda {

// Enqueue the products on a stream of the device, which must be the current one: z and then r h; the new h. An empty
// string, or what failed or why the product cannot be computed there, in a sentence; what is refused is not enqueued.
std::string gates8(const GatedProduct8& product, int device, void* stream);
std::string blend8(const GatedProduct8& product, int device, void* stream);

}  // namespace ssgrl::cuda
