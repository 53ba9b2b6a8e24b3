// Launchers of aggregate.h.

#include <algorithm>
#include <stdexcept>
#include <string>

#include "aggregate.cuh"
#include "aggregate.h"
#include "cuda/common/rows.h"
#include "state_scale.cuh"

namespace ssgrl::cuda {
namespace {

constexpr int64_t kMultiprocessors = 132;

AggregatePlan plan(const void* adjacency, int64_t h_stride, int64_t images, int64_t classes, int64_t dim) {
  AggregatePlan n{};
  n.classes = classes;
  n.dim = dim;
  n.h_stride = h_stride;
  const int64_t warps = ceil_div(classes, 16), tiles = ceil_div(warps, 8);
  n.tiles = static_cast<int>(tiles);
  n.rows = tiles == 0 ? 16 : static_cast<int>(ceil_div(warps, tiles) * 16);
  n.depth = n.whole() ? n.rows : 32;
  n.stages = static_cast<int>(ceil_div(classes, n.depth));
  // Channels per block: fewer where the grid would leave a third of the GPU idle.
  n.channels = n.whole() ? 64 : 128;
  while (n.channels > 32 && images * ceil_div(dim, n.channels) * tiles * 3 < kMultiprocessors * 2) {
    n.channels /= 2;
  }
  n.slabs = ceil_div(dim, n.channels);
  n.row_pieces = RowPieces::of(n.rows);
  n.depth_pieces = RowPieces::of(n.depth);
  n.channel_pieces = RowPieces::of(n.channels);
  n.access = classes % 8 == 0 && at_multiple(adjacency, 16) ? 8 : classes % 4 == 0 && at_multiple(adjacency, 8) ? 4 : 1;
  return n;
}

template <class T, class Output>
void run(
    const T* adjacency, const T* h, int64_t h_stride, const Output& output, int64_t images, int64_t classes,
    int64_t dim) {
  const AggregatePlan n = plan(adjacency, h_stride, images, classes, dim);
  const int64_t blocks = images * n.slabs * n.tiles;
  if (blocks > 0x7fffffff) {
    throw std::runtime_error("aggregate: fewer than 2^31 blocks fit a grid, got " + std::to_string(blocks));
  }
  const dim3 grid(static_cast<unsigned>(blocks));
  const int width = std::min(n.channels, 64);
  const dim3 block(static_cast<unsigned>(n.rows / 16 * (n.channels / width) * 32));
  const size_t bytes = sizeof(T) * n.stage_size() * std::min(n.stages, kAggregateStages);
  if (width == 64) {
    launch(aggregate_kernel<T, 8, Output>, grid, block, bytes, n, adjacency, h, output);
  } else {
    launch(aggregate_kernel<T, 4, Output>, grid, block, bytes, n, adjacency, h, output);
  }
}

bool serves(const void* h, int64_t h_stride, const void* out, int64_t out_stride, int64_t dim) {
  return dim % 8 == 0 && h_stride % 8 == 0 && out_stride % 8 == 0 && at_multiple(h, 16) && at_multiple(out, 16);
}

}  // namespace

template <class T>
void aggregate(
    const T* adjacency, const T* h, int64_t h_stride, T* out, int64_t out_stride, int64_t images, int64_t classes,
    int64_t dim) {
  if (!serves(h, h_stride, out, out_stride, dim)) {
    throw std::runtime_error("aggregate: D and the strides must be multiples of 8, h and out 16-byte aligned");
  }
  run(adjacency, h, h_stride, PlainOutput<T>{out, out_stride}, images, classes, dim);
}

void aggregate8(
    const BFloat16* adjacency, const BFloat16* h, int64_t h_stride, const float* scale, float inward, float outward,
    uint8_t* x8, int64_t x8_stride, int64_t images, int64_t classes, int64_t dim) {
  if (!serves(h, h_stride, x8, x8_stride, dim) || dim % 16 != 0 || x8_stride % 16 != 0) {
    throw std::runtime_error("aggregate8: D and X8's stride must be multiples of 16, h and X8 16-byte aligned");
  }
  run(adjacency, h, h_stride, ScaledOutput{x8, x8_stride, scale, inward, outward}, images, classes, dim);
}

void state_scale(const BFloat16* h0, float* scale, int64_t images, int64_t classes, int64_t dim) {
  if (classes == 0) {
    return;
  }
  by_vector<BFloat16>(classes * dim, {h0}, [&](auto width) {
    constexpr int V = decltype(width)::value;
    const int64_t values = classes * dim, each = kTopThreads * V;
    // enough parts for four blocks per multiprocessor, at most C per image and none smaller than one pass of a block
    const int64_t wanted =
        std::min(ceil_div(4 * kMultiprocessors, std::max<int64_t>(images, 1)), ceil_div(values, each));
    const int64_t part = ceil_div(ceil_div(values, std::max<int64_t>(1, std::min(wanted, classes))), each) * each;
    const int64_t parts = ceil_div(values, part);
    const dim3 grid(one_a_row(images).x, static_cast<unsigned>(parts));
    launch(part_tops_kernel<V>, grid, dim3(kTopThreads), 0, h0, scale, classes, values, part);
    launch(image_scale_kernel, one_a_row(images), dim3(32), 0, scale, classes, parts);
  });
}

template void aggregate(const BFloat16*, const BFloat16*, int64_t, BFloat16*, int64_t, int64_t, int64_t, int64_t);
template void aggregate(const Half*, const Half*, int64_t, Half*, int64_t, int64_t, int64_t, int64_t);

}  // namespace ssgrl::cuda
