// The schemas of the operators: one forward and one backward per operation, and one for inference only.
// cpu/register.cpp and cuda/register.cpp add the implementations.
//
// B images, L locations, C classes, D channels, K joint channels, O output channels, T steps.
// A gradient that was not requested is returned as an empty tensor of shape [0].

#include "operators/library.h"

STABLE_TORCH_LIBRARY(SSGRL_LIBRARY, m) {
  // eq. 3-6: u [B, L, K], v [C, K], p [K], features [B, L, D] -> pooled [B, C, D], attention [B, C, L]
  m.def("semantic_attention(Tensor u, Tensor v, Tensor p, Tensor features) -> (Tensor, Tensor)");
  m.def(
      "semantic_attention_backward(Tensor? grad_pooled, Tensor? grad_attention, Tensor u, Tensor v, Tensor p, "
      "Tensor features, Tensor attention, bool need_features) -> (Tensor, Tensor, Tensor, Tensor)");

  // eq. 7-9: h0 [B, C, D], adjacency [C, C], weights packed (2) or in the published blocks (6), biases 0, 2 or 3
  // -> h_T [B, C, D] and, if save, states [T, B*C, 4D], gates [T, B*C, 3D] and the low-rank products of step 1
  m.def(
      "graph_propagation(Tensor h0, Tensor adjacency, Tensor? attention, Tensor? features, Tensor[] weights, "
      "Tensor[] biases, int steps, bool tied, bool save) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "graph_propagation_backward(Tensor grad, Tensor h0, Tensor adjacency, Tensor? attention, Tensor? features, "
      "Tensor[] weights, Tensor[] biases, Tensor[] saved, int steps, bool tied, bool need_features) "
      "-> (Tensor, Tensor, Tensor, Tensor[], Tensor[])");

  // eq. 7-9 for inference with products in e4m3: weights [2D, 3D] and [D, 3D] in e4m3 with scales [2D] and [D]; A h is
  // divided by inward and A^T h by outward before rounding -> h_T [B, C, D] bfloat16
  m.def(
      "graph_propagation_fp8(Tensor h0, Tensor adjacency, Tensor weight_zr, Tensor scale_zr, Tensor? bias_zr, "
      "Tensor weight_h, Tensor scale_h, Tensor? bias_h, float inward, float outward, int steps) -> Tensor");

  // eq. 10: h_T, h0 [B, C, D], weight_o [O, 2D], bias_o [O], weight_c [C, O], bias_c [C]
  // -> logits [B, C] and, if save, the output of f_o before tanh [B*C, O] and features @ W_b^T [B*L, O]
  m.def(
      "label_scores(Tensor h_T, Tensor h0, Tensor? attention, Tensor? features, Tensor weight_o, Tensor? bias_o, "
      "Tensor weight_c, Tensor? bias_c, bool save) -> (Tensor, Tensor, Tensor)");
  m.def(
      "label_scores_backward(Tensor grad, Tensor h_T, Tensor h0, Tensor? attention, Tensor? features, "
      "Tensor weight_o, Tensor weight_c, Tensor[] saved, bool need_features) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}
