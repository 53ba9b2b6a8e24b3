"""A head's weights in the published layout."""

from __future__ import annotations

from ssgrl_fast.modules import GraphPropagation, LabelClassifier, SSGRLHead
from ssgrl_fast.reference.published import PublishedWeights


def published_weights(head: SSGRLHead) -> PublishedWeights:
    """The head's weights, one tensor a published layer, as leaves of their own."""
    decoupling, graph, classifier = head.semantic_decoupling, head.graph_propagation, head.classifier
    assert isinstance(graph, GraphPropagation) and isinstance(classifier, LabelClassifier)
    gates, biases, dim = graph.gates(), [None] * 3, graph.dim
    if graph.bias_zr is not None and graph.bias_h is not None:
        biases = [graph.bias_zr[:dim], graph.bias_zr[dim:], graph.bias_h]
    tensors = {
        "image": decoupling.weight_u,
        "word": decoupling.weight_v,
        "joint": decoupling.weight_p,
        "joint_bias": decoupling.bias_p,
        "score": decoupling.weight_a.unsqueeze(0),
        "score_bias": decoupling.bias_a,
        **{"w_z": gates["W_z"], "u_z": gates["U_z"], "b_z": biases[0]},
        **{"w_r": gates["W_r"], "u_r": gates["U_r"], "b_r": biases[1]},
        **{"w_h": gates["W"], "u_h": gates["U"], "b_h": biases[2]},
        **{"output": classifier.weight_o, "output_bias": classifier.bias_o},
        **{"classifier": classifier.weight_c, "classifier_bias": classifier.bias_c},
    }
    leaves = {name: None if t is None else t.detach().clone().requires_grad_() for name, t in tensors.items()}
    return PublishedWeights(**leaves)  # type: ignore[arg-type]
