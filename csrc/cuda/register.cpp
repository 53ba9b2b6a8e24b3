// The operators on CUDA; the schemas are those of csrc/schemas.cpp, which ssgrl_fast._C declares. SSGRL_GATED_PRODUCT:
// built with CUTLASS, and so with the products that have the operators' arithmetic in their epilogues.

#include "operators/graph_propagation.h"
#include "operators/label_scores.h"
#include "operators/library.h"
#include "operators/semantic_attention.h"
#include "device.h"

#if defined(SSGRL_GATED_PRODUCT)
#include "cuda/sm90/propagation.h"
#include "cuda/sm90/scores.h"
#include "cuda/sm90/propagation_fp8.h"
#define SSGRL_PROPAGATION ssgrl::cuda::graph_propagation
#define SSGRL_SCORES ssgrl::cuda::label_scores
#else
#define SSGRL_PROPAGATION ssgrl::graph_propagation<ssgrl::Cuda>
#define SSGRL_SCORES ssgrl::label_scores<ssgrl::Cuda>
#endif

#if defined(SSGRL_EMULATED)
#define SSGRL_KEY CPU
#else
#define SSGRL_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_IMPL(SSGRL_LIBRARY, SSGRL_KEY, m) {
  m.impl("semantic_attention", TORCH_BOX(&ssgrl::semantic_attention<ssgrl::Cuda>));
  m.impl("semantic_attention_backward", TORCH_BOX(&ssgrl::semantic_attention_backward<ssgrl::Cuda>));
  m.impl("graph_propagation", TORCH_BOX(&SSGRL_PROPAGATION));
  m.impl("graph_propagation_backward", TORCH_BOX(&ssgrl::graph_propagation_backward<ssgrl::Cuda>));
#if defined(SSGRL_GATED_PRODUCT)
  m.impl("graph_propagation_fp8", TORCH_BOX(&ssgrl::cuda::graph_propagation_fp8));
#endif
  m.impl("label_scores", TORCH_BOX(&SSGRL_SCORES));
  m.impl("label_scores_backward", TORCH_BOX(&ssgrl::label_scores_backward<ssgrl::Cuda>));
}
