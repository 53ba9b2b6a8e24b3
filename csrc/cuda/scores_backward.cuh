// Backward kernel of scores.h: d_u, d_v and d_p from one tanh a value of (r, c, k).
//
//   d_u[r, k] = p[k] sum_c g s v      d_v[c, k] = p[k] sum_r g s u      d_p[k] = sum_rc g t
//
// with t = tanh(u v), s = 1 - t^2, g = d_scores. A block takes 32 channels, one a lane, of a part of the rows, whose u
// and d_u stay in shared memory, and passes over the classes 64 at a time, 8 a warp: v and d_v of 8 classes are a
// lane's registers while the rows pass, 16 at a time, and each row's share of d_u is summed over the warps. d_v and d_p
// of the parts are summed by a second kernel, in order. The form of tanh is chosen for a warp's 8 classes and 32
// channels.

#pragma once

#include "scores.cuh"

namespace ssgrl::cuda {

constexpr int kRowStep = 16, kLaneClasses = 8, kClassStep = kScoreWarps * kLaneClasses;

// The layout of the block's shared memory; rows follow it: u [part, 32] and d_u [part, 32].
template <class A>
struct BackwardTile {
  A g[kRowStep][kClassStep + 4];
  A shares[kScoreWarps][kRowStep][32];
  A top[kScoreWarps][32];
};

template <class A>
constexpr size_t backward_shared_bytes(int64_t part) {
  return sizeof(BackwardTile<A>) + 2 * part * 32 * sizeof(A);
}

// One row: returns this warp's sum_c g s v, adds to d_v and d_p.
template <class T, bool near, class A>
__device__ __forceinline__ A
row_gradients(const A* g, A u, const A (&v)[kLaneClasses], int classes, A (&d_v)[kLaneClasses], A& d_p) {
  A d_u = 0, row_p = 0;
#pragma unroll
  for (int j = 0; j < kLaneClasses; ++j) {
    if (j < classes) {  // a class that is not there must not make 0 * inf
      const Tanh<A> t = near ? TanhOf<T>::near_both(u * v[j]) : TanhOf<T>::both(u * v[j]);
      const A w = g[j] * t.slope;
      d_u += w * v[j];
      d_v[j] += w * u;
      row_p += g[j] * t.value;
    }
  }
  d_p += row_p;
  return d_u;
}

// d_scores of rows [row, row + 16) and 64 classes into shared memory, by rows.
template <class A>
__device__ __forceinline__ void load_score_gradients(
    BackwardTile<A>& tile, const ScoreSizes& n, const A* d_scores, int64_t row, int64_t end, int64_t label) {
  const int in_row = threadIdx.x % kRowStep;
  const int64_t r = row + in_row, image = r / n.locations;
  for (int i = threadIdx.x / kRowStep; i < kClassStep; i += kScoreThreads / kRowStep) {
    const int64_t c = label + i;
    tile.g[in_row][i] =
        r < end && c < n.classes ? d_scores[(image * n.classes + c) * n.locations + (r - image * n.locations)] : A(0);
  }
}

// Grid: parts of `part` rows, blocks of 32 channels. d_v [parts, C, K] and d_p [parts, K] are to be summed.
template <class T>
__global__ void __launch_bounds__(kScoreThreads, sizeof(Compute<T>) == 8 ? 1 : 4) scores_backward_kernel(
    const ScoreSizes n, const T* u, const T* v, const Compute<T>* p, const Compute<T>* d_scores, T* d_u,
    Compute<T>* d_v, Compute<T>* d_p, int64_t part) {
  using A = Compute<T>;
  SSGRL_SHARED(BackwardTile<A>, shared);
  BackwardTile<A>& tile = *shared;
  A* const own_u = reinterpret_cast<A*>(shared + 1);
  A* const sum_u = own_u + part * 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t first = blockIdx.x * part, end = first + part < n.rows() ? first + part : n.rows();
  const int rows = static_cast<int>(end - first);
  const int64_t k = blockIdx.y * static_cast<int64_t>(32) + lane;
  const bool inside = k < n.joint;
  const A own_p = inside ? p[k] : A(0);
  A top_u = 0;
  for (int i = warp; i < rows; i += kScoreWarps) {
    const A x = at_or_zero(u, first + i, end, k, n.joint);
    own_u[i * 32 + lane] = x;
    sum_u[i * 32 + lane] = 0;
    top_u = fmax(top_u, fabs(x));
  }
  tile.top[warp][lane] = top_u;
  __syncthreads();
  for (int w = 0; w < kScoreWarps; ++w) {
    top_u = fmax(top_u, tile.top[w][lane]);
  }
  A sum_p = 0;
  for (int64_t label = 0; label < n.classes; label += kClassStep) {
    const int64_t own = label + warp * kLaneClasses;
    const int classes = static_cast<int>(own < n.classes ? n.classes - own : 0);
    A own_v[kLaneClasses], sum_v[kLaneClasses] = {}, top_v = 0;
#pragma unroll
    for (int j = 0; j < kLaneClasses; ++j) {
      own_v[j] = at_or_zero(v, own + j, n.classes, k, n.joint);
      top_v = fmax(top_v, fabs(own_v[j]));
    }
    const bool near = TanhOf<T>::bounded && __all_sync(kAllLanes, top_u * top_v <= A(kNear));
    for (int row = 0; row < rows; row += kRowStep) {
      load_score_gradients(tile, n, d_scores, first + row, end, label);
      __syncthreads();
      const int here = rows - row < kRowStep ? rows - row : kRowStep;
      for (int i = 0; i < here; ++i) {
        const A x = own_u[(row + i) * 32 + lane];
        const A* g = &tile.g[i][warp * kLaneClasses];
        tile.shares[warp][i][lane] = near ? row_gradients<T, true>(g, x, own_v, classes, sum_v, sum_p)
                                          : row_gradients<T, false>(g, x, own_v, classes, sum_v, sum_p);
      }
      __syncthreads();
      for (int i = warp; i < here; i += kScoreWarps) {
        A sum = 0;
        for (int w = 0; w < kScoreWarps; ++w) {
          sum += tile.shares[w][i][lane];
        }
        sum_u[(row + i) * 32 + lane] += sum;
      }
    }
#pragma unroll
    for (int j = 0; j < kLaneClasses; ++j) {
      if (j < classes && inside) {
        d_v[(blockIdx.x * n.classes + own + j) * n.joint + k] = sum_v[j] * own_p;
      }
    }
  }
  for (int i = warp; i < rows && inside; i += kScoreWarps) {  // the rows that this warp has summed
    d_u[(first + i) * n.joint + k] = narrow<T>(sum_u[i * 32 + lane] * own_p);
  }
  __syncthreads();
  tile.shares[warp][0][lane] = sum_p;
  __syncthreads();
  if (warp == 0 && inside) {
    A sum = 0;
    for (int w = 0; w < kScoreWarps; ++w) {
      sum += tile.shares[w][0][lane];
    }
    d_p[blockIdx.x * n.joint + k] = sum;
  }
}

}  // namespace ssgrl::cuda
