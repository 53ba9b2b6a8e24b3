// Backward kernel of scores.h: d_u, d_v and d_p from one evaluation of tanh per (r, c, k).
//
//   d_u[r, k] = p[k] sum_c g s v      d_v[c, k] = p[k] sum_r g s u      d_p[k] = sum_rc g t
//
// with t = tanh(u v), s = 1 - t^2, g = d_scores.
//
// Tiles. A block takes 32 channels, one per lane, of one part of the rows; u and d_u of the part stay in shared memory.
// The classes are processed in the fewest, evenly sized passes that leave a warp at most 8 classes: a lane keeps v and
// d_v of its classes in registers while the rows pass, 16 at a time, and the warps' contributions to d_u of a row are
// summed in shared memory. A second kernel sums d_v and d_p over the parts, in order. The form of tanh is selected once
// for the classes of a warp and its 32 channels.

#pragma once

#include "scores.cuh"

namespace ssgrl::cuda {

constexpr int kRowStep = 16, kLaneClasses = 8;

// Shared memory of a block, followed by u [part, 32] and d_u [part, 32].
template <class A>
struct BackwardTile {
  A g[kRowStep][kScoreWarps * kLaneClasses + 4];  // classes of a warp begin at multiples of 8
  A shares[kScoreWarps][kRowStep][32];
  A top[kScoreWarps][32];
};

template <class A>
constexpr size_t backward_shared_bytes(int64_t part) {
  return sizeof(BackwardTile<A>) + 2 * part * 32 * sizeof(A);
}

// Registers of a lane: v of its classes and its sums for them.
template <class A>
struct LaneClasses {
  int count;
  A v[kLaneClasses], d_v[kLaneClasses], d_p;
};

// Processes up to 16 rows from u on: writes this warp's sum_c g s v to `shares` and adds to d_v and d_p. The second
// class of the last pair may not exist: its v and g are zero, and its product u v is set to zero, since u may be
// infinite.
template <class T, bool near, int pairs, class A>
__device__ __forceinline__ void pass_rows(BackwardTile<A>& tile, const A* u, int rows, LaneClasses<A>& own) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < rows; ++i) {
    const A x_u = u[i * 32 + lane];
    const auto* g = reinterpret_cast<const Four<A>*>(&tile.g[i][warp * kLaneClasses]);
    A d_u = 0, row_p = 0;
#pragma unroll
    for (int j = 0; j < 2 * pairs; ++j) {
      const A x = j < 2 * pairs - 1 || j < own.count ? x_u * own.v[j] : A(0), g_j = g[j / 4].x[j % 4];
      const Tanh<A> t = near ? TanhOf<T>::near_both(x) : TanhOf<T>::both(x);
      const A w = g_j * t.slope;
      d_u += w * own.v[j];
      own.d_v[j] += w * x_u;
      row_p += g_j * t.value;
    }
    own.d_p += row_p;
    tile.shares[warp][i][lane] = d_u;
  }
}

template <class T, bool near, class A>
__device__ __forceinline__ void pass_rows(BackwardTile<A>& tile, const A* u, int rows, LaneClasses<A>& own) {
  switch ((own.count + 1) / 2) {
    case 0:
      return pass_rows<T, near, 0>(tile, u, rows, own);
    case 1:
      return pass_rows<T, near, 1>(tile, u, rows, own);
    case 2:
      return pass_rows<T, near, 2>(tile, u, rows, own);
    case 3:
      return pass_rows<T, near, 3>(tile, u, rows, own);
    default:
      return pass_rows<T, near, 4>(tile, u, rows, own);
  }
}

// Loads d_scores of rows [row, row + 16) and the classes of this pass (`share` per warp) into shared memory; zero
// outside.
template <class A>
__device__ __forceinline__ void load_score_gradients(
    BackwardTile<A>& tile, const AttentionSizes& n, const A* d_scores, int64_t row, int64_t end, int64_t label,
    int share) {
  const int in_row = threadIdx.x % kRowStep;
  const int64_t r = row + in_row, image = r / n.locations;
  for (int i = threadIdx.x / kRowStep; i < kScoreWarps * kLaneClasses; i += kScoreThreads / kRowStep) {
    const int j = i % kLaneClasses;
    const int64_t c = label + i / kLaneClasses * share + j;
    tile.g[in_row][i] = r < end && j < share && c < n.classes
                            ? d_scores[(image * n.classes + c) * n.locations + (r - image * n.locations)]
                            : A(0);
  }
}

// Grid: (parts of `part` rows, blocks of 32 channels). d_v [parts, C, K] and d_p [parts, K] are summed afterwards.
template <class T>
__global__ void __launch_bounds__(kScoreThreads, sizeof(Compute<T>) == 8 ? 1 : 4) scores_backward_kernel(
    const AttentionSizes n, const T* u, const T* v, const Compute<T>* p, const Compute<T>* d_scores, T* d_u,
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
  const int64_t passes = (n.classes - 1) / (kScoreWarps * kLaneClasses) + 1;
  const int share = static_cast<int>(ceil_div(n.classes, passes * kScoreWarps));
  LaneClasses<A> own;
  own.d_p = 0;
  for (int64_t label = 0; label < n.classes; label += share * kScoreWarps) {
    const int64_t first_class = label + warp * share, left = n.classes - first_class;
    own.count = static_cast<int>(left < 0 ? 0 : left < share ? left : share);
    A top_v = 0;
#pragma unroll
    for (int j = 0; j < kLaneClasses; ++j) {
      own.v[j] = j < own.count ? at_or_zero(v, first_class + j, n.classes, k, n.joint) : A(0);
      own.d_v[j] = 0;
      top_v = fmax(top_v, fabs(own.v[j]));
    }
    const bool near = TanhOf<T>::bounded && __all_sync(kAllLanes, top_u * top_v <= A(kNear));
    for (int row = 0; row < rows; row += kRowStep) {
      load_score_gradients(tile, n, d_scores, first + row, end, label, share);
      __syncthreads();
      const int here = rows - row < kRowStep ? rows - row : kRowStep;
      if (near) {
        pass_rows<T, true>(tile, own_u + row * 32, here, own);
      } else {
        pass_rows<T, false>(tile, own_u + row * 32, here, own);
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
      if (j < own.count && inside) {
        d_v[(blockIdx.x * n.classes + first_class + j) * n.joint + k] = own.d_v[j] * own_p;
      }
    }
  }
  for (int i = warp; i < rows && inside; i += kScoreWarps) {  // rows whose shares this warp sums
    d_u[(first + i) * n.joint + k] = narrow<T>(sum_u[i * 32 + lane] * own_p);
  }
  __syncthreads();
  tile.shares[warp][0][lane] = own.d_p;
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
