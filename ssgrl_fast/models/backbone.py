"""What every backbone is, and which part of it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.models.attention_grid import Grid, exact_grid, measured_grid

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FREEZE_MODES = ("paper", "official", "all", "none")
PAPER_FROZEN = 92  # "the previous 92 convolutional layers", section 3.5


class Backbone(nn.Module):
    """A network that returns a map, with what its users must know about it.

    Attributes:
        net: the network.
        pool: the 2x2 average pool of stride 2 after it, or an identity.
        out_channels: D.
        mean, std: normalisation of the images, one value per channel, for pixel values in 0…1.
        name, options: what :func:`build_backbone` builds it from; name is None for a module of the user's own.
        freeze: the policy that :func:`freeze_backbone` set last.
        cells: (step, first centre) of the map before the pool, in (y, x) each, where strides and padding settle them;
            None: they are measured.
        grids: (height, width) of images to the grids that were measured; training and loading weights empty it.
    """

    def __init__(
        self,
        net: nn.Module,
        out_channels: int,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pool: bool = False,
        name: str | None = None,
        options: Mapping[str, Any] | None = None,
        features: Callable[[nn.Module, Tensor], Tensor] | None = None,
        cells: tuple[tuple[int, int], tuple[float, float]] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.out_channels, self.name = net, out_channels, name
        self.mean, self.std = (_triple("mean", mean, IMAGENET_MEAN), _triple("std", std, IMAGENET_STD))
        self.pool = nn.AvgPool2d(2, 2) if pool else nn.Identity()
        self.options: dict[str, Any] = {"pool": pool, **(options or {})}
        self.freeze = "none"
        self._features, self.cells = features, cells
        self.grids: dict[tuple[int, int], Grid] = {}
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]
        self._held: frozenset[str] = frozenset()
        self._asked = True

    def forward(self, images: Tensor) -> Tensor:
        """The map [B, D, H', W'] of images [B, 3, H, W], normalised by mean and std.

        Raises:
            ValueError: images of another shape, or too small for the pool.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"backbone: images must be [B, 3, H, W], got {list(images.shape)}")
        features = self.net(images) if self._features is None else self._features(self.net, images)
        if self.options["pool"] and min(features.shape[2:]) < 2:
            (height, width), cells = (images.shape[2:], "x".join(map(str, features.shape[2:])))
            raise ValueError(
                f"backbone: images of {height}x{width} give a {cells} map, too small for the 2x2 average pool:"
                " use larger images, or pool=False"
            )
        pooled: Tensor = self.pool(features)
        return pooled

    def grid(self, height: int, width: int) -> Grid:
        """Where the cells of the map look, see :mod:`ssgrl_fast.models.attention_grid`; measured once for each size.

        Args:
            height, width: of the images, pixels.

        Raises:
            ValueError: images of this size are too small, or refused by the network.
        """
        if min(height, width) < 1:
            raise ValueError(f"attention_grid: height and width must be at least 1 pixel, got {height} and {width}")
        if self.cells is not None:
            grid = exact_grid(height, width, *self.cells, pool=self.options["pool"])
            if min(grid.y.cells, grid.x.cells) < 1:
                raise ValueError(f"attention_grid: images of {height}x{width} are too small for the 2x2 average pool")
            return grid
        if (height, width) not in self.grids:
            self.grids[height, width] = measured_grid(self, height, width)
        return self.grids[height, width]

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train, but what :func:`freeze_backbone` froze stays in evaluation mode (D15)."""
        super().train(mode)
        if mode:
            self.grids.clear()
        self._asked = mode
        for name, module in self.named_modules():
            if name in self._held:
                module.training = False
        return self

    def hold(self, names: frozenset[str], policy: str) -> None:
        """Freeze the parameters of the named modules, no others, and keep these modules in evaluation mode."""
        self._held, self.freeze = names, policy
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] not in names)
        self.train(self._asked)

    def describe(self) -> dict[str, Any]:
        """The entries of a bundle's config.json that :func:`restore_backbone` reads."""
        kind = f"{type(self.net).__module__}.{type(self.net).__qualname__}"
        entry = {"name": self.name, "class": kind, "out_channels": self.out_channels, "options": self.options}
        return {"backbone": entry, "normalisation": {"mean": list(self.mean), "std": list(self.std)}}

    def extra_repr(self) -> str:
        return f"name={self.name!r}, out_channels={self.out_channels}, freeze={self.freeze!r}"


