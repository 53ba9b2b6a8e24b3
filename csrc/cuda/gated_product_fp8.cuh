// The gated products in e4m3 as CUTLASS kernels. Three products in place of two: z is stored in bfloat16 and r h in
// e4m3, so they cannot be batches of one. What the head of gated_product.cuh says of overwriting holds here too: no
// product's main loop reads the block it writes, and the blend reads its own tile of h before it stores it.
#pragma once

#include "gated_product.cuh"
#include "gated_product_fp8_plan.h"

namespace ssgrl::cuda {

using E4m3 = cutlass::float_e4m3_t;
using State = cutlass::bfloat16_t;

// One tile shape: a smaller one fetches more from the second-level cache for each multiply-add than that gives at this
// rate. Fast accumulation keeps partial sums of about 14 bits in the tensor cores; promoting them to float would double
// the accumulators, which this tile has no registers for, and the operands' own 4 bits cost more.
struct Config8 {
  using Block = Shape<_128, _256, _128>;
  using Cluster = Shape<_2, _1, _1>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};

using ScaleRow = Bias<float, Config8, _0>;
using BiasRow = Bias<State, Config8, _0>;
using UpdateTree = fusion::Sm90EVT<ElementNode<ScaledUpdate>, fusion::Sm90AccFetch, ScaleRow, BiasRow>;
using ResetTree = fusion::Sm90EVT<
    ElementNode<ScaledReset>, fusion::Sm90AccFetch, ScaleRow, BiasRow, fusion::Sm90SrcFetch<State>,
    fusion::Sm90ScalarBroadcast<float>>;
using Blend8Tree = fusion::Sm90EVT<
    ElementNode<ScaledBlend<FastTanh>>, fusion::Sm90AccFetch, ScaleRow, BiasRow, fusion::Sm90SrcFetch<State>,
    UpdateGate<State, Config8>::Node>;

// `gate`: 0 or 1, which half of the gates' weight, scale and bias.
template <class Product>
typename Product::Arguments arguments8(const GatedProduct8& p, const Place& place, int block, int gate, const void* h) {
  const int64_t row = gate * p.dim;
  return Product::arguments(
      p.rows, p.dim, 1, place, static_cast<const E4m3*>(p.inputs) + block * p.dim, p.inputs_stride,
      static_cast<const E4m3*>(p.weight) + row * 3 * p.dim, h, p.state_stride);
}

template <class Scale, class Bias>
void set_rows(Scale& scale, Bias& bias, const GatedProduct8& p, int gate) {
  const State* const first = static_cast<const State*>(p.bias);
  scale = {p.weight_scale + gate * p.dim, 0.0f, {}};
  bias = {first == nullptr ? nullptr : first + gate * p.dim, State(0), {}};
}

struct Update8 : Product<E4m3, void, State, Config8, Shared, Shared, UpdateTree> {
  static Update8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<Update8::Product>(p, place, 0, 0, nullptr);
    a.epilogue.ptr_D = static_cast<State*>(p.z);
    cute::get<0>(a.epilogue.dD) = p.state_stride;
    set_rows(a.epilogue.thread.op_1, a.epilogue.thread.op_2, p, 0);
    return a;
  }
};

struct Reset8 : Product<E4m3, State, E4m3, Config8, Shared, Shared, ResetTree> {
  static Reset8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<Reset8::Product>(p, place, 0, 1, p.h);
    a.epilogue.ptr_D = static_cast<E4m3*>(p.inputs) + 3 * p.dim;
    cute::get<0>(a.epilogue.dD) = p.inputs_stride;
    set_rows(cute::get<1>(a.epilogue.thread), cute::get<2>(a.epilogue.thread), p, 1);
    cute::get<4>(a.epilogue.thread).scalars[0] = 1.0f / p.reset_scale;
    return a;
  }
};

struct Blend8 : Product<E4m3, State, State, Config8, Shared, Shared, Blend8Tree> {
  static Blend8::Arguments arguments(const GatedProduct8& p, const Place& place) {
    auto a = arguments8<Blend8::Product>(p, place, 1, 0, p.h);
    a.epilogue.ptr_D = static_cast<State*>(p.out);
    cute::get<0>(a.epilogue.dD) = p.state_stride;
    set_rows(cute::get<1>(a.epilogue.thread), cute::get<2>(a.epilogue.thread), p, 0);
    cute::get<4>(a.epilogue.thread) = {static_cast<const State*>(p.z), State(0), {p.state_stride, _1{}, _0{}}};
    return a;
  }
};

}  // namespace ssgrl::cuda
