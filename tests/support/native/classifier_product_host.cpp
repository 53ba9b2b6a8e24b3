// The parts of the classifier's product that need no GPU, as C functions for tests/cuda/test_cuda_classifier.py.
#include "cuda/sm90/classifier_product_plan.h"
#include "cuda/sm90/gated_product_math.h"

using namespace ssgrl::cuda;

namespace {

template <class Tanh>
void terms(int64_t n, const float* sums, const float* bias, const float* weight, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = ClassTerm<Tanh>{}(sums[i], bias[i], weight[i]);
  }
}

}  // namespace

extern "C" {

void term_fast(int64_t n, const float* sums, const float* bias, const float* weight, float* out) {
  terms<FastTanh>(n, sums, bias, weight, out);
}

void term_exact(int64_t n, const float* sums, const float* bias, const float* weight, float* out) {
  terms<ExactTanh>(n, sums, bias, weight, out);
}

// The reason, or an empty text; addresses in bytes, 0 for none.
const char* refusal(
    int64_t rows, int64_t dim, int64_t outputs, int64_t classes, int64_t h_T, int64_t h0, int64_t weight_o,
    int64_t weight_c) {
  static std::string reason;
  const auto at = [](int64_t address) { return reinterpret_cast<void*>(address); };
  reason = shape_refusal(
      ClassifierProduct{
          HalfType::bfloat16, rows, dim, outputs, classes, at(h_T), at(h0), at(weight_o), nullptr, at(weight_c),
          nullptr});
  return reason.c_str();
}

// How many sums a row has, and the columns of a tile.
void parts(int64_t rows, int64_t outputs, int64_t multiprocessors, int64_t* found) {
  ClassifierProduct product{};
  product.rows = rows;
  product.outputs = outputs;
  const TileName tile = classifier_tile(product, multiprocessors);
  found[0] = classifier_parts(product, tile);
  found[1] = kTiles[static_cast<int>(tile)].columns;
}

void tile_size(int name, int64_t* size) {
  size[0] = kTiles[name].rows;
  size[1] = kTiles[name].columns;
  size[2] = kTiles[name].cluster;
}

}  // extern "C"
