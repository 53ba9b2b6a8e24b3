// Backward kernel of split_tanh.h, launched once for d_u and d_p and once for d_v. Of u and v, a is the matrix whose
// gradient is computed and y the other one; m counts the rows of a, n the rows of y, and g[m, n] = d_scores.
//
//   S_j[m, k] = sum_n g[m, n] y[n, k]^(2j+1)
//   d_a[m, k] = p[k] sum_j d_j a[m, k]^(2j) S_j[m, k]      d_p[k] = sum_m sum_j c_j a[m, k]^(2j+1) S_j[m, k]
//
// Tiles. A block of 8 warps computes 32 rows m x 64 channels. n passes in chunks of 96, first for the largest
// magnitudes, then for the products; a single chunk (up to 96 classes) is loaded only once. The warps form a 2 x 4 grid
// of 16 rows x 16 channels each and keep the sums S_j of all terms in registers. Operands are float16: g divided by the
// power of two below the maximum of its row, y by that of its channel, and y is raised from power to power in
// registers. The polynomials in x = a s_y follow. Channels that do not fit are then evaluated value by value, lanes
// along k, in a third pass over n.
//
// For d_u, m counts rows (b, l) and n classes, and the block's contribution to d_p is computed with it. For d_v, m
// counts classes and n the rows of one part.

#pragma once

#include "scores.cuh"
#include "split_form.cuh"
#include "split_tanh.h"

namespace ssgrl::cuda {

constexpr int kSideRows = 32, kSideChannels = 64, kSideChunk = 96;

template <class T>
struct SideTile {
  T a[kSideRows][kSideChannels + 8];
  T y[kSideChunk][kSideChannels + 8];
  Half scaled_g[kSideRows][kSideChunk + 8];
  float g[kSideRows][kSideChunk + 1];
  int64_t base[kSideChunk];  // offset of d_scores of a row (b, l) and class 0; -1 outside
  uint32_t top_a[kSideChannels], top_y[kSideChannels];
  float top_g[kSideRows];
  float2 scale[kSideChannels];        // s_y and 1 / s_y; zero where the channel does not fit
  uint32_t wide[kSideChannels / 32];  // bits of the channels that do not fit
  float p_shares[4][kSideChannels];
};

// The operands and the range of a block: rows m of a, rows n of y, channels from `channel` on.
template <class T>
struct Side {
  const T *a, *y;
  const float* d_scores;
  int64_t m, m_end, n, n_end, channel;
  bool aligned;
  __device__ __forceinline__ bool whole() const { return n_end - n <= kSideChunk; }  // whether one chunk holds all n
  __device__ __forceinline__ int here(int64_t begin) const {
    return static_cast<int>(n_end - begin < kSideChunk ? n_end - begin : kSideChunk);
  }
};

template <class T, int rows>
__device__ __forceinline__ void load_rows(
    T (&tile)[rows][kSideChannels + 8], const T* matrix, int64_t row, int64_t end, int64_t channel, int64_t joint,
    bool aligned) {
  const int column = threadIdx.x % 8 * 8;
#pragma unroll
  for (int i = threadIdx.x / 8; i < rows; i += kScoreThreads / 8) {
    load_eight(&tile[i][column], matrix, row + i, end, channel + column, joint, joint, aligned);
  }
  cp_async_commit();
}

// Loads rows n of y from `begin` on, and g[m, n], into shared memory, rows (b, l) along the lanes. Synchronises before
// and after.
template <class T, bool by_rows>
__device__ __forceinline__ void load_chunk(
    SideTile<T>& tile, const AttentionSizes& n, const Side<T>& side, int64_t begin) {
  constexpr int rows = by_rows ? kSideRows : kSideChunk, classes = by_rows ? kSideChunk : kSideRows;
  const int lane = threadIdx.x % 32, at = threadIdx.x;
  const int64_t label = by_rows ? begin : side.m;
  __syncthreads();
  load_rows(tile.y, side.y, begin, side.n_end, side.channel, n.joint, side.aligned);
  if (at < rows) {
    const int64_t r = (by_rows ? side.m : begin) + at, image = r / n.locations;
    const bool there = r < (by_rows ? side.m_end : side.n_end);
    tile.base[at] = there ? image * n.classes * n.locations + (r - image * n.locations) : -1;
  }
  __syncthreads();
  for (int in_row = lane; in_row < rows; in_row += 32) {
    const int64_t from = tile.base[in_row];
#pragma unroll 4
    for (int in_class = threadIdx.x / 32; in_class < classes; in_class += kScoreWarps) {
      const int64_t c = label + in_class;
      const float g = from >= 0 && c < n.classes ? side.d_scores[from + c * n.locations] : 0.f;
      tile.g[by_rows ? in_row : in_class][by_rows ? in_class : in_row] = g;
    }
  }
  cp_async_wait<0>();
  __syncthreads();
}

// Combines the largest magnitude of each channel of a tile with those in shared memory.
template <class T, int rows>
__device__ __forceinline__ void add_tops(const T (&tile)[rows][kSideChannels + 8], uint32_t* tops) {
  const int lane = threadIdx.x % 32;
  uint32_t low = 0, high = 0;
#pragma unroll 4
  for (int i = threadIdx.x / 32; i < rows; i += kScoreWarps) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(&tile[i][2 * lane]);
    low = max(low, low_magnitude(pair));
    high = max(high, high_magnitude(pair));
  }
  atomicMax(&tops[2 * lane], low);  // a maximum does not depend on the order
  atomicMax(&tops[2 * lane + 1], high);
}

