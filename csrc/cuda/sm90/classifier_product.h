// The classifier's product (eq. 10) for compute capability 9.0: one kernel computes f_o in its accumulators, and its
// epilogue takes the tanh and the product with the class's own row. What leaves it is a few sums a row, which
// class_logits of classifier.h adds up. No workspace beyond them, no atomics: the same call gives the same bits.
#pragma once

#include "classifier_product_plan.h"

namespace ssgrl::cuda {

// Why the product cannot be computed on the device, as a sentence; empty where it can, and then `parts` is the number
// of rows of `partial`. That pointer itself is not looked at.
std::string classifier_refusal(const ClassifierProduct& product, int device, int64_t* parts);

// Enqueues the product on a stream of the device, which must be the current one. Returns an empty string, or what
// failed; a product that is refused is not enqueued.
std::string classifier_product(const ClassifierProduct& product, int device, void* stream);

}  // namespace ssgrl::cuda
