// The launchers of csrc/cuda/{scores,split_tanh}.h for tests/cuda/test_cuda_scores.py; dtype: 0 float64, 1 float32, 2
// bfloat16, 3 float16.

#include "bindings.h"
#include "cuda/common/types.cuh"
#include "cuda/semantic_attention/split_tanh.h"

using namespace ssgrl::cuda;
using ssgrl::Compute;

namespace {

template <class T>
struct Of {
  using type = T;
};

template <class Body>
const char* with_dtype(bool backwards, int64_t dtype, Body body) {
  return emulated(backwards, [&] {
    switch (dtype) {
      case 0:
        return body(Of<double>());
      case 1:
        return body(Of<float>());
      case 2:
        return body(Of<BFloat16>());
      default:
        return body(Of<Half>());
    }
  });
}

template <class T>
const T* in(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
T* out(void* p) {
  return static_cast<T*>(p);
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default"))) const char*

EXPORTED emulated_score_sizes(
    bool backwards, int64_t dtype, int64_t images, int64_t locations, int64_t classes, int64_t joint,
    int64_t scratch_bytes, int64_t* sizes) {
  return with_dtype(backwards, dtype, [&](auto of) {
    const AttentionSizes n{images, locations, classes, joint, scratch_bytes};
    sizes[0] = score_parts(n);
    sizes[1] = score_backward_scratch<typename decltype(of)::type>(n);
  });
}

EXPORTED emulated_scores(
    bool backwards, int64_t dtype, int64_t images, int64_t locations, int64_t classes, int64_t joint,
    int64_t scratch_bytes, const void* u, const void* v, const void* p, void* parts) {
  return with_dtype(backwards, dtype, [&](auto of) {
    using T = typename decltype(of)::type;
    using A = Compute<T>;
    scores<T>({images, locations, classes, joint, scratch_bytes}, in<T>(u), in<T>(v), in<A>(p), out<A>(parts));
  });
}

EXPORTED emulated_softmax(
    bool backwards, int64_t dtype, int64_t rows, int64_t locations, int64_t parts, const void* scores,
    void* attention) {
  return with_dtype(backwards, dtype, [&](auto of) {
    using A = Compute<typename decltype(of)::type>;
    softmax<A>(rows, locations, parts, in<A>(scores), out<A>(attention));
  });
}

EXPORTED emulated_softmax_in_place(bool backwards, int64_t dtype, int64_t rows, int64_t locations, void* scores) {
  return with_dtype(backwards, dtype, [&](auto of) {
    using A = Compute<typename decltype(of)::type>;
    softmax<A>(rows, locations, 1, in<A>(scores), out<A>(scores));
  });
}

EXPORTED emulated_softmax_backward(
    bool backwards, int64_t dtype, int64_t rows, int64_t locations, const void* attention, const void* grad_attention,
    const void* from_pooled, void* d_scores) {
  return with_dtype(backwards, dtype, [&](auto of) {
    using T = typename decltype(of)::type;
    using A = Compute<T>;
    softmax_backward<T>(rows, locations, in<A>(attention), in<A>(grad_attention), in<T>(from_pooled), out<A>(d_scores));
  });
}

EXPORTED emulated_scores_backward(
    bool backwards, int64_t dtype, int64_t images, int64_t locations, int64_t classes, int64_t joint,
    int64_t scratch_bytes, const void* u, const void* v, const void* p, const void* d_scores, void* d_u, void* d_v,
    void* d_p, void* scratch) {
  return with_dtype(backwards, dtype, [&](auto of) {
    using T = typename decltype(of)::type;
    using A = Compute<T>;
    scores_backward<T>(
        {images, locations, classes, joint, scratch_bytes}, in<T>(u), in<T>(v), in<A>(p), in<A>(d_scores), out<T>(d_u),
        out<T>(d_v), out<A>(d_p), out<A>(scratch));
  });
}

EXPORTED emulated_split_score_sizes(
    bool backwards, int64_t, int64_t images, int64_t locations, int64_t classes, int64_t joint, int64_t scratch_bytes,
    int64_t* sizes) {
  return emulated(backwards, [&] {
    const AttentionSizes n{images, locations, classes, joint, scratch_bytes};
    sizes[0] = split_score_parts(n);
    sizes[1] = split_score_backward_scratch(n);
  });
}

EXPORTED emulated_split_scores(
    bool backwards, int64_t dtype, int64_t images, int64_t locations, int64_t classes, int64_t joint,
    int64_t scratch_bytes, const void* u, const void* v, const float* p, float* parts) {
  return emulated(backwards, [&] {
    const AttentionSizes n{images, locations, classes, joint, scratch_bytes};
    if (dtype == 2) {
      split_scores(n, in<BFloat16>(u), in<BFloat16>(v), p, parts);
    } else {
      split_scores(n, in<Half>(u), in<Half>(v), p, parts);
    }
  });
}

EXPORTED emulated_split_scores_backward(
    bool backwards, int64_t dtype, int64_t images, int64_t locations, int64_t classes, int64_t joint,
    int64_t scratch_bytes, const void* u, const void* v, const float* p, const float* d_scores, void* d_u, void* d_v,
    float* d_p, float* scratch) {
  return emulated(backwards, [&] {
    const AttentionSizes n{images, locations, classes, joint, scratch_bytes};
    if (dtype == 2) {
      split_scores_backward(
          n, in<BFloat16>(u), in<BFloat16>(v), p, d_scores, out<BFloat16>(d_u), out<BFloat16>(d_v), d_p, scratch);
    } else {
      split_scores_backward(n, in<Half>(u), in<Half>(v), p, d_scores, out<Half>(d_u), out<Half>(d_v), d_p, scratch);
    }
  });
}
