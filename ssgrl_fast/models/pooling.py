"""The baseline of the paper's ablations (section 4.3, Table 5): the backbone alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ssgrl_fast.labels.matrix import check_class_names
from ssgrl_fast.models.backbones import build_backbone, restore_backbone
from ssgrl_fast.models.bundle import BundleMixin

__all__ = ["GlobalPoolingClassifier", "GlobalPoolingHead"]


class GlobalPoolingHead(nn.Module):
    """Global average pooling and one linear layer: ``logits = W·mean_l(f_l) + b``.

    Args:
        in_channels: D.
        num_classes: C.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of a map [B, D, H, W] in the weights' dtype.

        Raises:
            ValueError: x of another shape, or without locations.
        """
        channels = self.linear.in_features
        if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape[2:]:
            raise ValueError(f"GlobalPoolingHead: x must be a map [B, {channels}, H, W], got {list(x.shape)}")
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits

    def activation_maps(self, x: Tensor) -> Tensor:
        """Class activation maps (Zhou et al., CVPR 2016), [B, C, H, W], of a map [B, D, H, W]: ``W·f_l`` at each
        location l, whose mean over the locations is the logit less its bias. Values have any sign."""
        return torch.einsum("cd,bdhw->bchw", self.linear.weight, x)


class GlobalPoolingClassifier(BundleMixin):
    """The paper's ResNet-101 baseline, on any backbone: global average pooling, a linear layer, one sigmoid per class.

    Args:
        backbone: as for :class:`~ssgrl_fast.models.ssgrl.SSGRL`.
        num_classes: C.
        class_names: C names; None: ``"class 0"``, ``"class 1"``, …

    Attributes: ``backbone``, ``head`` (map to logits), ``class_names``.

    Raises:
        TypeError, ValueError: see build_backbone; num_classes below 1; class names that repeat or are not C.
    """

    def __init__(
        self, backbone: str | nn.Module, num_classes: int, *, class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"GlobalPoolingClassifier: num_classes must be a positive integer, got {num_classes!r}")
        self.backbone = build_backbone(backbone)
        self.head = GlobalPoolingHead(self.backbone.out_channels, num_classes)
        self.class_names = check_class_names("GlobalPoolingClassifier", class_names, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of images [B, 3, H, W], normalised by ``backbone.mean`` and ``backbone.std``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def bundle_config(self) -> dict[str, Any]:
        """The entries of config.json: class names, normalisation and backbone."""
        return {"class_names": self.class_names, **self.backbone.describe()}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, backbone: nn.Module | None, **options: Any
    ) -> Self:
        """A model as config.json describes it, its weights not yet loaded; see from_pretrained."""
        names = config["class_names"]
        return cls(restore_backbone(config, backbone), len(names), class_names=names, **options)
