"""A user's own program, strictly typed: tests/packaging/test_typing.py runs it and checks its types by the
installed package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.metrics import AveragePrecision, Report, average_precision, evaluate

NAMES = ["cat", "dog", "bird"]


class Body(nn.Module):
    """A backbone: images [B, 3, H, W] to maps [B, 8, H/4, W/4]."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.out_channels, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images)
        return maps.relu()


class Gated(nn.Module):
    """Graph propagation in the published layout, as old code has it."""

    def __init__(self, dim: int, graph: Tensor) -> None:
        super().__init__()
        self.time_step = 2
        self._in_matrix, self._out_matrix = graph, graph.t().contiguous()
        self.fc_eq3_w, self.fc_eq3_u = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.fc_eq4_w, self.fc_eq4_u = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.fc_eq5_w, self.fc_eq5_u = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)

    def forward(self, h: Tensor) -> Tensor:
        for _ in range(self.time_step):
            around = torch.cat([self._in_matrix @ h, self._out_matrix @ h], -1)
            z = torch.sigmoid(self.fc_eq3_w(around) + self.fc_eq3_u(h))
            r = torch.sigmoid(self.fc_eq4_w(around) + self.fc_eq3_u(h))
            h = (1 - z) * h + z * torch.tanh(self.fc_eq5_w(around) + self.fc_eq5_u(r * h))
        return h


def build(labels: Tensor) -> sf.SSGRL:
    """A model for labels [M, C]."""
    graph: Tensor = sf.graph.cooccurrence(labels, class_names=NAMES)
    return sf.SSGRL(Body(), torch.randn(len(NAMES), 6), graph, class_names=NAMES, joint_dim=4, steps=2)


def train(model: sf.SSGRL, images: Tensor, targets: Tensor) -> float:
    """The loss of one step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = nn.functional.binary_cross_entropy_with_logits(model.forward(images), targets)
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def measure(model: sf.SSGRL, images: Tensor, labels: Tensor) -> Report:
    """Average precision three ways, and the report."""
    with torch.inference_mode(), sf.use_backend("reference"):
        logits, attention = model.forward(images, return_attention=True)
    assert attention.shape[:2] == logits.shape
    ap: Tensor = average_precision(logits, labels, definition="voc2007")
    metric = AveragePrecision(len(NAMES), "voc2007")
    metric.update(logits, labels)
    torch.testing.assert_close(metric.compute()["AP"], ap)
    return evaluate(logits, labels, model.class_names, "voc2007", mode=model.head.mode)


def operate(batch: int = 2, places: int = 9, classes: int = 3, dim: int = 8) -> Tensor:
    """The three operations by themselves: logits [B, C]."""
    features = torch.rand(batch, places, dim)
    u, v, p = torch.randn(batch, places, 5), torch.randn(classes, 5), torch.randn(5)
    pooled, attention = sf.functional.semantic_attention(u, v, p, features)
    weights = [torch.randn(2 * dim, 3 * dim) / dim, torch.randn(dim, 3 * dim) / dim]
    graph = torch.rand(classes, classes)
    states = sf.functional.graph_propagation(pooled, graph, weights[0], None, weights[1], None, steps=2)
    weight_o, weight_c = torch.randn(dim, 2 * dim), torch.randn(classes, dim)
    return sf.functional.label_scores(states, pooled, weight_o, torch.zeros(dim), weight_c, torch.zeros(classes))


def published(path: Path, words: Tensor, graph: Tensor) -> list[str]:
    """The classes of an old checkpoint."""
    return sf.load_official_checkpoint(path, words, graph, class_names=NAMES, backbone="resnet101").class_names


def main(folder: Path) -> Report:
    """All of it; a bundle goes to the folder."""
    torch.manual_seed(0)
    labels = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]])
    images = torch.rand(len(labels), 3, 16, 16)
    model = build(labels)
    assert train(model, images, labels.float()) > 0
    assert operate().shape == (2, 3)
    old = Gated(8, torch.rand(3, 3))
    fused: Gated = sf.accelerate(old, verbose=False)
    assert sf.restore(fused) is old and old.time_step == 2
    model.save_pretrained(folder)
    again = sf.SSGRL.from_pretrained(folder, backbone=Body())
    logits, seen = Predictor(again.eval(), "in memory", image_size=16, resize=16).scores(images)
    assert seen is None and len(logits) == len(images)
    for row in sf.backends.explain("cpu"):
        assert row.usable or row.reason
    try:
        published(folder / "model_best.pth.tar", again.head.words, again.head.adjacency)
    except FileNotFoundError as error:
        assert "model_best" in str(error)
    return measure(again, images, labels)
