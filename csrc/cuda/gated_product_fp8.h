// The gated products in e4m3 for inference: operands of one byte, scaled; state, gates and biases in bfloat16.
//
// X8 [R, 4D] holds [h | A h | A^T h | r h], each block divided by a scale of its own, s_0 .. s_3, which is fixed when
// the model is prepared (from the largest magnitude seen in calibration; a convex blend with tanh keeps |h| <=
// max(|h0|, 1)). A product's sum runs over three blocks, so their scales cannot come out of it: they go into the
// weights. Row n of W8 is W[n, block b] s_b / t_n, rounded, with t_n so chosen that the row fills e4m3's range; t_n
// multiplies the sum in the epilogue. Who writes X8: the aggregation, which reads h in bfloat16, writes blocks 0 to 2;
// the reset gate's product writes block 3. Both saturate at +-448, infinities too; NaN stays NaN.
#pragma once

#include <cuda_runtime_api.h>

#include "gated_product_fp8_plan.h"

namespace ssgrl::cuda {

// Why the products cannot be computed on the device, as a sentence; empty where they can.
std::string gates8_refusal(const GatedProduct8& product, int device);
std::string blend8_refusal(const GatedProduct8& product, int device);

// Enqueue the products on a stream of the device, which must be the current one: z and then r h; the new h. An empty
// string, or what failed; a product that is refused is not enqueued.
std::string gates8(const GatedProduct8& product, int device, cudaStream_t stream);
std::string blend8(const GatedProduct8& product, int device, cudaStream_t stream);

}  // namespace ssgrl::cuda
