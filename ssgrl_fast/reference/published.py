"""The head as the published code computes it: the "as published" baseline of the benchmarks.

Every product is taken where the paper writes it: P on all B·L·C joint vectors before f_a, both operands repeated to
B·L·C rows, the features repeated once per class, six gate layers per step. It is far larger and slower than
:mod:`ssgrl_fast.reference`, and equal to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class PublishedWeights:
    """The head's weights, one tensor per layer. D channels, S word size, K joint size, M f_a's input, O outputs, C
    classes."""

    image: Tensor  # U: [K, D]
    word: Tensor  # V: [K, S]
    joint: Tensor  # P: [M, K]
    joint_bias: Tensor  # b: [M]
    score: Tensor  # f_a: [1, M]
    score_bias: Tensor  # [1]
    w_z: Tensor  # [D, 2D]
    u_z: Tensor  # [D, D]
    b_z: Tensor | None  # [D]
    w_r: Tensor  # [D, 2D]
    u_r: Tensor  # [D, D]
    b_r: Tensor | None  # [D]
    w_h: Tensor  # [D, 2D]
    u_h: Tensor  # [D, D]
    b_h: Tensor | None  # [D]
    output: Tensor  # f_o: [O, 2D]
    output_bias: Tensor | None  # [O]
    classifier: Tensor  # [C, O]
    classifier_bias: Tensor | None  # [C]


def published_head(
    features: Tensor,  # [B, L, D]
    words: Tensor,  # [C, S]
    adjacency: Tensor,  # [C, C]
    weights: PublishedWeights,
    *,
    steps: int = 3,
    reset_gate: str = "paper",
) -> tuple[Tensor, Tensor]:
    """logits [B, C] and attention [B, C, L], eq. 3–10 with every intermediate tensor in memory."""
    pooled, attention = published_attention(features, words, weights)
    h_T = published_propagation(pooled, adjacency, weights, steps, reset_gate)
    output = torch.tanh(linear(torch.cat([h_T, pooled], dim=-1), weights.output, weights.output_bias))
    logits = (output * weights.classifier).sum(-1)
    return (logits if weights.classifier_bias is None else logits + weights.classifier_bias), attention


def published_attention(features: Tensor, words: Tensor, weights: PublishedWeights) -> tuple[Tensor, Tensor]:
    """pooled [B, C, D] and attention [B, C, L] through the repeated [B·L, C, K] and [B, L, C, D] tensors."""
    (images, locations, dim), classes = features.shape, words.shape[0]
    rows = images * locations
    image = linear(features.reshape(rows, 1, dim), weights.image).repeat(1, classes, 1)
    word = linear(words, weights.word).unsqueeze(0).repeat(rows, 1, 1)
    joint = linear(torch.tanh(image * word), weights.joint, weights.joint_bias)  # eq. 3
    scores = linear(joint, weights.score, weights.score_bias).view(images, locations, classes)  # eq. 4
    attention = torch.softmax(scores, dim=1)  # eq. 5
    spread = features.unsqueeze(2).repeat(1, 1, classes, 1)
    pooled = (spread * attention.unsqueeze(-1)).sum(1)  # eq. 6
    return pooled, attention.transpose(1, 2)


def published_propagation(
    h0: Tensor, adjacency: Tensor, weights: PublishedWeights, steps: int, reset_gate: str
) -> Tensor:
    """h_T [B, C, D] with one layer per gate and message (eq. 8, 9); "official" lets the reset gate use U^z (D1)."""
    images, classes, dim = h0.shape
    inward = adjacency.repeat(images, 1, 1)
    outward = adjacency.T.repeat(images, 1, 1)
    reset_state = weights.u_r if reset_gate == "paper" else weights.u_z
    h = h0.reshape(-1, dim)
    for _ in range(steps):
        state = h.view(images, classes, dim)
        message = torch.cat([inward @ state, outward @ state], dim=-1).view(-1, 2 * dim)
        z = torch.sigmoid(linear(message, weights.w_z, weights.b_z) + linear(h, weights.u_z))
        r = torch.sigmoid(linear(message, weights.w_r, weights.b_r) + linear(h, reset_state))
        candidate = torch.tanh(linear(message, weights.w_h, weights.b_h) + linear(r * h, weights.u_h))
        h = (1 - z) * h + z * candidate
    return h.view(images, classes, dim)
