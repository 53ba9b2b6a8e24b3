// Kernel of aggregate.h: A h and A^T h of an image (eq. 8) by tensor-core products that share the fragments of h.
//
//   inward[c, n] = sum_c' A[c, c'] h[c', n]      outward[c, n] = sum_c' A[c', c] h[c', n]
//
// Tiles. A block computes both outputs of one image for a tile of classes and a slab of channels; a warp computes 16
// classes x 32 or 64 channels of it. For each 16 classes c' a warp loads one fragment of A (ldmatrix), one of A^T
// (ldmatrix.trans) and the fragments of h, which serve both products. The sum over c' proceeds in stages, with three
// stages in shared memory (cp.async).
//
// Up to 128 classes the tile holds all classes and there is one stage: A is in shared memory once and is read in both
// orders, and h is read once from memory. Blocks are then small (5 warps and 25 KiB at C = 80 and 64 channels), so
// several run on a multiprocessor and the loads of some overlap the stores of others. Traffic at C = 80, D = 2048 and
// B = 64: h 21 MB and outputs 42 MB, once each, and A 26 MB from the second-level cache.
//
// Above 128 classes a stage is 32 classes, with a strip of A's rows and a strip of its columns from the second-level
// cache. h is loaded once per tile; tiles of the same slab are neighbours in the grid, so it comes from memory once.
// Blocks take 128 channels where there are enough of them, because the strips then dominate the traffic: at C = 500,
// D = 2048 and B = 16, h and outputs are 98 MB and the second-level cache delivers 393 MB, as much as two separate
// products with tiles of 128 x 256 would read. Shared memory is at most 81 KiB.
//
// A thread uses at most 126 registers on sm_80, sm_90a and sm_100 without spills; half of them hold sums.
//
// Elements outside C and D are zero in shared memory and are not read, so images do not mix. The lanes of a quad
// exchange fragments by shuffles into rows: each lane stores 16 bytes, a quad 64 contiguous bytes.

#pragma once

#include "cuda/common/e4m3.cuh"
#include "cuda/common/halves.cuh"
#include "cuda/common/vector.cuh"
#include "cuda/common/warp.cuh"

namespace ssgrl::cuda {

constexpr int kAggregateThreads = 512, kAggregateStages = 3;

// Number of pieces of eight elements in a row of shared memory, at most 16; i / count for i <= 512 without a division.
struct RowPieces {
  int count;
  uint32_t reciprocal;

  static RowPieces of(int elements) { return {elements / 8, 65536u / (elements / 8) + 1}; }
  __device__ int quotient(uint32_t i) const { return static_cast<int>(i * reciprocal >> 16); }
};

// Partition of the work. rows: classes of a tile, depth: classes of a stage, multiples of 16; a single tile has a
// single stage.
struct AggregatePlan {
  int64_t classes, dim, h_stride, slabs;
  int tiles, rows, depth, stages, channels;
  RowPieces row_pieces, depth_pieces, channel_pieces;
  int access;  // elements of the adjacency in one copy: 8, 4 or 1

  __host__ __device__ bool whole() const { return tiles == 1; }
  __host__ __device__ int rows_size() const { return rows * (depth + 8); }
  __host__ __device__ int columns_size() const { return whole() ? 0 : depth * (rows + 8); }
  // Elements of a stage: A[tile, stage], A[stage, tile], h[stage, slab]. Rows are padded by 16 bytes to an odd multiple
  // of 16 bytes, so that eight rows touch every bank of shared memory once.
  __host__ __device__ int stage_size() const { return rows_size() + columns_size() + depth * (channels + 8); }
};

// Loads rows x (8 pieces) elements of a matrix from [row, column] on, zero from end_row and end_column on. The number
// of threads is a multiple of the number of pieces.
template <class T>
__device__ __forceinline__ void load_block(
    T* shared, int rows, const RowPieces& pieces, const T* matrix, int64_t stride, int64_t row, int64_t end_row,
    int64_t column, int64_t end_column, int access) {
  const int first = pieces.quotient(threadIdx.x), c = (static_cast<int>(threadIdx.x) - first * pieces.count) * 8;
  const int step = pieces.quotient(blockDim.x);
#pragma unroll 1
  for (int r = first; r < rows; r += step) {
    T* const to = shared + r * (8 * pieces.count + 8) + c;
    if (access == 4) {
      load_twice_four(to, matrix, row + r, end_row, column + c, end_column, stride);
    } else {
      load_eight(to, matrix, row + r, end_row, column + c, end_column, stride, access == 8);
    }
  }
}

// Transposes within a quad of lanes: register j of lane t becomes register t of lane j.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & bit) == 0) {
        const uint32_t got = __shfl_xor_sync(kAllLanes, upper ? words[i] : words[i + bit], bit);
        words[i] = upper ? got : words[i];
        words[i + bit] = upper ? words[i + bit] : got;
      }
    }
  }
}

