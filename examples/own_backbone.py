"""Use the head with your own backbone: any module that maps images to a feature map [B, D, H, W].

python examples/own_backbone.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ssgrl_fast as sf


class Patches(nn.Module):
    """A small network on image patches; the head reads its number of channels D from `out_channels`."""

    out_channels = 96

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 96, kernel_size=16, stride=16)
        self.mix = nn.Sequential(nn.BatchNorm2d(96), nn.GELU(), nn.Conv2d(96, 96, kernel_size=3, padding=1), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.embed(images))


def main() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    names = ["person", "bicycle", "dog", "traffic light", "bench"]
    words, graph = torch.randn(5, 50), torch.rand(5, 5)  # random here; for real ones see custom_graph_and_words.py

    # Either the whole network around your module, with bundles, class names and normalisation ...
    model = sf.SSGRL(Patches(), words, graph, class_names=names, joint_dim=64)
    logits, attention = model(torch.rand(2, 3, 160, 160), return_attention=True)
    print("SSGRL:", tuple(logits.shape), tuple(attention.shape))

    # ... or the head alone, a plain nn.Module, inside a network that you already have.
    head = sf.SSGRLHead(96, words, graph, joint_dim=64, mode="official")
    features = Patches()(torch.rand(2, 3, 160, 160)).to(
        memory_format=torch.channels_last
    )  # both memory formats work without a copy
    head(features).sum().backward()
    print("gradient of U:", tuple(head.semantic_decoupling.weight_u.grad.shape))

    # The tokens of a vision transformer become a feature map when they are put back on their grid.
    tokens = torch.rand(2, 14 * 14, 96)  # [B, L, D], without the class token
    print("tokens:", tuple(head(tokens.transpose(1, 2).reshape(2, 96, 14, 14)).shape))
    return logits, attention


if __name__ == "__main__":
    main()
