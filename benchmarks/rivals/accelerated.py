"""Rival (d), ``accelerated``: a network in the published layout after ``ssgrl_fast.accelerate``.

Unlike the other rivals of this library it keeps the user's own code between the parts: separately stored layers, the
concatenation before f_o, and h0 without its factors. Shapes: B images, C classes, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.harness.cases import Case
from benchmarks.rivals.programs import Program, Tensors
from benchmarks.rivals.published import published_gradients, published_layers
from ssgrl_fast import accelerate
from ssgrl_fast.reference import published

_GATES = {"z": 3, "r": 4, "h": 5}  # a gate and the number of its equation in the published names


class _Decoupling(nn.Module):
    def __init__(self, layers: dict[str, nn.Linear], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc_1, self.fc_2, self.fc_3, self.fc_a = (layers[name] for name in ("image", "word", "joint", "score"))

    def forward(self, batch_size: int, img_feature_map: Tensor, word_features: Tensor) -> Tensor:
        features = img_feature_map.flatten(2).transpose(1, 2).contiguous()
        unread = dict.fromkeys(published.PublishedWeights.__dataclass_fields__)
        own = {"image": self.fc_1, "word": self.fc_2, "joint": self.fc_3, "score": self.fc_a}
        held = {name: layer.weight for name, layer in own.items()}
        biases = {"joint_bias": self.fc_3.bias, "score_bias": self.fc_a.bias}
        weights = published.PublishedWeights(**{**unread, **held, **biases})  # type: ignore[arg-type]
        return published.published_attention(features, word_features, weights)[0]


class _Propagation(nn.Module):
    def __init__(self, layers: dict[str, nn.Linear], adjacency: Tensor, time_step: int) -> None:
        super().__init__()
        self.in_matrix, self.out_matrix, self.time_step = adjacency, adjacency.t().contiguous(), time_step
        for gate, equation in _GATES.items():
            setattr(self, f"fc_eq{equation}_w", layers[f"w_{gate}"])
            setattr(self, f"fc_eq{equation}_u", layers[f"u_{gate}"])

    def forward(self, input: Tensor) -> Tensor:
        unread = dict.fromkeys(published.PublishedWeights.__dataclass_fields__)
        held = {f"w_{gate}": getattr(self, f"fc_eq{number}_w").weight for gate, number in _GATES.items()}
        held |= {f"u_{gate}": getattr(self, f"fc_eq{number}_u").weight for gate, number in _GATES.items()}
        weights = published.PublishedWeights(**{**unread, **held})
        return published.published_propagation(input, self.in_matrix, weights, self.time_step, "paper")


class _Rows(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())

    def forward(self, input: Tensor) -> Tensor:
        return (input * self.weight).sum(-1) + self.bias


class _Network(nn.Module):
    """A map [B, D, H, W] to logits [B, C], in the published names."""

    def __init__(self, case: Case, tensors: Tensors) -> None:
        super().__init__()
        blocks, _ = published_layers(case, tensors)
        layers = {
            name: _linear(weight, blocks.get(f"{name}_bias")) for name, weight in blocks.items() if weight.dim() == 2
        }
        self.words = tensors["words"]
        self.word_semantic = _Decoupling(layers, self.words.shape[0])
        self.graph_net = _Propagation(layers, tensors["adjacency"], case.shape.steps)
        self.fc_output = layers["output"]
        self.classifiers = _Rows(blocks["classifier"], blocks["classifier_bias"])

    def leaves(self) -> dict[str, Tensor]:
        """The parameters by the names of the published form's layers."""
        attention, graph = self.word_semantic, self.graph_net
        layers = {"image": attention.fc_1, "word": attention.fc_2, "joint": attention.fc_3, "score": attention.fc_a}
        for gate, equation in _GATES.items():
            layers[f"w_{gate}"] = getattr(graph, f"fc_eq{equation}_w")
            layers[f"u_{gate}"] = getattr(graph, f"fc_eq{equation}_u")
        layers["output"] = self.fc_output
        found: dict[str, Tensor] = {name: layer.weight for name, layer in layers.items()}
        found |= {f"{name}_bias": layer.bias for name, layer in layers.items() if layer.bias is not None}
        return found | {"classifier": self.classifiers.weight, "classifier_bias": self.classifiers.bias}

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.word_semantic(x.shape[0], x, self.words)
        states = self.graph_net(pooled)
        return self.classifiers(torch.tanh(self.fc_output(torch.cat([states, pooled], dim=-1))))


def build_accelerated(case: Case, tensors: Tensors) -> Program:
    """The network on a feature map, accelerated; every parameter gets its gradient."""
    network = accelerate(_Network(case, tensors), verbose=False)
    feature_map = tensors["feature_map"].detach().requires_grad_()
    leaves = {"feature_map": feature_map, **network.leaves()}
    return Program(lambda: (network(feature_map),), leaves, published_gradients)


def refuses_accelerated(case: Case) -> str | None:
    """It is a network, and so the head alone."""
    return None if case.operation == "head" else f"accelerate takes modules, and {case.operation} is a function here"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer
