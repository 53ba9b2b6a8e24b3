"""A small model whose bundles tests write, read and damage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssgrl_fast.models import SSGRL, build_backbone

NAMES = ["zwei", "two words", "Ångström"]
C, S = len(NAMES), 5
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def make_model(seed: int = 0, backbone: nn.Module | None = None, **options: Any) -> SSGRL:
    torch.manual_seed(seed)
    if backbone is None:
        backbone = build_backbone("small-cnn", width=4, mean=(0.1, 0.2, 0.3))
    given = {"joint_dim": 7, "attention_dim": 3, "out_dim": 9, "class_names": NAMES, **options}
    model = SSGRL(backbone, torch.randn(C, S), torch.rand(C, C), **given)
    model.train()(IMAGES)  # moves the running statistics of BatchNorm
    return model.eval()