// Here each warp takes its own rows of g.
template <class T>
__device__ __forceinline__ void add_row_tops(SideTile<T>& tile) {
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < kSideRows; i += kScoreWarps) {
    float top = 0;
    for (int j = lane; j < kSideChunk; j += 32) {
      top = fmaxf(top, fabsf(tile.g[i][j]));
    }
    top = warp_max(top);
    if (lane == 0) {
      tile.top_g[i] = fmaxf(tile.top_g[i], top);
    }
  }
}

template <class T>
__device__ __forceinline__ void scale_gradients(SideTile<T>& tile) {
  for (int i = threadIdx.x / 32; i < kSideRows; i += kScoreWarps) {
    const float inverse = power_of_two(-exponent_of(tile.top_g[i]));
    for (int j = threadIdx.x % 32; j < kSideChunk; j += 32) {
      tile.scaled_g[i][j] = Half(tile.g[i][j] * inverse);
    }
  }
}

template <class T>
using SideSums = float[SplitForm<T>::slope_terms][2][4];  // terms, 8-channel tiles, a fragment

// Adds the products over 16 rows n of the chunk to the sums.
template <class T>
__device__ __forceinline__ void multiply_side(SideTile<T>& tile, int step, SideSums<T>& sums) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 128 * 16, channel = threadIdx.x / 32 % 4 * 16;
  uint32_t g[4], raw[4];
  ldmatrix_x4(g, &tile.scaled_g[row + lane % 16][step * 16 + lane / 16 * 8]);
  ldmatrix_x4_trans(raw, &tile.y[step * 16 + lane % 16][channel + lane / 16 * 8]);
  float y[2][4], y2[2][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float inverse = tile.scale[channel + 8 * i + lane / 4].y;
    const uint32_t mask = inverse == 0.f ? 0u : 0xffffffffu;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      y[i][e] = from_bits<T>((raw[2 * i + e / 2] & mask) >> (e % 2 * 16) & 0xffffu) * inverse;
      y2[i][e] = y[i][e] * y[i][e];
    }
  }
#pragma unroll
  for (int j = 0; j < SplitForm<T>::slope_terms; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t b[2] = {pack(y[i][0], y[i][1], f16()), pack(y[i][2], y[i][3], f16())};
      mma_16x8x16(sums[j][i], g, b, f16());
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        y[i][e] *= y2[i][e];
      }
    }
  }
}

// Finishes the channels that fit: writes d_a, and this warp's contribution to d_p to shared memory.
template <class T, class Out, bool by_rows>
__device__ __forceinline__ void finish_side(
    SideTile<T>& tile, const Side<T>& side, int64_t joint, const float* p, const SideSums<T>& sums, Out* d_a) {
  using Form = SplitForm<T>;
  const int lane = threadIdx.x % 32, half = threadIdx.x / 128, channel = threadIdx.x / 32 % 4 * 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int at = channel + 8 * i + lane % 4 * 2 + odd;
      const int64_t k = side.channel + at;
      const float s_y = tile.scale[at].x;
      const bool within = s_y != 0.f && k < joint;
      float share = 0;
#pragma unroll
      for (int e = odd; e < 4; e += 2) {
        const int in_row = half * 16 + e / 2 * 8 + lane / 4;
        const float x = within ? widen(tile.a[in_row][at]) * s_y : 0.f, x2 = x * x;
        float slope = 0, value = 0;
#pragma unroll
        for (int j = Form::slope_terms - 1; j >= 0; --j) {
          slope = fmaf(slope, x2, Form::slope(j) * sums[j][i][e]);
          value = j < Form::tanh_terms ? fmaf(value, x2, Form::tanh(j) * sums[j][i][e]) : 0.f;
        }
        const float s_g = power_of_two(exponent_of(tile.top_g[in_row]));
        const int64_t m = side.m + in_row;
        if (within && m < side.m_end) {
          d_a[m * joint + k] = narrow<Out>(slope * s_g * s_y * p[k]);
        }
        share += value * x * s_g;
      }
      if (by_rows) {
        for (int bits = 4; bits < 32; bits *= 2) {
          share += __shfl_xor_sync(kAllLanes, share, bits);
        }
        if (lane < 4) {
          tile.p_shares[half][at] = share;
        }
      }
    }
  }
}

// The channels that do not fit, value by value: a warp takes 8 rows m and 32 channels.
template <class T, class Out, bool by_rows>
__device__ __forceinline__ void evaluate_side(
    SideTile<T>& tile, const AttentionSizes& n, const Side<T>& side, const float* p, Out* d_a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = warp % 2 * 32 + lane, row = warp / 2 * 8;
  const int64_t k = side.channel + at;
  const bool wide = tile.wide[warp % 2] >> lane & 1;
  const int rows = static_cast<int>(side.m_end - side.m - row < 8 ? side.m_end - side.m - row : 8);
  float sums[8] = {}, sum_p = 0;
  for (int64_t begin = side.n; begin < side.n_end; begin += kSideChunk) {
    if (!side.whole()) {
      load_chunk<T, by_rows>(tile, n, side, begin);
    }
    const int here = side.here(begin);
    if (wide) {
      for (int j = 0; j < here; ++j) {
        const float own_y = widen(tile.y[j][at]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          if (i < rows) {  // rows outside must not give 0 * inf
            const Tanh<float> t = TanhOf<T>::both(widen(tile.a[row + i][at]) * own_y);
            const float g = tile.g[row + i][j];
            sums[i] += g * t.slope * own_y;
            sum_p += g * t.value;
          }
        }
      }
    }
  }
  if (wide && k < n.joint) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < rows) {
        d_a[(side.m + row + i) * n.joint + k] = narrow<Out>(sums[i] * p[k]);
      }
    }
  }
  __syncthreads();
  if (by_rows && wide) {
    tile.p_shares[warp / 2][at] = sum_p;
  }
}

// Grid: (tiles of m x parts of `part` rows n, blocks of 64 channels); for d_u there is one part, all classes. d_a is
// d_u [R, K] or the parts of d_v [parts, C, K]; d_p [tiles, K] is written with d_u. Parts are summed afterwards.
template <class T, class Out, bool by_rows>
__global__ void __launch_bounds__(kScoreThreads, 2) split_side_kernel(
    const AttentionSizes n, const T* a, const T* y, const float* p, const float* d_scores, Out* d_a, float* d_p,
    int64_t part, bool aligned) {
  SSGRL_SHARED(SideTile<T>, shared);
  SideTile<T>& tile = *shared;
  Side<T> side{a, y, d_scores};
  side.m_end = by_rows ? n.rows() : n.classes;
  const int64_t tiles = ceil_div(side.m_end, kSideRows), i_part = blockIdx.x / tiles;
  const int64_t n_all = by_rows ? n.classes : n.rows();
  side.m = blockIdx.x % tiles * kSideRows;
  side.n = i_part * part;
  side.n_end = side.n + part < n_all ? side.n + part : n_all;
  side.channel = blockIdx.y * static_cast<int64_t>(kSideChannels);
  side.aligned = aligned;
  d_a += i_part * side.m_end * n.joint;
  if (threadIdx.x < kSideChannels) {
    tile.top_a[threadIdx.x] = tile.top_y[threadIdx.x] = 0;
    tile.top_g[threadIdx.x % kSideRows] = 0;
  }
  load_rows(tile.a, a, side.m, side.m_end, side.channel, n.joint, aligned);
  for (int64_t begin = side.n; begin < side.n_end; begin += kSideChunk) {
    load_chunk<T, by_rows>(tile, n, side, begin);
    add_tops(tile.y, tile.top_y);
    add_row_tops(tile);
  }
  cp_async_wait<0>();
  __syncthreads();
  add_tops(tile.a, tile.top_a);
  __syncthreads();
  if (threadIdx.x < kSideChannels) {
    const float top_a = from_bits<T>(tile.top_a[threadIdx.x]), top_y = from_bits<T>(tile.top_y[threadIdx.x]);
    const bool within = fits<T>(top_a, top_y);
    const int e = exponent_of(top_y);
    tile.scale[threadIdx.x] = {within ? power_of_two(e) : 0.f, within ? power_of_two(-e) : 0.f};
    const uint32_t wide = __ballot_sync(kAllLanes, !within);
    tile.wide[threadIdx.x / 32] = wide;
  }
  SideSums<T> sums = {};
  for (int64_t begin = side.n; begin < side.n_end; begin += kSideChunk) {
    if (!side.whole()) {
      load_chunk<T, by_rows>(tile, n, side, begin);
    }
    scale_gradients(tile);
    __syncthreads();
    for (int step = 0; step * 16 < side.here(begin); ++step) {
      multiply_side(tile, step, sums);
    }
  }
  __syncthreads();
  finish_side<T, Out, by_rows>(tile, side, n.joint, p, sums, d_a);
  if ((tile.wide[0] | tile.wide[1]) != 0) {
    evaluate_side<T, Out, by_rows>(tile, n, side, p, d_a);
  }
  if (by_rows) {
    __syncthreads();
    const int at = threadIdx.x;
    const int64_t k = side.channel + at;
    if (at < kSideChannels && k < n.joint) {
      const float* shares = &tile.p_shares[0][at];
      float sum = shares[0] + shares[kSideChannels];
      if (tile.wide[at / 32] >> (at % 32) & 1) {
        sum += shares[2 * kSideChannels] + shares[3 * kSideChannels];
      }
      d_p[blockIdx.x * n.joint + k] = sum;
    }
  }
}

}  // namespace ssgrl::cuda
