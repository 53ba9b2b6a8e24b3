// Forward kernel of split_tanh.h.
//
//   sum_k p tanh(u v) = 2^E sum_j sum_k (u')^(2j+1) (c_j q v' (v' w)^(2j)),  u' = u / s_u, v' = v / s_v, w = s_u s_v
//
// with s_u, s_v the powers of two below max|u|, max|v| of the channel, so 1 <= max|u'|, max|v'| < 2, and q = p w / 2^E.
// E is the largest exponent that a warp has seen so far of p w (of p in a channel that does not fit); when it grows,
// earlier sums are rescaled. No operand then exceeds the range of float16, and the operands that underflow are below
// 2^-24 of the largest.
//
// Tiles. A block of 8 warps computes 64 rows x 32 classes and passes over the channels in chunks of 64; u and v are
// loaded into shared memory once in their storage type, with two chunks in flight (cp.async). The warps form a 2 x 4
// grid: two groups of 32 rows x 32 classes, and within a group four warps with one 16-channel step of the chunk each,
// whose sums are added at the end. The fragments of a step are loaded by ldmatrix, widened, scaled per channel and
// raised from power to power in registers: no power is stored.

#pragma once

#include "scores.cuh"
#include "split_form.cuh"
#include "split_tanh.h"

namespace ssgrl::cuda {

constexpr int kSplitRows = 64, kSplitClasses = 32, kSplitChunk = 64, kSplitStride = kSplitChunk + 8;
constexpr int kLowest = -10000;  // exponent of an empty sum

template <class T>
struct SplitTile {
  T u[2][kSplitRows][kSplitStride];  // rows of 144 bytes: eight rows touch every bank once
  T v[2][kSplitClasses][kSplitStride];
  uint32_t top_u[kScoreWarps][kSplitChunk], top_v[kScoreWarps][kSplitChunk];
  float4 channels[kScoreWarps][16];  // for the step of each warp: 1 / s_u, 1 / s_v, q, w^2
};

template <class T>
union SplitShared {
  SplitTile<T> tile;
  float sums[4][kSplitRows][kSplitClasses + 1];  // sums of the four steps
};

template <class T>
__device__ __forceinline__ void load_split_tile(
    SplitTile<T>& tile, int buffer, const AttentionSizes& n, const T* u, const T* v, int64_t row, int64_t label,
    int channel, int end, bool aligned) {
  const int column = threadIdx.x % 8 * 8;
  for (int i = threadIdx.x / 8; i < kSplitRows; i += kScoreThreads / 8) {
    load_eight(&tile.u[buffer][i][column], u, row + i, n.rows(), channel + column, end, n.joint, aligned);
  }
  const int i = threadIdx.x / 8;
  load_eight(&tile.v[buffer][i][column], v, label + i, n.classes, channel + column, end, n.joint, aligned);
  cp_async_commit();
}

// Largest magnitudes per channel: each warp takes an eighth of the rows and classes, a lane two channels.
template <class T>
__device__ __forceinline__ void find_tops(SplitTile<T>& tile, int buffer) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t u0 = 0, u1 = 0, v0 = 0, v1 = 0;
#pragma unroll
  for (int i = warp; i < kSplitRows; i += kScoreWarps) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(&tile.u[buffer][i][2 * lane]);
    u0 = max(u0, low_magnitude(pair));
    u1 = max(u1, high_magnitude(pair));
  }
#pragma unroll
  for (int i = warp; i < kSplitClasses; i += kScoreWarps) {
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(&tile.v[buffer][i][2 * lane]);
    v0 = max(v0, low_magnitude(pair));
    v1 = max(v1, high_magnitude(pair));
  }
  tile.top_u[warp][2 * lane] = u0;
  tile.top_u[warp][2 * lane + 1] = u1;
  tile.top_v[warp][2 * lane] = v0;
  tile.top_v[warp][2 * lane + 1] = v1;
}

