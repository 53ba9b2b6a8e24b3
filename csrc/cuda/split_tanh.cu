// Launchers of split_tanh.h.

#include "split_tanh.cuh"

namespace ssgrl::cuda {
namespace {

constexpr int64_t kBlocksWanted = 264;  // two for each of 132 multiprocessors

unsigned extent(int64_t count) { return static_cast<unsigned>(count); }

template <class T>
bool aligned(const ScoreSizes& n, const T* u, const T* v) {
  return n.joint % 8 == 0 && reinterpret_cast<uintptr_t>(u) % 16 == 0 && reinterpret_cast<uintptr_t>(v) % 16 == 0;
}

}  // namespace

int64_t split_score_parts(const ScoreSizes& n) {
  const int64_t tiles = ceil_div(n.rows(), kSplitRows) * ceil_div(n.classes, kSplitClasses);
  const int64_t chunks = ceil_div(n.joint, kSplitChunk), parts = tiles == 0 ? 1 : kBlocksWanted / tiles;
  return parts < 1 ? 1 : parts > chunks ? (chunks < 1 ? 1 : chunks) : parts;
}

template <class T>
void split_scores(const ScoreSizes& n, const T* u, const T* v, const float* p, float* scores) {
  const int64_t parts = split_score_parts(n), chunks = ceil_div(n.joint, kSplitChunk);
  const dim3 grid(extent(ceil_div(n.rows(), kSplitRows)), extent(ceil_div(n.classes, kSplitClasses)), extent(parts));
  launch(
      split_scores_kernel<T>, grid, dim3(kScoreThreads), sizeof(SplitShared<T>), n, u, v, p, scores,
      ceil_div(chunks, parts) * kSplitChunk, aligned(n, u, v));
}

#define SSGRL_SPLIT_SCORES(T) template void split_scores(const ScoreSizes&, const T*, const T*, const float*, float*);
SSGRL_SPLIT_SCORES(BFloat16)
SSGRL_SPLIT_SCORES(Half)
#undef SSGRL_SPLIT_SCORES

}  // namespace ssgrl::cuda
