// How the gate weights map onto the columns of X = [h | A h | A^T h | r h] and of the gates G = [z | r | n].
//
// A block is one product: G[:, out .. out + width] += X[:, first .. last] weight^T, columns in units of D. Packed
// weights give two blocks (identity 3), the published layout six. Where both gates use U^z, as in the published code
// (`tied`), U^z h is a block of its own whose result is added to z and r. Forward, backward and weight gradients use
// the same list.
#pragma once

#include "tensors.h"

namespace ssgrl {

struct Block {
  Tensor weight;        // [width D, (last - first) D], a view of a stored tensor
  int64_t first, last;  // columns of X
  int64_t out, width;   // columns of G
  bool shared;          // the result is added to z and to r
};

constexpr int64_t kState = 0, kReset = 3;       // columns of X: h, and r h
constexpr int64_t kCandidate = 2, kShared = 3;  // columns of G: n; of the gradient of G, if tied: d_z + d_r

struct GatePlan {
  std::vector<Block> gates;      // z and r, from h, A h, A^T h
  std::vector<Block> candidate;  // n, from A h, A^T h, r h
};

inline GatePlan gate_plan(const TensorList& w, bool tied, int64_t dim) {
  if (w.size() == 2) {
    const Block candidate{w[1], 1, 4, kCandidate, 1, false};
    if (!tied) {
      return {{{w[0], 0, 3, 0, 2, false}}, {candidate}};
    }
    const Tensor state = columns(rows(w[0], 0, dim), 0, dim);
    return {{{state, 0, 1, 0, 1, true}, {columns(w[0], dim, 3 * dim), 1, 3, 0, 2, false}}, {candidate}};
  }
  GatePlan plan;
  plan.gates.push_back({w[1], 0, 1, 0, 1, tied});
  plan.gates.push_back({w[0], 1, 3, 0, 1, false});
  if (!tied) {
    plan.gates.push_back({w[3], 0, 1, 1, 1, false});
  }
  plan.gates.push_back({w[2], 1, 3, 1, 1, false});
  plan.candidate = {{w[4], 1, 3, kCandidate, 1, false}, {w[5], 3, 4, kCandidate, 1, false}};
  return plan;
}

// Tracks which columns were written, so that the first product overwrites and later ones add.
class Written {
 public:
  bool test_and_set(int64_t begin, int64_t end) {
    const bool before = flags_[begin];
    for (int64_t i = begin; i < end; ++i) {
      flags_[i] = true;
    }
    return before;
  }

 private:
  bool flags_[4] = {false, false, false, false};
};

}  // namespace ssgrl
