// The gated products (gated_product.h) as CUTLASS kernels (3.x interface, sm_90a): warp-specialised and persistent,
// operands loaded by TMA, products by wgmma, the gates' arithmetic in an epilogue visitor tree. Included by one source
// file per type, because these headers take minutes to compile.
//
// Gates. One batched product with two batches, z and r, which share X: X, and h as the epilogue's operand C, have the
// static batch stride 0. CuTe omits a mode of static stride 0 from the TMA descriptor (construct_tma_gbasis) and
// ignores its coordinate (make_tma_copy_desc), so both batches load the same two-dimensional tensor; a run-time zero
// would put a stride of 0 bytes into the descriptor instead. W_zr and the bias have their own batch strides. z and r h
// lie 4D columns apart, which is the batch stride of the output. It is smaller than the row stride, unlike the nested
// strides in the description of cuTensorMapEncodeTiled; NVIDIA's attention example does the same (77_blackwell_fmha:
// heads lie inside a row, and keys are shared by a static stride of 0).
//
// Blend. One product; z is loaded by a separate TMA load beside C = h, and the output may overwrite h.
//
// Both products write into the buffer they read. No element is read after it was overwritten, because:
//
// 1. Main loops. The product of the gates reads the columns h, A h, A^T h and writes z and r h; the blend reads A h,
//    A^T h, r h and writes h, or memory outside the buffer. No column is both read and written, so neither the order of
//    tiles nor a producer warp that runs ahead into the next tile matters.
// 2. Epilogues. A tile loads its own part of h (and z), which no other tile writes: persistent tiles partition the
//    output, and each is computed once (no stream-K, no split-K). Within a tile the load warp may run ahead by whole
//    subtiles but not behind: the store warps wait for a subtile's load barrier, which counts the bytes of both C and
//    z, then compute the subtile and only then issue its TMA store. So h of a subtile is in shared memory before the
//    same addresses in global memory are written, and subtiles are disjoint.
// 3. Edges. A descriptor ends at row R, at column 3D of X and at column D of h, z and the output. The last step of a
//    main loop reads zeros rather than the next column of the buffer, and the last tile stores nothing into it.
// 4. Kernels run one after another on a stream without programmatic dependent launch, so each sees all stores of the
//    previous one.
#pragma once

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "gated_product_math.h"
#include "gated_product_plan.h"

namespace ssgrl::cuda {

namespace fusion = cutlass::epilogue::fusion;
using cute::_0;
using cute::_1;
using cute::_128;
using cute::_2;
using cute::_256;
using cute::_64;
using cute::Shape;
using cute::Stride;

// Strides of row-major matrices [rows, columns, batch]: one matrix shared by all batches, or one per batch.
using Shared = Stride<int64_t, _1, _0>;
using Batched = Stride<int64_t, _1, int64_t>;

// The last node of a visitor tree: applies an elementwise functor to its children's results, with the batch of the
// tile.
template <class Element>
struct ElementNode : fusion::Sm90VisitorImpl<> {
  using fusion::Sm90VisitorImpl<>::Sm90VisitorImpl;

  struct ConsumerStoreCallbacks : fusion::EmptyConsumerStoreCallbacks {
    Element element;
    CUTLASS_DEVICE explicit ConsumerStoreCallbacks(Element element) : element(element) {}

    template <class Sum, class... Inputs, int N>
    CUTLASS_DEVICE cutlass::Array<float, N> visit(
        cutlass::Array<Sum, N> const&, int, int, int, cutlass::Array<Inputs, N> const&... inputs) const {
      cutlass::Array<float, N> result;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < N; ++i) {
        result[i] = element(static_cast<float>(inputs[i])...);
      }
      return result;
    }
  };

  template <bool ReferenceSrc, class... Args>
  CUTLASS_DEVICE auto get_consumer_store_callbacks(fusion::ConsumerStoreArgs<Args...> const& args) {
    return ConsumerStoreCallbacks(Element::of_batch(cute::get<3>(args.tile_coord_mnkl)));
  }
};

// The kernel configuration of a tile. The largest is cooperative: two warp groups with 64 rows each. Its epilogue does
// not overlap the main loop, but no other shape loads as few bytes per multiply-add. The others use CUTLASS's ping-pong
// schedule: each of two warp groups has its own tile, and the epilogue of one overlaps the main loop of the other.
template <TileName name>
struct Config {
  static constexpr Tile kTile = kTiles[static_cast<int>(name)];
  static constexpr bool kLarge = name == TileName::large;
  static constexpr int kDepth =
      name == TileName::small ? 128 : 64;  // small tiles need longer steps to hide the latency of a load
  using Block = Shape<cute::Int<kTile.rows>, cute::Int<kTile.columns>, cute::Int<kDepth>>;
  using Cluster = Shape<cute::Int<kTile.cluster>, _1, _1>;
  using Mainloop = std::conditional_t<
      kLarge, cutlass::gemm::KernelTmaWarpSpecializedCooperative, cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
  using Epilogue = std::conditional_t<
      kLarge, cutlass::epilogue::TmaWarpSpecializedCooperative, cutlass::epilogue::TmaWarpSpecialized>;
};

template <class T, class Config, class BatchStride>
using Bias = fusion::Sm90RowBroadcast<0, typename Config::Block, T, float, Stride<_0, _1, BatchStride>>;

template <class T, class Config>
using GatesTree =
    fusion::Sm90EVT<ElementNode<GateElement>, fusion::Sm90AccFetch, Bias<T, Config, int64_t>, fusion::Sm90SrcFetch<T>>;

