// Launchers of scores.h.

#include "scores_backward.cuh"

namespace ssgrl::cuda {
namespace {

constexpr int64_t kBlocksWanted = 528;  // four per multiprocessor of an H100 (132)

unsigned extent(int64_t count) { return static_cast<unsigned>(count); }

// Rows per part of the backward. Small parts fill the GPU, large ones need less scratch; shared memory holds 256 rows
// in float32 and 128 in float64.
template <class A>
int64_t rows_of_part(const AttentionSizes& n) {
  int64_t part = 64;
  const int64_t most = sizeof(A) == 4 ? 256 : 128;
  while (part < most && ceil_div(n.rows(), part) * n.classes * n.joint * int64_t(sizeof(A)) > n.scratch_bytes) {
    part *= 2;
  }
  return part;
}

}  // namespace

int64_t score_parts(const AttentionSizes& n) {
  using Tile = ScoreTile<float>;
  const int64_t tiles = ceil_div(n.rows(), Tile::rows) * ceil_div(n.classes, Tile::classes);
  const int64_t chunks = ceil_div(n.joint, Tile::channels);
  const int64_t parts = tiles == 0 ? 1 : kBlocksWanted / tiles;
  return parts < 1 ? 1 : parts > chunks ? (chunks < 1 ? 1 : chunks) : parts;
}

template <class T>
void scores(const AttentionSizes& n, const T* u, const T* v, const Compute<T>* p, Compute<T>* scores) {
  using Tile = ScoreTile<Compute<T>>;
  const int64_t parts = score_parts(n), chunks = ceil_div(n.joint, Tile::channels);
  const dim3 grid(extent(ceil_div(n.rows(), Tile::rows)), extent(ceil_div(n.classes, Tile::classes)), extent(parts));
  launch(
      scores_kernel<T>, grid, dim3(kScoreThreads), sizeof(ScoreShared<Compute<T>>), n, u, v, p, scores,
      ceil_div(chunks, parts) * Tile::channels);
}

template <class A>
void softmax(int64_t rows, int64_t locations, int64_t parts, const A* scores, A* attention) {
  launch(
      softmax_kernel<A>, dim3(extent(ceil_div(rows, kScoreWarps))), dim3(kScoreThreads), 0, rows, locations, parts,
      scores, attention);
}

template <class T>
void softmax_backward(
    int64_t rows, int64_t locations, const Compute<T>* attention, const Compute<T>* grad_attention,
    const T* from_pooled, Compute<T>* d_scores) {
  launch(
      softmax_backward_kernel<T>, dim3(extent(ceil_div(rows, kScoreWarps))), dim3(kScoreThreads), 0, rows, locations,
      attention, grad_attention, from_pooled, d_scores);
}

template <class T>
int64_t score_backward_scratch(const AttentionSizes& n) {
  return ceil_div(n.rows(), rows_of_part<Compute<T>>(n)) * (n.classes + 1) * n.joint;
}

template <class T>
void scores_backward(
    const AttentionSizes& n, const T* u, const T* v, const Compute<T>* p, const Compute<T>* d_scores, T* d_u, T* d_v,
    Compute<T>* d_p, Compute<T>* scratch) {
  using A = Compute<T>;
  const int64_t part = rows_of_part<A>(n), parts = ceil_div(n.rows(), part);
  A* const parts_v = scratch;
  A* const parts_p = scratch + parts * n.classes * n.joint;
  launch(
      scores_backward_kernel<T>, dim3(extent(parts), extent(ceil_div(n.joint, 32))), dim3(kScoreThreads),
      backward_shared_bytes<A>(part), n, u, v, p, d_scores, d_u, parts_v, parts_p, part);
  sum_parts<T>(parts_v, parts, n.classes * n.joint, d_v);
  sum_parts<A>(parts_p, parts, n.joint, d_p);
}

template <class T>
void sum_parts(const Compute<T>* in, int64_t parts, int64_t count, T* out) {
  launch(
      sum_parts_kernel<T>, dim3(extent(ceil_div(count, kScoreThreads))), dim3(kScoreThreads), 0, in, parts, count, out);
}

#define SSGRL_INSTANTIATE(T)                                                                                     \
  template void scores(const AttentionSizes&, const T*, const T*, const Compute<T>*, Compute<T>*);               \
  template void softmax_backward(int64_t, int64_t, const Compute<T>*, const Compute<T>*, const T*, Compute<T>*); \
  template int64_t score_backward_scratch<T>(const AttentionSizes&);                                             \
  template void scores_backward(                                                                                 \
      const AttentionSizes&, const T*, const T*, const Compute<T>*, const Compute<T>*, T*, T*, Compute<T>*,      \
      Compute<T>*);                                                                                              \
  template void sum_parts(const Compute<T>*, int64_t, int64_t, T*);
SSGRL_INSTANTIATE(double)
SSGRL_INSTANTIATE(float)
SSGRL_INSTANTIATE(Half)
SSGRL_INSTANTIATE(BFloat16)
#undef SSGRL_INSTANTIATE
template void softmax(int64_t, int64_t, int64_t, const float*, float*);
template void softmax(int64_t, int64_t, int64_t, const double*, double*);

}  // namespace ssgrl::cuda
