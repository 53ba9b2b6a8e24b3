"""Bright spots at known places, and where a backbone's map finds them: ``python tests/support/planted_spot.py NAME …``
prints a table.

A spot is added to an image with structure at every scale. The squared change of the map has its centre of mass, by the
grid under test, near the spot. A map tells a place only as finely as its cells, so the error of a grid is the mean over
places that are spread evenly over two cells of each axis about the middle, and over backgrounds.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from ssgrl_fast.models import build_backbone
from ssgrl_fast.models.attention_grid import structured_images
from ssgrl_fast.models.backbone import Backbone

PLACES = 8


def random_backbone(name: str, **options: object) -> Backbone:
    """A backbone with random weights whose BatchNorms hold the statistics of its own activations."""
    torch.manual_seed(0)
    backbone = build_backbone(name, pretrained=False, **options)
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine and not norm.weight.any():  # timm starts the last norm of a block at zero
            nn.init.ones_(norm.weight)
    if norms:
        with torch.no_grad():
            backbone.train()(structured_images(2, 224, 224, seed=5))
    return backbone.eval()


@torch.no_grad()
def spot_errors(backbone: nn.Module, y: Tensor, x: Tensor, height: int, width: int, backgrounds: int = 4) -> Tensor:
    """[2], y and x: where spots are found minus where they are, in cells, by a grid's centres y [h] and x [w]."""
    steps = [float(axis.diff().mean()) for axis in (y, x)]
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    errors = []
    for image in structured_images(backgrounds, height, width, seed=7).mul(0.5).split(1):
        plain = backbone(image)
        for number in range(PLACES):
            turn = [(number + 0.5) / PLACES, (number * 3 % PLACES + 0.5) / PLACES]
            down, across = (
                side / 2 + 2 * step * (t - 0.5) for side, step, t in zip((height, width), steps, turn, strict=True)
            )
            spot = 3 * torch.exp(-((rows - down)[:, None] ** 2 + (columns - across) ** 2) / 8)
            change = (backbone(image + spot) - plain)[0].double().square().sum(0)
            found = change.sum(1) @ y / change.sum(), change.sum(0) @ x / change.sum()
            errors.append([(found[0] - down) / steps[0], (found[1] - across) / steps[1]])
    return torch.tensor(errors).mean(0)


def equal_parts(side: int, cells: int) -> Tensor:
    """Centres of as many equal parts of a side."""
    return (torch.arange(cells).double() + 0.5) * side / cells - 0.5


def main(specifications: list[str]) -> None:
    """Print a row for each ``name:weights:HEIGHTxWIDTH,…``; weights are "trained" or "random"."""
    print("| backbone | weights | image | map | error y, x (cells) | by equal parts |\n|---|---|---|---|---|---|")
    for specification in specifications:
        name, weights, sizes = specification.rsplit(":", 2)
        backbone = build_backbone(name).eval() if weights == "trained" else random_backbone(name)
        for size in sizes.split(","):
            height, width = map(int, size.split("x"))
            y, x = (axis.centres() for axis in backbone.grid(height, width))
            parts = equal_parts(height, len(y)), equal_parts(width, len(x))
            own, equal = (spot_errors(backbone, *axes, height, width, 16).tolist() for axes in ((y, x), parts))
            errors = " | ".join(f"{error[0]:+.2f}, {error[1]:+.2f}" for error in (own, equal))
            print(f"| {name} | {weights} | {size} | {len(y)}x{len(x)} | {errors} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