__device__ __forceinline__ uint32_t low_halves(uint32_t low, uint32_t high) { return (low & 0xffffu) | high << 16; }
__device__ __forceinline__ uint32_t high_halves(uint32_t low, uint32_t high) {
  return low >> 16 | (high & 0xffff0000u);
}

// Output in T: A h to column block 0 and A^T h to column block 1 of a matrix [R, 2D].
template <class T>
struct PlainOutput {
  static constexpr bool takes_states = false;
  T* out;
  int64_t stride;

  // Stores the sums of one row for 8 kTiles channels from `channel` on: the low or high half of each fragment.
  template <int kTiles>
  __device__ __forceinline__ void store(
      const float (&sums)[kTiles][4], int half, int block, int64_t row, bool there, int64_t channel,
      int64_t dim) const {
#pragma unroll
    for (int i = 0; i < kTiles; i += 4) {
      uint32_t words[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        words[j] = pack(sums[i + j][2 * half], sums[i + j][2 * half + 1], OperandOf<T>());
      }
      transpose_quad(words);
      const int64_t at = channel + 8 * i + threadIdx.x % 4 * 8;
      if (there && at < dim) {
        *reinterpret_cast<uint4*>(out + row * stride + block * dim + at) = {words[0], words[1], words[2], words[3]};
      }
    }
  }
};

// Output in e4m3: h / s to column block 0, A h inward / s to block 1 and A^T h outward / s to block 2 of a matrix [R,
// 4D].
struct ScaledOutput {
  static constexpr bool takes_states = true;
  uint8_t* out;
  int64_t stride;
  const float* scale;
  float inward, outward;

  template <int kTiles>
  __device__ __forceinline__ void store(
      const float (&sums)[kTiles][4], int half, int block, int64_t row, bool there, int64_t channel,
      int64_t dim) const {
    const float factor = there ? 1.f / scale[row] : 0.f, other = block == 0 ? inward : outward;
    uint32_t words[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // two channels of one tile, or of two
      constexpr int each = kTiles / 4;
      words[j] = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const float* const two = &sums[each * j + i][2 * half];
        words[j] |= e4m3_pair(two[0] * factor * other, two[1] * factor * other) << 16 * i;
      }
    }
    transpose_quad(words);
    const int64_t at = channel + threadIdx.x % 4 * (2 * kTiles);
    if (there && at < dim) {
      uint8_t* const to = out + row * stride + (block + 1) * dim + at;
      const uint2 low = {low_halves(words[0], words[1]), low_halves(words[2], words[3])};
      if constexpr (kTiles == 8) {
        *reinterpret_cast<uint4*>(to) = {
            low.x, low.y, high_halves(words[0], words[1]), high_halves(words[2], words[3])};
      } else {
        *reinterpret_cast<uint2*>(to) = low;
      }
    }
  }

  // Rounds and stores 16 channels of one row of h.
  __device__ __forceinline__ void store_states(const BFloat16* h, int64_t row, int64_t channel) const {
    const float factor = 1.f / scale[row];
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float values[8];
      load(h + 8 * i, values);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = e4m3_pair(values[2 * j] * factor, values[2 * j + 1] * factor);
        words[2 * i + j / 2] = j % 2 == 0 ? pair : words[2 * i + j / 2] | pair << 16;
      }
    }
    *reinterpret_cast<uint4*>(out + row * stride + channel) = {words[0], words[1], words[2], words[3]};
  }
};

// The part of the problem a block works on, and the loading of one stage into shared memory.
template <class T>
struct AggregateBlock {
  const AggregatePlan& n;
  T* shared;
  int64_t image, first, channel;  // first class of the tile, first channel of the slab

  __device__ AggregateBlock(const AggregatePlan& n, T* shared) : n(n), shared(shared) {
    const int64_t at = blockIdx.x / n.tiles;
    first = int64_t(blockIdx.x % n.tiles) * n.rows;
    channel = at % n.slabs * n.channels;
    image = at / n.slabs;
  }
  __device__ T* by_rows(int stage) const { return shared + stage % kAggregateStages * n.stage_size(); }
  __device__ T* by_columns(int stage) const { return by_rows(stage) + (n.whole() ? 0 : n.rows_size()); }
  __device__ T* states(int stage) const { return by_rows(stage) + n.rows_size() + n.columns_size(); }