template <class T, class Config>
struct UpdateGate {
  using Descriptor = cutlass::epilogue::collective::detail::EpilogueDescriptor<
      typename Config::Block, cutlass::epilogue::collective::EpilogueTileAuto, T, T, typename Config::Epilogue>;
  using Load = cutlass::epilogue::collective::detail::AuxLoadDescriptor<Descriptor, Shared, T>;
  using Node = fusion::Sm90AuxLoad<
      Load::Stages, typename Load::EpilogueTile, T, Shared, typename Load::SmemLayoutAtom, typename Load::CopyOpS2R,
      128 / cutlass::sizeof_bits<T>::value, false>;
};

template <class T>
using TanhOf = std::conditional_t<std::is_same_v<T, cutlass::bfloat16_t>, FastTanh, ExactTanh>;

template <class T, class Config>
using BlendTree = fusion::Sm90EVT<
    ElementNode<BlendElement<TanhOf<T>>>, fusion::Sm90AccFetch, Bias<T, Config, _0>, fusion::Sm90SrcFetch<T>,
    typename UpdateGate<T, Config>::Node>;

// A product with operands of type X, whose epilogue loads C (void: nothing) and stores Out.
template <class X, class C, class Out, class Config, class WeightStride, class OutStride, class Tree>
struct Product {
  template <class T>
  static constexpr int kAligned = 128 / cutlass::sizeof_bits<T>::value;  // 16 bytes
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename Config::Block, typename Config::Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, C, Shared, 8, Out, OutStride, kAligned<Out>,
      typename Config::Epilogue, Tree>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, X, Shared, kAligned<X>, X, WeightStride, kAligned<X>, float,
      typename Config::Block, typename Config::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Config::Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, Mainloop, Epilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
  using Arguments = typename Gemm::Arguments;

  // `batches` products [R, D] of x [R, 3D] and weights [D, 3D]; the epilogue loads h.
  static Arguments arguments(
      int64_t rows, int64_t dim, int batches, const Place& place, const void* x, int64_t x_stride, const void* weight,
      const void* h, int64_t h_stride) {
    const int m = static_cast<int>(rows), n = static_cast<int>(dim);
    Arguments a{};
    a.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    a.problem_shape = cute::make_shape(m, n, 3 * n, batches);
    a.mainloop.ptr_A = static_cast<const X*>(x);
    cute::get<0>(a.mainloop.dA) = x_stride;
    a.mainloop.ptr_B = static_cast<const X*>(weight);
    cute::get<0>(a.mainloop.dB) = 3 * dim;
    a.epilogue.ptr_C = static_cast<const C*>(h);
    cute::get<0>(a.epilogue.dC) = h_stride;
    a.hw_info.device_id = place.device;
    a.hw_info.sm_count = place.multiprocessors;
    return a;
  }
};

template <class T, class Config>
struct Gates : Product<T, T, T, Config, Batched, Batched, GatesTree<T, Config>> {
  static typename Gates::Arguments arguments(const GatedProduct& p, const Place& place) {
    T* const z = static_cast<T*>(p.columns);
    T* const h = z + p.dim;
    auto a = Gates::Product::arguments(p.rows, p.dim, 2, place, h, p.stride, p.weight, h, p.stride);
    cute::get<2>(a.mainloop.dB) = 3 * p.dim * p.dim;
    a.epilogue.ptr_D = z;
    a.epilogue.dD = {p.stride, _1{}, 4 * p.dim};
    a.epilogue.thread.op_1 = {static_cast<const T*>(p.bias), T(0), {_0{}, _1{}, p.dim}};
    return a;
  }
};

template <class T, class Config>
struct Blend : Product<T, T, T, Config, Shared, Shared, BlendTree<T, Config>> {
  static typename Blend::Arguments arguments(const GatedProduct& p, const Place& place) {
    const T* const z = static_cast<const T*>(p.columns);
    const T* const h = z + p.dim;
    auto a = Blend::Product::arguments(p.rows, p.dim, 1, place, h + p.dim, p.stride, p.weight, h, p.stride);
    a.epilogue.ptr_D = static_cast<T*>(p.out);
    cute::get<0>(a.epilogue.dD) = p.out_stride;
    cute::get<1>(a.epilogue.thread) = {static_cast<const T*>(p.bias), T(0), {}};
    cute::get<3>(a.epilogue.thread) = {z, T(0), {p.stride, _1{}, _0{}}};
    return a;
  }
};

template <class Kernel, class Call>
std::string enqueue(const Call& product, const Place& place) {
  typename Kernel::Gemm gemm;
  const auto arguments = Kernel::arguments(product, place);
  cutlass::Status status = Kernel::Gemm::can_implement(arguments);
  if (status == cutlass::Status::kSuccess) {
    status = gemm.run(arguments, nullptr, static_cast<cudaStream_t>(place.stream));
  }
  return status == cutlass::Status::kSuccess ? ""
                                             : std::string("the product of R = ") + std::to_string(product.rows) +
                                                   " and D = " + std::to_string(product.dim) +
                                                   " failed, CUTLASS says: " + cutlassGetStatusString(status);
}

// Kernel<Config<tile>>
template <template <class> class Kernel, template <TileName> class Config, class Call>
std::string enqueue_tile(const Call& product, TileName tile, const Place& place) {
  switch (tile) {
    case TileName::small:
      return enqueue<Kernel<Config<TileName::small>>>(product, place);
    case TileName::medium:
      return enqueue<Kernel<Config<TileName::medium>>>(product, place);
    default:
      return enqueue<Kernel<Config<TileName::large>>>(product, place);
  }
}

}  // namespace ssgrl::cuda
