// The operators on the CPU.

#include "operators/graph_propagation.h"
#include "operators/label_scores.h"
#include "operators/library.h"
#include "operators/semantic_attention.h"
#include "device.h"

STABLE_TORCH_LIBRARY_IMPL(SSGRL_LIBRARY, CPU, m) {
  m.impl("semantic_attention", TORCH_BOX(&ssgrl::semantic_attention<ssgrl::Cpu>));
  m.impl("semantic_attention_backward", TORCH_BOX(&ssgrl::semantic_attention_backward<ssgrl::Cpu>));
  m.impl("graph_propagation", TORCH_BOX(&ssgrl::graph_propagation<ssgrl::Cpu>));
  m.impl("graph_propagation_backward", TORCH_BOX(&ssgrl::graph_propagation_backward<ssgrl::Cpu>));
  m.impl("label_scores", TORCH_BOX(&ssgrl::label_scores<ssgrl::Cpu>));
  m.impl("label_scores_backward", TORCH_BOX(&ssgrl::label_scores_backward<ssgrl::Cpu>));
}