  __device__ void load(int stage, const T* adjacency, const T* h) const {
    const int64_t from = int64_t(stage) * n.depth;
    const T* const image_h = h + image * n.classes * n.h_stride;
    load_block(
        by_rows(stage), n.rows, n.depth_pieces, adjacency, n.classes, first, n.classes, from, n.classes, n.access);
    if (!n.whole()) {
      load_block(
          by_columns(stage), n.depth, n.row_pieces, adjacency, n.classes, from, n.classes, first, n.classes, n.access);
    }
    load_block(states(stage), n.depth, n.channel_pieces, image_h, n.h_stride, from, n.classes, channel, n.dim, 8);
  }
};

// Passes the rows of h that a stage shares with the block's tile to the output.
template <class T, class Output>
__device__ __forceinline__ void store_states(const AggregateBlock<T>& block, int stage, const Output& output) {
  const AggregatePlan& n = block.n;
  const int64_t from = int64_t(stage) * n.depth;
  if (from + n.depth <= block.first || from >= block.first + n.rows) {
    return;
  }
  const int pieces = n.channels / 16;
  for (int i = threadIdx.x; i < n.depth * pieces; i += blockDim.x) {
    const int r = i / pieces, c = i % pieces * 16;
    const int64_t label = from + r;
    if (label >= block.first && label < block.first + n.rows && label < n.classes && block.channel + c < n.dim) {
      output.store_states(
          block.states(stage) + r * (n.channels + 8) + c, block.image * n.classes + label, block.channel + c);
    }
  }
}

template <class T, int kTiles>
__device__ __forceinline__ void multiply_stage(
    const AggregateBlock<T>& block, int stage, int row, int channel, float (&inward)[kTiles][4],
    float (&outward)[kTiles][4]) {
  const AggregatePlan& n = block.n;
  const int lane = threadIdx.x % 32, row_stride = n.depth + 8, column_stride = n.rows + 8, h_stride = n.channels + 8;
  const T* by_rows = block.by_rows(stage) + (row + lane % 16) * row_stride + lane / 16 * 8;
  const T* by_columns = block.by_columns(stage) + (lane % 8 + lane / 16 * 8) * column_stride + row + lane / 8 % 2 * 8;
  const T* h = block.states(stage) + lane % 16 * h_stride + channel + lane / 16 * 8;
#pragma unroll 1
  for (int k = 0; k < n.depth; k += 16) {
    uint32_t a[4], a_transposed[4];
    ldmatrix_x4(a, by_rows + k);
    ldmatrix_x4_trans(a_transposed, by_columns + k * column_stride);
#pragma unroll
    for (int i = 0; i < kTiles; i += 2) {
      uint32_t both[4];
      ldmatrix_x4_trans(both, h + k * h_stride + 8 * i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t b[2] = {both[2 * j], both[2 * j + 1]};
        mma_16x8x16(inward[i + j], a, b, OperandOf<T>());
        mma_16x8x16(outward[i + j], a_transposed, b, OperandOf<T>());
      }
    }
  }
}

// Grid: images x slabs x tiles, tiles fastest. Block: a warp for each 16 rows of the tile and 8 kTiles channels.
template <class T, int kTiles, class Output>
__global__ void __launch_bounds__(kAggregateThreads)
    aggregate_kernel(const AggregatePlan n, const T* adjacency, const T* h, const Output output) {
  SSGRL_SHARED(T, shared);
  const AggregateBlock<T> block(n, shared);
  const int across = n.channels / (8 * kTiles), warp = threadIdx.x / 32;
  const int own_row = warp / across * 16, own_channel = warp % across * (8 * kTiles);
  float inward[kTiles][4] = {}, outward[kTiles][4] = {};
  for (int stage = 1 - kAggregateStages; stage < n.stages; ++stage) {  // the first iterations only load
    if (stage >= 0) {
      cp_async_wait<kAggregateStages - 2>();
      __syncthreads();
    }
    if (stage + kAggregateStages - 1 < n.stages) {
      block.load(stage + kAggregateStages - 1, adjacency, h);
    }
    cp_async_commit();
    if (stage >= 0) {
      if constexpr (Output::takes_states) {
        store_states(block, stage, output);
      }
      multiply_stage<T, kTiles>(block, stage, own_row, own_channel, inward, outward);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t label = block.first + own_row + threadIdx.x % 32 / 4 + 8 * half;
    const int64_t row = block.image * n.classes + label, channel = block.channel + own_channel;
    output.store(inward, half, 0, row, label < n.classes, channel, n.dim);
    output.store(outward, half, 1, row, label < n.classes, channel, n.dim);
  }
}

}  // namespace ssgrl::cuda
