// Forward kernels of scores.h, and the softmax with its backward.
//
//   scores[b, c, l] = sum_k p[k] tanh(u[r, k] v[c, k]),  r = b L + l
//
// Tiles. A block of 8 warps computes 32 rows x 16 classes. u and v pass through shared memory in chunks of 64 channels,
// stored by channel, so that a lane reads its 4 rows and its 4 classes as vectors. Each warp takes 8 of the 64 channels
// for the whole tile, a lane 4 x 4 values of it; the sums of the 8 warps are added at the end. Because all lanes of a
// warp are at the same channel, the warp selects one form of tanh (common/tanh.cuh) from the channel's bound
// max|u| max|v| over the tile, without divergence.

#pragma once

#include "cuda/common/tanh.cuh"
#include "cuda/common/warp.cuh"
#include "scores.h"

namespace ssgrl::cuda {

constexpr int kScoreWarps = 8;
constexpr int kScoreThreads = 32 * kScoreWarps;

template <class A>
struct alignas(sizeof(A) == 4 ? 16 : 8) Four {
  A x[4];
};

template <class A>
struct ScoreTile {
  static constexpr int rows = 32, classes = 16, channels = 64;
  static constexpr int u_stride = rows + 4,
                       v_stride = classes + 4;  // padded for 16-byte vectors with fewer bank conflicts
  A u[channels][u_stride];
  A v[channels][v_stride];
  A p[channels];
  A top_u[kScoreWarps][channels],
      top_v[kScoreWarps][channels];  // max|u|, max|v| over the rows and classes that a warp loaded
};

template <class A>
union ScoreShared {
  ScoreTile<A> tile;
  A sums[kScoreWarps][16][33];
};

// Loads one chunk of channels: warp w loads rows w, w + 8, ... of u and v, lanes along k.
template <class T>
__device__ __forceinline__ void load_score_tile(
    ScoreTile<Compute<T>>& tile, const AttentionSizes& n, const T* u, const T* v, const Compute<T>* p, int64_t row,
    int64_t label, int64_t channel, int64_t end) {
  using A = Compute<T>;
  using Tile = ScoreTile<A>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < Tile::channels; half += 32) {
    const int at = half + lane;
    const int64_t k = channel + at;
    const bool inside = k < end;
    A top_u = 0, top_v = 0;
#pragma unroll
    for (int i = warp; i < Tile::rows; i += kScoreWarps) {
      const A x = inside ? at_or_zero(u, row + i, n.rows(), k, n.joint) : A(0);
      tile.u[at][i] = x;
      top_u = fmax(top_u, fabs(x));
    }
#pragma unroll
    for (int i = warp; i < Tile::classes; i += kScoreWarps) {
      const A x = inside ? at_or_zero(v, label + i, n.classes, k, n.joint) : A(0);
      tile.v[at][i] = x;
      top_v = fmax(top_v, fabs(x));
    }
    tile.top_u[warp][at] = top_u;
    tile.top_v[warp][at] = top_v;
    if (warp == 0) {
      tile.p[at] = inside ? p[k] : A(0);
    }
  }
}

// For each of the warp's 8 channels of a chunk one bit: whether |u v| <= kNear over the whole tile.
template <class A>
__device__ __forceinline__ unsigned near_channels(const ScoreTile<A>& tile, int warp, int lane) {
  const int at = warp * 8 + lane / 4;
  A top_u = fmax(tile.top_u[lane % 4][at], tile.top_u[lane % 4 + 4][at]);
  A top_v = fmax(tile.top_v[lane % 4][at], tile.top_v[lane % 4 + 4][at]);
  for (int bits = 1; bits < 4; bits *= 2) {
    top_u = fmax(top_u, __shfl_xor_sync(kAllLanes, top_u, bits));
    top_v = fmax(top_v, __shfl_xor_sync(kAllLanes, top_v, bits));
  }
  return __ballot_sync(kAllLanes, top_u * top_v <= A(kNear));  // bit 4 i belongs to channel i
}

template <class T, bool near, class A>
__device__ __forceinline__ void add_scores(A (&sums)[4][4], const Four<A>& u, const Four<A>& v, A p) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const A x = u.x[i] * v.x[j];
      sums[i][j] += p * (near ? TanhOf<T>::near_value(x) : TanhOf<T>::value(x));
    }
  }
}

