"""A residual network of a few hundred weights that timm knows by name, so that files made with it are small.

`import tiny_resnet` registers it; the backbone is then named ``timm:ssgrl_test_resnet``.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet

BACKBONE = "timm:ssgrl_test_resnet"


@register_model
def ssgrl_test_resnet(pretrained: bool = False, **options: Any) -> ResNet:
    """timm's ResNet with one block in each of four stages and 16 channels at the end."""
    shape = {"block": BasicBlock, "layers": (1, 1, 1, 1), "channels": (4, 4, 8, 16), "stem_width": 4}
    model: ResNet = build_model_with_cfg(ResNet, "ssgrl_test_resnet", pretrained, **{**shape, **options})
    return model
