// Prints what the classifier's product would hand to the GPU (product_arguments.h).
//
//   arguments R D O C
//
// prints, for each tile, a line a descriptor, in the order h_T, W_a, h0, W_b, C, and then that of the product. Last
// comes a line `rows tile quads` a tile, with 1 where each row of the tile has all its accumulators in four
// neighbouring lanes, none twice.
#include <vector>

#include "cuda/sm90/classifier_product.cuh"
#include "product_arguments.h"

namespace ssgrl::cuda {

template <class Kernel>
bool quads_own_rows() {
  using namespace cute;
  using Epilogue = typename Kernel::Epilogue;
  using Block = typename Kernel::Mainloop::TileShape;
  const typename Kernel::Mainloop::TiledMma mma;
  const auto copy = make_tiled_copy_S(
      Copy_Atom<typename Epilogue::CopyOpR2S, uint16_t>{}, make_tiled_copy_C_atom(typename Epilogue::CopyAtomC{}, mma));
  const Tensor tile = flat_divide(
      make_identity_tensor(make_shape(size<0>(Block{}), size<1>(Block{}))), typename Epilogue::EpilogueTile{});
  const int across = size<1>(Block{});
  std::vector<int> owner(size<0>(Block{}), -1), seen(size<0>(Block{}) * across, 0);
  bool right = true;
  for (int thread = 0; thread < size(mma); ++thread) {
    const auto own = copy.get_slice(thread).partition_S(tile);
    for (int i = 0; i < size(own); ++i) {
      const int row = get<0>(own(i)), column = get<1>(own(i));
      right = right && (owner[row] == -1 || owner[row] == thread / 4) && seen[row * across + column]++ == 0;
      owner[row] = thread / 4;
    }
  }
  for (const int times : seen) {
    right = right && times == 1;
  }
  return right;
}

template <TileName tile>
void show_tile(ClassifierProduct p) {
  using Kernel = Classifier<cutlass::bfloat16_t, Config<tile>>;
  show<Kernel>("pairs", tile, p);
  std::printf("rows %d %d\n", static_cast<int>(tile), quads_own_rows<Kernel>());
}

}  // namespace ssgrl::cuda

// h_T from byte 2^42 on, h0 below it from 2^41, weight_o from 2^43, weight_c from 2^45.
int main(int, char** argv) {
  using namespace ssgrl::cuda;
  const auto number = [&](int i) { return static_cast<int64_t>(std::atoll(argv[i])); };
  const ClassifierProduct p{
      HalfType::bfloat16, number(1), number(2), number(3), number(4), at(42), at(41), at(43), nullptr, at(45), nullptr};
  show_tile<TileName::small>(p);
  show_tile<TileName::medium>(p);
  show_tile<TileName::large>(p);
  return shape_refusal(p).empty() ? 0 : 1;
}