// Grid: (row tiles, class tiles, parts of `part` channels of K).
template <class T>
__global__ void __launch_bounds__(kScoreThreads) scores_kernel(
    const AttentionSizes n, const T* u, const T* v, const Compute<T>* p, Compute<T>* scores, int64_t part) {
  using A = Compute<T>;
  using Tile = ScoreTile<A>;
  SSGRL_SHARED(ScoreShared<A>, shared);
  Tile& tile = shared->tile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * static_cast<int64_t>(Tile::rows);
  const int64_t label = blockIdx.y * static_cast<int64_t>(Tile::classes);
  const int64_t begin = blockIdx.z * part, end = begin + part < n.joint ? begin + part : n.joint;
  A sums[4][4] = {};
  for (int64_t channel = begin; channel < end; channel += Tile::channels) {
    load_score_tile(tile, n, u, v, p, row, label, channel, end);
    __syncthreads();
    const unsigned near = TanhOf<T>::bounded ? near_channels(tile, warp, lane) : 0u;
    for (int i = 0; i < 8; ++i) {
      const int at = warp * 8 + i;
      const auto own_u = *reinterpret_cast<const Four<A>*>(&tile.u[at][lane / 4 * 4]);
      const auto own_v = *reinterpret_cast<const Four<A>*>(&tile.v[at][lane % 4 * 4]);
      if (TanhOf<T>::bounded && near >> (4 * i) & 1) {
        add_scores<T, true>(sums, own_u, own_v, tile.p[at]);
      } else {
        add_scores<T, false>(sums, own_u, own_v, tile.p[at]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    shared->sums[warp][i][lane] = sums[i / 4][i % 4];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < Tile::rows * Tile::classes; i += kScoreThreads) {
    const int in_row = i % Tile::rows, in_class = i / Tile::rows;
    const int value = in_row % 4 * 4 + in_class % 4, owner = in_row / 4 * 4 + in_class / 4;
    A sum = 0;
    for (int w = 0; w < kScoreWarps; ++w) {
      sum += shared->sums[w][value][owner];
    }
    const int64_t r = row + in_row, c = label + in_class;
    if (r < n.rows() && c < n.classes) {
      const int64_t image = r / n.locations;
      scores[blockIdx.z * n.scores() + (image * n.classes + c) * n.locations + (r - image * n.locations)] = sum;
    }
  }
}

// One warp per row (b, c).
template <class A>
__global__ void __launch_bounds__(kScoreThreads)
    softmax_kernel(int64_t rows, int64_t locations, int64_t parts, const A* scores, A* attention) {
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kScoreWarps) + threadIdx.x / 32;
  if (row >= rows) {
    return;
  }
  A* out = attention + row * locations;
  A top = -INFINITY;
  for (int64_t l = lane; l < locations; l += 32) {
    A sum = 0;
    for (int64_t i = 0; i < parts; ++i) {
      sum += scores[(i * rows + row) * locations + l];
    }
    out[l] = sum;
    top = fmax(top, sum);  // fmax ignores NaN; exp below propagates it
  }
  top = warp_max(top);
  A total = 0;
  for (int64_t l = lane; l < locations; l += 32) {
    out[l] = exp(out[l] - top);
    total += out[l];
  }
  total = warp_sum(total);
  for (int64_t l = lane; l < locations; l += 32) {
    out[l] /= total;
  }
}

template <class T>
__device__ __forceinline__ Compute<T> attention_gradient(const Compute<T>* direct, const T* from_pooled, int64_t at) {
  return (direct ? direct[at] : Compute<T>(0)) + (from_pooled ? widen(from_pooled[at]) : Compute<T>(0));
}

template <class T>
__global__ void __launch_bounds__(kScoreThreads) softmax_backward_kernel(
    int64_t rows, int64_t locations, const Compute<T>* attention, const Compute<T>* grad_attention,
    const T* from_pooled, Compute<T>* d_scores) {
  const int lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kScoreWarps) + threadIdx.x / 32;
  if (row >= rows) {
    return;
  }
  const int64_t begin = row * locations;
  Compute<T> mean = 0;
  for (int64_t l = lane; l < locations; l += 32) {
    mean += attention[begin + l] * attention_gradient(grad_attention, from_pooled, begin + l);
  }
  mean = warp_sum(mean);
  for (int64_t l = lane; l < locations; l += 32) {
    const Compute<T> g = attention_gradient(grad_attention, from_pooled, begin + l);
    d_scores[begin + l] = attention[begin + l] * (g - mean);
  }
}

// One thread per element.
template <class T>
__global__ void __launch_bounds__(kScoreThreads)
    sum_parts_kernel(const Compute<T>* in, int64_t parts, int64_t count, T* out) {
  const int64_t at = blockIdx.x * static_cast<int64_t>(kScoreThreads) + threadIdx.x;
  if (at < count) {
    Compute<T> sum = 0;
#pragma unroll 8
    for (int64_t i = 0; i < parts; ++i) {
      sum += in[i * count + at];
    }
    out[at] = narrow<T>(sum);
  }
}

}  // namespace ssgrl::cuda