def _forget(backbone: nn.Module, _: object) -> None:
    assert isinstance(backbone, Backbone)
    backbone.grids.clear()


def main_path_convolutions(backbone: Backbone) -> list[str]:
    """Names of a ResNet's convolutions on the main path, in order: all but the shortcuts' (``downsample``).

    ResNet-101 has 100 of them; 91 lie before layer4 (94 with the shortcuts, D14).

    Raises:
        ValueError: the network has no layer4, so it is no ResNet.
    """
    if not hasattr(backbone.net, "layer4"):
        raise ValueError(
            f"backbone {backbone.name or type(backbone.net).__name__!r} is no ResNet (it has no layer4): the freeze"
            " policies 'paper' and 'official' do not apply, use 'all' or 'none'"
        )
    convolutions = [name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    return [name for name in convolutions if "downsample" not in name]


def freeze_backbone(backbone: nn.Module, mode: str) -> Backbone:
    """Freeze a part of a backbone: its parameters get no gradient, and it stays in evaluation mode through train().

    Args:
        backbone: from :func:`build_backbone`; changed in place.
        mode: "paper" freezes the first 92 convolutions (section 3.5), counted on the main path without shortcuts. In
            ResNet-101 these are all before layer4 and layer4.0.conv1; everything that comes before the 93rd
            (layer4.0.conv2) in the order of the modules is frozen, each BatchNorm with its convolution.
            "official" freezes all but layer4, as the published code does (D14); layer4's BatchNorm updates its
            statistics and trains its weights, all before uses the running statistics (D15).
            "all" freezes everything, "none" nothing.

    Returns:
        The same backbone.

    Raises:
        TypeError: it is not from build_backbone.
        ValueError: an unknown mode; "paper" or "official" for a network that is no ResNet; "paper" for one of 92
            convolutions or fewer, of which nothing would be left to train.
    """
    check_choice("freeze_backbone", "mode", mode, FREEZE_MODES)
    if not isinstance(backbone, Backbone):
        raise TypeError(f"freeze_backbone: needs a backbone from build_backbone, got {type(backbone).__name__}")
    names = [name for name, _ in backbone.named_modules()]
    if mode in ("all", "none"):
        backbone.hold(frozenset(names if mode == "all" else ()), mode)
        return backbone
    path = main_path_convolutions(backbone)
    leaves = [name for name, module in backbone.named_modules() if not any(module.children())]
    if mode == "official":
        frozen = {name for name in leaves if not name.startswith("net.layer4.")}
    elif len(path) > PAPER_FROZEN:
        frozen = set(leaves[: leaves.index(path[PAPER_FROZEN])])
    else:
        raise ValueError(
            f"freeze_backbone: mode 'paper' freezes {PAPER_FROZEN} convolutions and {backbone.name!r} has {len(path)}"
            " on its main path: nothing would be trained; use 'official' or 'all'"
        )
    whole = {name for name in names if name and all(leaf in frozen for leaf in leaves if leaf.startswith(f"{name}."))}
    backbone.hold(frozenset(frozen | (whole - set(leaves))), mode)
    return backbone


def _triple(name: str, values: Sequence[float] | None, default: Sequence[float]) -> tuple[float, float, float]:
    values = default if values is None else values
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise ValueError(f"build_backbone: {name} must be three {'positive ' * (name == 'std')}numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])
