// Registers the operators on CUDA. Their schemas (csrc/schemas.cpp) are declared by ssgrl_fast._C. SSGRL_GATED_PRODUCT
// is defined in builds with CUTLASS; inference then uses the products of sm90/, which compute the gates and the class
// rows in their epilogues.

#include "device.h"
#include "operators/graph_propagation.h"
#include "operators/label_scores.h"
#include "operators/library.h"
#include "operators/semantic_attention.h"

#if defined(SSGRL_GATED_PRODUCT)
#include "cuda/sm90/graph_propagation.h"
#include "cuda/sm90/graph_propagation_fp8.h"
#include "cuda/sm90/label_scores.h"
#define SSGRL_GRAPH_PROPAGATION ssgrl::cuda::graph_propagation_forward
#define SSGRL_LABEL_SCORES ssgrl::cuda::label_scores_forward
#else
#define SSGRL_GRAPH_PROPAGATION ssgrl::graph_propagation::forward<ssgrl::Cuda>
#define SSGRL_LABEL_SCORES ssgrl::label_scores::forward<ssgrl::Cuda>
#endif

#if defined(SSGRL_EMULATED)
#define SSGRL_KEY CPU
#else
#define SSGRL_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_IMPL(SSGRL_LIBRARY, SSGRL_KEY, m) {
  m.impl("semantic_attention", TORCH_BOX(&ssgrl::semantic_attention::forward<ssgrl::Cuda>));
  m.impl("semantic_attention_backward", TORCH_BOX(&ssgrl::semantic_attention::backward<ssgrl::Cuda>));
  m.impl("graph_propagation", TORCH_BOX(&SSGRL_GRAPH_PROPAGATION));
  m.impl("graph_propagation_backward", TORCH_BOX(&ssgrl::graph_propagation::backward<ssgrl::Cuda>));
#if defined(SSGRL_GATED_PRODUCT)
  m.impl("graph_propagation_fp8", TORCH_BOX(&ssgrl::cuda::graph_propagation_fp8));
#endif
  m.impl("label_scores", TORCH_BOX(&SSGRL_LABEL_SCORES));
  m.impl("label_scores_backward", TORCH_BOX(&ssgrl::label_scores::backward<ssgrl::Cuda>));
}