// Writes the scales of the warp's 16 channels to tile.channels and raises the exponent of the warp's sums if necessary.
// Returns one bit for each channel that fits.
template <class T>
__device__ __forceinline__ uint32_t scale_channels(SplitTile<T>& tile, int step, float p, int& exponent) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, at = step * 16 + lane % 16;
  uint32_t top = 0;
#pragma unroll
  for (int w = 0; w < kScoreWarps; ++w) {
    top = max(top, lane < 16 ? tile.top_u[w][at] : tile.top_v[w][at]);
  }
  const float own = from_bits<T>(top), other = __shfl_xor_sync(kAllLanes, own, 16);
  const bool within = fits<T>(own, other);
  const int e_p = exponent_of(p), e_own = exponent_of(own), e_other = exponent_of(other);
  const int e = e_p + (within ? e_own + e_other : 0);
  int largest = p == 0.f ? kLowest : e;
  for (int bits = 8; bits > 0; bits /= 2) {
    largest = max(largest, __shfl_xor_sync(kAllLanes, largest, bits));
  }
  exponent = max(exponent, largest);
  if (lane < 16) {
    const float q = p == 0.f ? 0.f : p * power_of_two(-e_p) * power_of_two(e - exponent);
    const float w = within ? power_of_two(e_own + e_other) : 0.f;
    tile.channels[warp][lane] = {power_of_two(-e_own), power_of_two(-e_other), q, w * w};
  }
  const uint32_t bits = __ballot_sync(kAllLanes, within) & 0xffffu;
  __syncwarp();
  return bits;
}

// Two elements of a fragment, scaled; masked elements become zero, even if they are NaN or infinite.
template <class T>
__device__ __forceinline__ void widen_pair(uint32_t pair, uint32_t mask, float low, float high, float* out) {
  pair &= mask;
  out[0] = from_bits<T>(pair & 0xffffu) * low;
  out[1] = from_bits<T>(pair >> 16) * high;
}

__device__ __forceinline__ uint32_t pair_mask(uint32_t bits, int at) {
  return (bits >> at & 1 ? 0xffffu : 0u) | (bits >> (at + 1) & 1 ? 0xffff0000u : 0u);
}

using SplitSums = float[2][4][4];  // 16-row tiles, 8-class tiles, a fragment

// The channels of one step that fit, by matrix products.
template <class T>
__device__ __forceinline__ void multiply_step(
    SplitTile<T>& tile, int buffer, int step, int row, uint32_t within, SplitSums& sums) {
  using Form = SplitForm<T>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t2 = lane % 4 * 2;
  const uint32_t masks[2] = {pair_mask(within, t2), pair_mask(within, t2 + 8)};
  float u[2][8], u2[2][8], v[4][4], v2[4][4];
  {
    const float4* const c[4] = {
        &tile.channels[warp][t2], &tile.channels[warp][t2 + 1], &tile.channels[warp][t2 + 8],
        &tile.channels[warp][t2 + 9]};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t raw[4];
      ldmatrix_x4(raw, &tile.u[buffer][row + 16 * i + lane % 16][step * 16 + lane / 16 * 8]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        widen_pair<T>(raw[r], masks[r / 2], c[r / 2 * 2]->x, c[r / 2 * 2 + 1]->x, &u[i][2 * r]);
      }
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        u2[i][e] = u[i][e] * u[i][e];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      uint32_t raw[4];
      ldmatrix_x4(raw, &tile.v[buffer][8 * i + lane % 8 + lane / 16 * 8][step * 16 + lane / 8 % 2 * 8]);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        widen_pair<T>(raw[r], masks[r % 2], c[r % 2 * 2]->y, c[r % 2 * 2 + 1]->y, &v[i + r / 2][r % 2 * 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        v2[i][e] = v[i][e] * v[i][e] * c[e]->w;
        v[i][e] *= c[e]->z;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < Form::tanh_terms; ++j) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        a[i][r] = pack(u[i][2 * r], u[i][2 * r + 1], f16());
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t b[2] = {
          pack(Form::tanh(j) * v[i][0], Form::tanh(j) * v[i][1], f16()),
          pack(Form::tanh(j) * v[i][2], Form::tanh(j) * v[i][3], f16())};
      mma_16x8x16(sums[0][i], a[0], b, f16());
      mma_16x8x16(sums[1][i], a[1], b, f16());
    }
    if (j + 1 < Form::tanh_terms) {
#pragma unroll
      for (int e = 0; e < 16; ++e) {
        u[e / 8][e % 8] *= u2[e / 8][e % 8];
        v[e / 4][e % 4] *= v2[e / 4][e % 4];
      }
    }
  }
}

