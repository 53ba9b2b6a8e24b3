// The gated products in e4m3 (gated_product_fp8.h) as CUTLASS kernels. Three products instead of two: z is stored in
// bfloat16 and r h in e4m3, so they cannot be two batches of one product. The argument in gated_product.cuh about
// overwriting holds here too: no main loop reads the block that its product writes, and the blend reads its own tile of
// h before storing it.
#pragma once

#include "gated_product.cuh"
#include "gated_product_fp8_plan.h"

namespace ssgrl::cuda {

using E4m3 = cutlass::float_e4m3_t;
using State = cutlass::bfloat16_t;

// The tiles of the 16-bit types with steps twice as deep. CUTLASS's fast accumulation keeps partial sums with about 14
// bits in the tensor cores. Promoting them to float would double the accumulators, for which the largest tile has no
// registers, and the 4 significant bits of the operands cause a larger error.
template <TileName name>
struct Config8 : Config<name> {
  using Half = Config<name>;
  using Block = Shape<cute::Int<Half::kTile.rows>, cute::Int<Half::kTile.columns>, cute::Int<2 * Half::kDepth>>;
  using Mainloop = std::conditional_t<
      Half::kLarge, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum,
      cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum>;
};

template <class Config>
using ScaleRow = Bias<float, Config, _0>;
template <class Config>
using BiasRow = Bias<State, Config, _0>;
template <class Config>
using ImageScale = fusion::Sm90ColBroadcast<0, typename Config::Block, float, float, Stride<_1, _0, _0>>;
// A node whose children are the sum, the channel's scale and bias, the scale of the row's image, and other loaded
// values.
template <class Element, class Config, class... Loads>
using Tree8 = fusion::Sm90EVT<
    ElementNode<Element>, fusion::Sm90AccFetch, ScaleRow<Config>, BiasRow<Config>, ImageScale<Config>, Loads...>;

// `gate`: 0 (z) or 1 (r), the half of the gates' weight, scale and bias.
template <class Product>
typename Product::Arguments arguments8(const GatedProduct8& p, const Place& place, int block, int gate, const void* h) {
  const int64_t row = gate * p.dim;
  return Product::arguments(
      p.rows, p.dim, 1, place, static_cast<const E4m3*>(p.inputs) + block * p.dim, p.inputs_stride,
      static_cast<const E4m3*>(p.weight) + row * 3 * p.dim, h, p.state_stride);
}

// The loads common to all trees: scale and bias of the channel, scale of the image.
template <class Tree>
void set_vectors(Tree& tree, const GatedProduct8& p, int gate) {
  const State* const bias = static_cast<const State*>(p.bias);
  cute::get<1>(tree) = {p.weight_scale + gate * p.dim, 0.0f, {}};
  cute::get<2>(tree) = {bias == nullptr ? nullptr : bias + gate * p.dim, State(0), {}};
  cute::get<3>(tree) = {p.row_scale, 0.0f, {}};
}

template <class Config>
struct Update8 : Product<E4m3, void, State, Config, Shared, Shared, Tree8<ScaledUpdate, Config>> {
  static typename Update8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<typename Update8::Product>(p, place, 0, 0, nullptr);
    a.epilogue.ptr_D = static_cast<State*>(p.z);
    cute::get<0>(a.epilogue.dD) = p.state_stride;
    set_vectors(a.epilogue.thread, p, 0);
    return a;
  }
};

template <class Config>
struct Reset8
    : Product<E4m3, State, E4m3, Config, Shared, Shared, Tree8<ScaledReset, Config, fusion::Sm90SrcFetch<State>>> {
  static typename Reset8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<typename Reset8::Product>(p, place, 0, 1, p.h);
    a.epilogue.ptr_D = static_cast<E4m3*>(p.inputs) + 3 * p.dim;
    cute::get<0>(a.epilogue.dD) = p.inputs_stride;
    set_vectors(a.epilogue.thread, p, 1);
    return a;
  }
};

template <class Config>
using Blend8Tree =
    Tree8<ScaledBlend<FastTanh>, Config, fusion::Sm90SrcFetch<State>, typename UpdateGate<State, Config>::Node>;

template <class Config>
struct Blend8 : Product<E4m3, State, State, Config, Shared, Shared, Blend8Tree<Config>> {
  static typename Blend8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<typename Blend8::Product>(p, place, 1, 0, p.h);
    a.epilogue.ptr_D = static_cast<State*>(p.out);
    cute::get<0>(a.epilogue.dD) = p.state_stride;
    set_vectors(a.epilogue.thread, p, 0);
    cute::get<5>(a.epilogue.thread) = {static_cast<const State*>(p.z), State(0), {p.state_stride, _1{}, _0{}}};
    return a;
  }
};

}  // namespace ssgrl::cuda
