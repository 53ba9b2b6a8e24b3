// Launchers of split_tanh.h.

#include "split_tanh.cuh"
#include "split_tanh_backward.cuh"

namespace ssgrl::cuda {
namespace {

constexpr int64_t kBlocksWanted = 264;  // two per multiprocessor of an H100 (132)

unsigned extent(int64_t count) { return static_cast<unsigned>(count); }

template <class T>
bool aligned(const AttentionSizes& n, const T* u, const T* v) {
  return n.joint % 8 == 0 && reinterpret_cast<uintptr_t>(u) % 16 == 0 && reinterpret_cast<uintptr_t>(v) % 16 == 0;
}

// Rows per part of d_v.
int64_t rows_of_part(const AttentionSizes& n) {
  int64_t part = 3 * kSideChunk;
  while (part < n.rows() && ceil_div(n.rows(), part) * n.classes * n.joint * int64_t(sizeof(float)) > n.scratch_bytes) {
    part *= 2;
  }
  return part;
}

}  // namespace

int64_t split_score_parts(const AttentionSizes& n) {
  const int64_t tiles = ceil_div(n.rows(), kSplitRows) * ceil_div(n.classes, kSplitClasses);
  const int64_t chunks = ceil_div(n.joint, kSplitChunk), parts = tiles == 0 ? 1 : kBlocksWanted / tiles;
  return parts < 1 ? 1 : parts > chunks ? (chunks < 1 ? 1 : chunks) : parts;
}

template <class T>
void split_scores(const AttentionSizes& n, const T* u, const T* v, const float* p, float* scores) {
  const int64_t parts = split_score_parts(n), chunks = ceil_div(n.joint, kSplitChunk);
  const dim3 grid(extent(ceil_div(n.rows(), kSplitRows)), extent(ceil_div(n.classes, kSplitClasses)), extent(parts));
  launch(
      split_scores_kernel<T>, grid, dim3(kScoreThreads), sizeof(SplitShared<T>), n, u, v, p, scores,
      ceil_div(chunks, parts) * kSplitChunk, aligned(n, u, v));
}

int64_t split_score_backward_scratch(const AttentionSizes& n) {
  return (ceil_div(n.rows(), rows_of_part(n)) * n.classes + ceil_div(n.rows(), kSideRows)) * n.joint;
}

template <class T>
void split_scores_backward(
    const AttentionSizes& n, const T* u, const T* v, const float* p, const float* d_scores, T* d_u, T* d_v, float* d_p,
    float* scratch) {
  const int64_t part = rows_of_part(n), parts = ceil_div(n.rows(), part), row_tiles = ceil_div(n.rows(), kSideRows);
  const unsigned slices = extent(ceil_div(n.joint, kSideChannels));
  float* const parts_v = scratch;
  float* const parts_p = scratch + parts * n.classes * n.joint;
  launch(
      split_side_kernel<T, T, true>, dim3(extent(row_tiles), slices), dim3(kScoreThreads), sizeof(SideTile<T>), n, u, v,
      p, d_scores, d_u, parts_p, n.classes, aligned(n, u, v));
  launch(
      split_side_kernel<T, float, false>, dim3(extent(parts * ceil_div(n.classes, kSideRows)), slices),
      dim3(kScoreThreads), sizeof(SideTile<T>), n, v, u, p, d_scores, parts_v, static_cast<float*>(nullptr), part,
      aligned(n, u, v));
  sum_parts<T>(parts_v, parts, n.classes * n.joint, d_v);
  sum_parts<float>(parts_p, row_tiles, n.joint, d_p);
}

#define SSGRL_SPLIT_SCORES(T)                                                                  \
  template void split_scores(const AttentionSizes&, const T*, const T*, const float*, float*); \
  template void split_scores_backward(                                                         \
      const AttentionSizes&, const T*, const T*, const float*, const float*, T*, T*, float*, float*);
SSGRL_SPLIT_SCORES(BFloat16)
SSGRL_SPLIT_SCORES(Half)
#undef SSGRL_SPLIT_SCORES

}  // namespace ssgrl::cuda
