"""Accelerate a network with the layers of the published code in place: same parameters, same checkpoint, one line.

    python examples/migrate.py

The small network below stands for your own; its modules have the names of the published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Semantic(nn.Module):
    """Attention of each class over the feature map, from its word vector, and the features averaged with it."""

    def __init__(self, num_classes: int, dim: int, word_dim: int, joint: int) -> None:
        super().__init__()
        self.num_classes, self.image_feature_dim, self.word_feature_dim = num_classes, dim, word_dim
        self.intermediary_dim = joint
        self.fc_1, self.fc_2 = nn.Linear(dim, joint, bias=False), nn.Linear(word_dim, joint, bias=False)
        self.fc_3, self.fc_a = nn.Linear(joint, joint), nn.Linear(joint, 1)

    def forward(self, batch_size: int, features: Tensor, words: Tensor) -> Tensor:
        rows = features.flatten(2).transpose(1, 2)  # [B, L, D]
        joint = torch.tanh(self.fc_1(rows)[:, :, None] * self.fc_2(words)[None, None])  # [B, L, C, K]
        weights = self.fc_a(self.fc_3(joint)).squeeze(-1).softmax(dim=1)  # [B, L, C]
        return weights.transpose(1, 2) @ rows  # [B, C, D]


class GGNN(nn.Module):
    """Gated graph network; the reset gate uses fc_eq3_u, as in the published code."""

    def __init__(self, dim: int, time_step: int, in_matrix: Tensor, out_matrix: Tensor) -> None:
        super().__init__()
        self.input_dim, self.time_step = dim, time_step
        self._in_matrix, self._out_matrix = in_matrix, out_matrix
        for gate in (3, 4, 5):
            setattr(self, f"fc_eq{gate}_w", nn.Linear(2 * dim, dim))
            setattr(self, f"fc_eq{gate}_u", nn.Linear(dim, dim))

    def forward(self, state: Tensor) -> Tensor:
        for _ in range(self.time_step):
            message = torch.cat([self._in_matrix @ state, self._out_matrix @ state], dim=-1)
            kept = self.fc_eq3_u(state)
            update = torch.sigmoid(self.fc_eq3_w(message) + kept)
            reset = torch.sigmoid(self.fc_eq4_w(message) + kept)
            candidate = torch.tanh(self.fc_eq5_w(message) + self.fc_eq5_u(reset * state))
            state = (1 - update) * state + update * candidate
        return state


class ElementWise(nn.Module):
    """One row of weights per class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(num_classes, dim) / dim**0.5),
            nn.Parameter(torch.zeros(num_classes)),
        )

    def forward(self, rows: Tensor) -> Tensor:
        return (rows * self.weight).sum(dim=2) + self.bias


class OldNetwork(nn.Module):
    """The published head on a tiny backbone."""

    def __init__(self, num_classes: int = 6, dim: int = 32, joint: int = 24) -> None:
        super().__init__()
        self.word_features = torch.randn(num_classes, 20)
        graph = torch.rand(num_classes, num_classes)
        self.num_classes, self.time_step = num_classes, 3
        self.backbone = nn.Conv2d(3, dim, kernel_size=16, stride=16)
        self.word_semantic = Semantic(num_classes, dim, 20, joint)
        self.graph_net = GGNN(dim, 3, graph, graph.T)
        self.fc_output = nn.Linear(2 * dim, dim)
        self.classifiers = ElementWise(num_classes, dim)

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        pooled = self.word_semantic(len(images), features, self.word_features)
        last = self.graph_net(pooled)
        return self.classifiers(torch.tanh(self.fc_output(torch.cat([last, pooled], dim=-1))))


def main() -> float:
    from ssgrl_fast import accelerate, restore

    torch.manual_seed(0)
    model, images = OldNetwork(), torch.rand(2, 3, 64, 64)
    keys, before = list(model.state_dict()), model(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)  # created before accelerate: it remains valid

    accelerate(model)  # this is the one line; it prints what it replaced

    after = model(images)
    error = (after - before).abs().max().item()
    print(f"largest difference of the logits: {error:.1e}")
    assert list(model.state_dict()) == keys  # checkpoints still fit
    after.sum().backward()
    optimizer.step()
    restore(model)
    return error


if __name__ == "__main__":
    main()