// One channel that does not fit, value by value.
template <class T>
__device__ __forceinline__ void evaluate_channel(
    const SplitTile<T>& tile, int buffer, int at, int row, float q, SplitSums& sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float u = widen(tile.u[buffer][row + 8 * i + lane / 4][at]);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float v = widen(tile.v[buffer][j / 2 * 8 + lane % 4 * 2 + j % 2][at]);
      sums[i / 2][j / 2][i % 2 * 2 + j % 2] += q * TanhOf<T>::value(u * v);
    }
  }
}

// Grid: (row tiles, class tiles, parts of `part` channels of K); K < 2^31.
template <class T>
__global__ void __launch_bounds__(kScoreThreads, SSGRL_SPLIT_BLOCKS) split_scores_kernel(
    const AttentionSizes n, const T* u, const T* v, const float* p, float* scores, int part, bool aligned) {
  SSGRL_SHARED(SplitShared<T>, shared);
  SplitTile<T>& tile = shared->tile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, step = warp % 4, own_row = warp / 4 * 32;
  const int64_t row = blockIdx.x * static_cast<int64_t>(kSplitRows);
  const int64_t label = blockIdx.y * static_cast<int64_t>(kSplitClasses);
  const int begin = static_cast<int>(blockIdx.z) * part;
  const int end = min(static_cast<int>(n.joint), begin + part);
  SplitSums sums = {};
  int exponent = kLowest;
  load_split_tile(tile, 0, n, u, v, row, label, begin, end, aligned);
  int buffer = 0;
  for (int channel = begin; channel < end; channel += kSplitChunk, buffer ^= 1) {
    cp_async_wait<0>();
    __syncthreads();
    load_split_tile(tile, buffer ^ 1, n, u, v, row, label, channel + kSplitChunk, end, aligned);
    find_tops(tile, buffer);
    __syncthreads();
    const int k = channel + step * 16 + lane % 16;
    const int before = exponent;
    const uint32_t within = scale_channels(tile, step, k < end ? p[k] : 0.f, exponent);
    if (exponent > before) {
      const float factor = power_of_two(before - exponent);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        sums[i / 16][i / 4 % 4][i % 4] *= factor;
      }
    }
    if (within != 0) {
      multiply_step(tile, buffer, step, own_row, within, sums);
    }
    for (uint32_t wide = ~within & 0xffffu; wide != 0; wide &= wide - 1) {
      const int i = __ffs(static_cast<int>(wide)) - 1;
      evaluate_channel(tile, buffer, step * 16 + i, own_row, tile.channels[warp][i].z, sums);
    }
  }
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int in_row = own_row + i / 16 * 16 + i / 2 % 2 * 8 + lane / 4,
              in_class = i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
    shared->sums[step][in_row][in_class] = ldexpf(sums[i / 16][i / 4 % 4][i % 4], exponent);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSplitRows * kSplitClasses; i += kScoreThreads) {
    const int in_row = i % kSplitRows, in_class = i / kSplitRows;
    const int64_t r = row + in_row, c = label + in_class;
    if (r < n.rows() && c < n.classes) {
      float sum = 0;
      for (int w = 0; w < 4; ++w) {
        sum += shared->sums[w][in_row][in_class];
      }
      const int64_t image = r / n.locations;
      scores[blockIdx.z * n.scores() + (image * n.classes + c) * n.locations + (r - image * n.locations)] = sum;
    }
  }
}

}  // namespace ssgrl::cuda
