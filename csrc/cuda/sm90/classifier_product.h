// The classifier product (eq. 10) for compute capability 9.0: one kernel computes f_o in its accumulators, and its
// epilogue applies tanh and multiplies by the row of the class. It stores a few partial sums per row, which
// sum_class_logits (class_rows.h) adds up. No other workspace and no atomics: equal arguments give equal bits.
#pragma once

#include "classifier_product_plan.h"

namespace ssgrl::cuda {

// The reason why the product cannot be computed on the device, as a sentence. Empty where it can; `parts` then receives
// the number of rows of `partial`. The pointer `partial` itself is not read.
std::string classifier_refusal(const ClassifierProduct& product, int device, int64_t* parts);

// Enqueues the product on a stream of the device, which must be the current device. Returns an empty string, or the
// error; nothing is enqueued where classifier_refusal gives a reason.
std::string classifier_product(const ClassifierProduct& product, int device, void* stream);

}  // namespace ssgrl::cuda
