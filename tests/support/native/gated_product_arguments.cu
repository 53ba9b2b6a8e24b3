// Prints what the gated products would hand to the GPU (product_arguments.h).
//
//   arguments R D STRIDE
//
// prints, for each product and tile, a line a descriptor, in the order X, W, C, D (, z), and then that of the product.
#include "cuda/sm90/gated_product_fp8.cuh"
#include "product_arguments.h"

namespace ssgrl::cuda {

template <TileName tile>
void show_tile(const GatedProduct& p, const GatedProduct8& p8) {
  show<Gates<cutlass::bfloat16_t, Config<tile>>>("gates", tile, p);
  show<Blend<cutlass::bfloat16_t, Config<tile>>>("blend", tile, p);
  if (shape_refusal(p8, true).empty()) {
    show<Update8<Config8<tile>>>("update8", tile, p8);
    show<Reset8<Config8<tile>>>("reset8", tile, p8);
    show<Blend8<Config8<tile>>>("blend8", tile, p8);
  }
}

}  // namespace ssgrl::cuda

// The workspace from byte 2^41 on, the weight from 2^42; the blend in place. In e4m3: X from 2^43, h from 2^44, z from
// 2^45, the blend in place too.
int main(int, char** argv) {
  using namespace ssgrl::cuda;
  const int64_t rows = std::atoll(argv[1]), dim = std::atoll(argv[2]), stride = std::atoll(argv[3]);
  const GatedProduct p{HalfType::bfloat16, rows, dim, at(41), stride, at(42), nullptr, at(41, 2 * dim), stride};
  const auto* scale = static_cast<const float*>(at(46));
  const GatedProduct8 q{rows, dim, at(43), 4 * dim, at(42), scale, nullptr, scale, at(44), at(45), at(44), stride};
  show_tile<TileName::small>(p, q);
  show_tile<TileName::medium>(p, q);
  show_tile<TileName::large>(p, q);
  return shape_refusal(p, true).empty() ? 0 : 1;
}
