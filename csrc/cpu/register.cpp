// Registers the operators on the CPU.

#include "device.h"
#include "operators/graph_propagation.h"
#include "operators/label_scores.h"
#include "operators/library.h"
#include "operators/semantic_attention.h"

STABLE_TORCH_LIBRARY_IMPL(SSGRL_LIBRARY, CPU, m) {
  m.impl("semantic_attention", TORCH_BOX(&ssgrl::semantic_attention::forward<ssgrl::Cpu>));
  m.impl("semantic_attention_backward", TORCH_BOX(&ssgrl::semantic_attention::backward<ssgrl::Cpu>));
  m.impl("graph_propagation", TORCH_BOX(&ssgrl::graph_propagation::forward<ssgrl::Cpu>));
  m.impl("graph_propagation_backward", TORCH_BOX(&ssgrl::graph_propagation::backward<ssgrl::Cpu>));
  m.impl("label_scores", TORCH_BOX(&ssgrl::label_scores::forward<ssgrl::Cpu>));
  m.impl("label_scores_backward", TORCH_BOX(&ssgrl::label_scores::backward<ssgrl::Cpu>));
}
