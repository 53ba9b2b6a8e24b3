"""A network in the published layout, in Python 3 and in this project's own words: what a user's code looks like.

The names of layers, matrices and arguments are those that published checkpoints and ports have; each part computes,
one layer at a time, what the published code does (D1–D5, D11). Shapes: B images, C classes, D channels, S word size.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

import ssgrl_fast as sf
from ssgrl_fast.published.swapped import Swapped

CONSTANTS = ("word_semantic.fc_3.bias", "word_semantic.fc_a.bias")
UNUSED = ("graph_net.fc_eq4_u.weight", "graph_net.fc_eq4_u.bias")


class Decoupling(nn.Module):
    """Semantic decoupling: map [B, D, N, N] and words [C, S] to [B, C, D]."""

    def __init__(self, num_classes: int, dim: int, word_dim: int, joint_dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc_1 = nn.Linear(dim, joint_dim, bias=False)
        self.fc_2 = nn.Linear(word_dim, joint_dim, bias=False)
        self.fc_3 = nn.Linear(joint_dim, joint_dim)
        self.fc_a = nn.Linear(joint_dim, 1)

    def forward(self, batch_size: int, img_feature_map: Tensor, word_features: Tensor) -> Tensor:
        cells = img_feature_map.shape[3] ** 2
        features = img_feature_map.permute(0, 2, 3, 1).reshape(batch_size * cells, -1)
        image = self.fc_1(features)[:, None].repeat(1, self.num_classes, 1)
        word = self.fc_2(word_features)[None].repeat(batch_size * cells, 1, 1)
        joint = self.fc_3(torch.tanh(image * word).flatten(0, 1))
        scores = self.fc_a(joint).view(batch_size, cells, self.num_classes)
        attention = scores.softmax(dim=1).unsqueeze(-1)
        spread = features.view(batch_size, cells, 1, -1).repeat(1, 1, self.num_classes, 1)
        return (spread * attention).sum(1)


class Propagation(nn.Module):
    """The gated graph network: states [B, C, D] after time_step steps. The reset gate reads fc_eq3_u (D1)."""

    def __init__(self, input_dim: int, time_step: int, in_matrix: Tensor, out_matrix: Tensor) -> None:
        super().__init__()
        self.input_dim, self.time_step = input_dim, time_step
        self._in_matrix, self._out_matrix = in_matrix, out_matrix
        for equation in (3, 4, 5):
            setattr(self, f"fc_eq{equation}_w", nn.Linear(2 * input_dim, input_dim))
            setattr(self, f"fc_eq{equation}_u", nn.Linear(input_dim, input_dim))

    def reset_state(self, h: Tensor) -> Tensor:
        return self.fc_eq3_u(h)

    def forward(self, input: Tensor) -> Tensor:
        batch, classes = input.shape[0], self._in_matrix.shape[0]
        h = input.reshape(batch * classes, self.input_dim)
        for _ in range(self.time_step):
            nodes = h.view(batch, classes, -1)
            message = torch.cat([self._in_matrix @ nodes, self._out_matrix @ nodes], 2).flatten(0, 1)
            z = torch.sigmoid(self.fc_eq3_w(message) + self.fc_eq3_u(h))
            r = torch.sigmoid(self.fc_eq4_w(message) + self.reset_state(h))
            candidate = torch.tanh(self.fc_eq5_w(message) + self.fc_eq5_u(r * h))
            h = (1 - z) * h + z * candidate
        return h.view(batch, classes, -1)


class CorrectedPropagation(Propagation):
    """The same with the paper's reset gate."""

    def reset_state(self, h: Tensor) -> Tensor:
        return self.fc_eq4_u(h)


class ClassRows(nn.Module):
    """One row of weights and one bias a class: [B, C, D] to [B, C]."""

    def __init__(self, class_num: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(class_num, dim) / dim**0.5)
        self.bias = nn.Parameter(torch.rand(class_num) / dim**0.5)

    def forward(self, input: Tensor) -> Tensor:
        return (input * self.weight).sum(2) + self.bias


class PublishedNetwork(nn.Module):
    """Images [B, 3, H, W] to logits [B, C], with one convolution for the backbone. Words and graph are no part of the
    state_dict, as in the published code."""

    def __init__(
        self, words: Tensor, adjacency: Tensor, *, dim: int = 24, joint_dim: int = 16, time_step: int = 3
    ) -> None:
        super().__init__()
        self.num_classes, self.word_features = words.shape[0], words
        self.resnet_101 = nn.Sequential(nn.Conv2d(3, dim, 4, stride=4), nn.ReLU())
        self.word_semantic = Decoupling(self.num_classes, dim, words.shape[1], joint_dim)
        self.graph_net = Propagation(dim, time_step, adjacency, adjacency.t().contiguous())
        self.fc_output = nn.Linear(2 * dim, dim)
        self.classifiers = ClassRows(self.num_classes, dim)

    def forward(self, images: Tensor) -> Tensor:
        batch = images.shape[0]
        pooled = self.word_semantic(batch, self.resnet_101(images), self.word_features)
        states = self.graph_net(pooled)
        output = torch.tanh(self.fc_output(torch.cat([states.flatten(0, 1), pooled.flatten(0, 1)], 1)))
        return self.classifiers(output.view(batch, self.num_classes, -1))


def published_network(dtype: torch.dtype = torch.float64, classes: int = 7, **options: int) -> PublishedNetwork:
    """A network with seeded weights, words and graph."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randn(classes, 10, generator=generator, dtype=torch.float64).to(dtype)
    adjacency = torch.rand(classes, classes, generator=generator, dtype=torch.float64).to(dtype)
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        return PublishedNetwork(words, adjacency, **options).to(dtype)


def images(dtype: torch.dtype, batch: int = 3) -> Tensor:
    """Seeded images [batch, 3, 16, 16], the same in every dtype but for rounding."""
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits and every gradient, that of the images as well."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    logits = model(x)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view(logits.shape)
    (logits * weights).sum().backward()
    return logits.detach(), {**{name: value.grad for name, value in model.named_parameters()}, "images": x.grad}


def accelerated(model: nn.Module) -> nn.Module:
    """The model, accelerated; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return sf.accelerate(model, verbose=False)


def parts(model: nn.Module) -> list[str]:
    """The names of the accelerated parts."""
    return [name for name, module in model.named_modules() if isinstance(module, Swapped)]
