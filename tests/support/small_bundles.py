"""A small model whose bundles tests write, read and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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


def write_bundle_and_photos(folder: Path, count: int) -> None:
    """``bundle``, of images of 32x32 pixels; ``photos`` with ``count`` photographs, and 07b.png that is none."""
    from PIL import Image  # of the training extra

    model = make_model()
    model.preprocessing = {"image_size": 32, "resize": 32}
    model.save_pretrained(folder / "bundle")
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(count):
        pixels = random.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index:02}.png")
    (folder / "photos" / "07b.png").write_bytes(b"not an image")
