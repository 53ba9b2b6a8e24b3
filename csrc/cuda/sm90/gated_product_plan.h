// Arguments of a gated product, their requirements, and the choice of its tile. Plain C++ without CUDA, so that the
// host tests can compile it.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace ssgrl::cuda {

enum class HalfType { bfloat16, float16 };

// One of the two products of a propagation step (eq. 7-9) for inference, over the R = B C rows of a workspace with the
// columns [z | h | A h | A^T h | r h], each D wide.
struct GatedProduct {
  HalfType type;           // of every array; sums and gates are in float
  int64_t rows;            // R
  int64_t dim;             // D
  void* columns;           // [R, 5D], 16-byte aligned
  int64_t stride;          // row stride of the workspace, in elements; at least 5D
  const void* weight;      // gates: [2D, 3D], the rows of z first; blend: [D, 3D]. Contiguous, 16-byte aligned
  const void* bias;        // gates: [2D]; blend: [D]; or null
  void* out = nullptr;     // blend only: [R, D], column h of the workspace or memory outside the workspace
  int64_t out_stride = 0;  // row stride of `out`, in elements
};

// The tile of the output that a block computes; blocks form clusters along the rows.
struct Tile {
  int64_t rows, columns;
  int64_t cluster;  // blocks that share the tile's columns of the weight
  double rate;      // multiply-adds per second of a busy multiprocessor, relative to the largest tile
};

enum class TileName { small, medium, large };

// The rates are estimates, not measurements. They follow from the operand bytes that a block reads from the
// second-level cache per multiply-add (1 for the largest tile with its cluster, then 1.5, then 4 times as much), damped
// because the cache is not the only limit. They decide only where two tiles are close.
constexpr Tile kTiles[] = {{64, 64, 1, 0.5}, {128, 128, 2, 0.85}, {128, 256, 2, 1.0}};

// Estimated time of a persistent grid, in multiply-adds of the largest tile: tiles run in waves of one per
// multiprocessor, and an incomplete last wave takes as long as a full one. Rows of tiles are rounded up to whole
// clusters.
inline double work(const Tile& tile, int64_t rows, int64_t dim, int64_t batches, int64_t multiprocessors) {
  const int64_t high = tile.rows * tile.cluster;
  const int64_t down = (rows + high - 1) / high * tile.cluster;
  const int64_t across = (dim + tile.columns - 1) / tile.columns;
  const int64_t at_once = multiprocessors / tile.cluster * tile.cluster;
  const int64_t waves = at_once > 0 ? (down * across * batches + at_once - 1) / at_once : down * across * batches;
  return static_cast<double>(waves) * static_cast<double>(tile.rows * tile.columns) / tile.rate;
}

// The tile with the least estimated time: a small one for few rows (reading the weights dominates and is spread over
// more blocks), the largest for many rows, where an incomplete wave matters little.
inline TileName choose_tile(int64_t rows, int64_t dim, int64_t batches, int64_t multiprocessors) {
  int best = 0;
  for (int i = 1; i < 3; ++i) {
    if (work(kTiles[i], rows, dim, batches, multiprocessors) <
        work(kTiles[best], rows, dim, batches, multiprocessors)) {
      best = i;
    }
  }
  return static_cast<TileName>(best);
}

inline std::string misaligned(const char* name, const void* pointer) {
  const auto rest = reinterpret_cast<uintptr_t>(pointer) % 16;
  return rest == 0 ? ""
                   : std::string(name) + " must be 16-byte aligned, got an address " + std::to_string(rest) + " past";
}

inline std::string wrong_stride(const char* name, int64_t stride, int64_t least) {
  if (stride % 8 != 0 || stride < least || stride > std::numeric_limits<int32_t>::max()) {
    return std::string(name) + " must be a multiple of 8 from " + std::to_string(least) + " to 2^31, got " +
           std::to_string(stride);
  }
  return "";
}

inline std::string rows_refusal(int64_t rows, int64_t dim) {
  if (rows < 1 || rows > std::numeric_limits<int32_t>::max() - 256) {
    return "R must lie between 1 and 2^31 - 257, got " + std::to_string(rows);
  }
  if (dim < 8 || dim % 8 != 0 || dim > int64_t{1} << 18) {
    return "D must be a multiple of 8 from 8 to 2^18, got " + std::to_string(dim);
  }
  return "";
}

// The reason why these kernels cannot be used for the shapes and addresses, as a sentence; empty where they can. TMA
// needs addresses and strides in multiples of 16 bytes; CUTLASS neither checks them nor reports an invalid descriptor.
inline std::string shape_refusal(const GatedProduct& p, bool blend) {
  for (const std::string& reason :
       {rows_refusal(p.rows, p.dim), wrong_stride("the workspace's row stride", p.stride, 5 * p.dim),
        misaligned("the workspace", p.columns), misaligned("the weight", p.weight)}) {
    if (!reason.empty()) {
      return reason;
    }
  }
  if (p.columns == nullptr || p.weight == nullptr || (blend && p.out == nullptr)) {
    return "the workspace, the weight and the blend's output must be given, got a null pointer";
  }
  if (!blend) {
    return "";
  }
  for (const std::string& reason :
       {wrong_stride("the output's row stride", p.out_stride, p.dim), misaligned("the output", p.out)}) {
    if (!reason.empty()) {
      return reason;
    }
  }
  const auto begin = reinterpret_cast<uintptr_t>(p.columns), out = reinterpret_cast<uintptr_t>(p.out);
  const auto bytes = [&](int64_t stride, int64_t width) { return 2 * ((p.rows - 1) * stride + width); };
  const bool apart = out >= begin + bytes(p.stride, 5 * p.dim) || begin >= out + bytes(p.out_stride, p.dim);
  const bool own = out == begin + 2 * p.dim && p.out_stride == p.stride;
  return apart || own ? "" : "the blend's output must be h's own column or lie outside the workspace, got another part";
}

// The device and stream of a kernel.
struct Place {
  int device;
  int multiprocessors;
  void* stream;  // cudaStream_t
};

// The kernels, one file per type (gated_product_*.cu). Return an empty string or the error.
template <HalfType type>
std::string gates_kernel(const GatedProduct& product, TileName tile, const Place& place);
template <HalfType type>
std::string blend_kernel(const GatedProduct& product, TileName tile, const Place& place);

}  // namespace ssgrl::cuda
