"""SSGRL: a backbone and the head (eq. 1–11)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, overload

from torch import Tensor, nn

from ssgrl_fast.labels.matrix import check_class_names
from ssgrl_fast.labels.origin import of_bundle
from ssgrl_fast.models.backbones import build_backbone, restore_backbone
from ssgrl_fast.models.bundle import CONFIG, WEIGHTS, BundleMixin
from ssgrl_fast.modules import CapturedHead, SSGRLHead
from ssgrl_fast.modules.cuda_graph import capture

__all__ = ["SSGRL"]

_log = logging.getLogger(__name__)


class SSGRL(BundleMixin):
    """Multi-label recognition by semantic-specific graph representation learning, the paper's network.

    ``map = backbone(images)`` (eq. 1), ``logits = head(map)`` (eq. 3–10), probabilities ``logits.sigmoid()`` (eq. 11).

    Args:
        backbone: a name for :func:`~ssgrl_fast.models.backbones.build_backbone` with its defaults (pretrained weights
            among them), what that function returned, or an nn.Module that returns a map.
        words: [C, S], one word vector per class (eq. 2).
        adjacency: [C, C], row c holds P(c' | c).
        class_names: C names; None: ``"class 0"``, ``"class 1"``, …
        head: keyword arguments of :class:`~ssgrl_fast.modules.SSGRLHead`: joint_dim, steps, mode, interaction, …

    Attributes: ``backbone``, ``head``, ``class_names``.

    Raises:
        TypeError, ValueError: see build_backbone and SSGRLHead; class names that repeat or are not C.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        words: Tensor,
        adjacency: Tensor,
        *,
        class_names: Sequence[str] | None = None,
        **head: Any,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.head = SSGRLHead(self.backbone.out_channels, words, adjacency, **head)
        self.class_names = check_class_names("SSGRL", class_names, self.head.num_classes)

    @overload
    def forward(self, images: Tensor, return_attention: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_attention: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Score images.

        Args:
            images: [B, 3, H, W], normalised by ``backbone.mean`` and ``backbone.std``.
            return_attention: also return where each class looked.

        Returns:
            logits [B, C]; with return_attention also attention [B, C, H', W'] over the backbone's map.

        Raises:
            TypeError, ValueError: images of a wrong shape, dtype or device.
        """
        features = self.backbone(images)
        output: Tensor | tuple[Tensor, Tensor] = self.head(features, return_attention=return_attention)
        return output

    def capture(self, example: Tensor, batches: Sequence[int] = ()) -> CapturedHead:
        """The whole network's inference as CUDA graphs; :func:`ssgrl_fast.prepare` it first for the fastest form.

        Args:
            example: images [B, 3, H, W] on a CUDA device, as for a call; see :meth:`SSGRLHead.capture`.
            batches: further batch sizes that get a graph of their own.

        Returns:
            A function of images that gives their logits [B, C], without gradients; B up to the largest size.

        Raises:
            ValueError: the model is in training mode, or what :meth:`SSGRLHead.capture` refuses.
            TypeError, ValueError: what a call raises.
        """
        if self.training:
            raise ValueError("SSGRL.capture: the model must be in evaluation mode, got one in training mode")
        return capture("SSGRL", self, example, batches)

    def attention_grid(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the cells of the attention map look in images of this size.

        Args:
            height, width: of the images, pixels.

        Returns:
            (y [h], x [w]), float64 on the CPU: centres of the cells' receptive fields, in pixels of the network's
            input, 0 the middle of the first pixel. Exact for torchvision's ResNets, small-cnn and vision transformers;
            measured for others, at the first use of a size that the bundle does not state (seconds to a minute; see
            :mod:`ssgrl_fast.models.attention_grid`). A centre may lie up to a cell outside the image.

        Raises:
            ValueError: images of this size are too small, or refused by the backbone; a backbone whose map does not
                depend on the image.
        """
        grid = self.backbone.grid(height, width)
        return grid.y.centres(), grid.x.centres()

    def bundle_config(self) -> dict[str, Any]:
        """The entries of config.json: class names, normalisation, backbone, head, where the cells of its map look
        (measured, for the size in ``preprocessing``), and how words and graph were made.

        Raises:
            ValueError: the head is quantized.
        """
        if self.head.quantized:
            raise ValueError(
                "SSGRL: a bundle holds floating-point weights, and this head is quantized: save the model before"
            )
        made = of_bundle(self.origin, self.class_names, self.head.words, self.head.adjacency)
        config = {"class_names": self.class_names, **self.backbone.describe(), "head": self.head.options}
        if self.backbone.cells is None and (side := (self.preprocessing or {}).get("image_size")):
            try:
                self.backbone.grid(side, side)
            except (RuntimeError, ValueError) as error:  # weights that are not finite, a size that does not fit
                _log.warning("%s stores no attention grid: %s", CONFIG, error)
        if grids := self.backbone.grids:
            config["attention_grid"] = {f"{height}x{width}": grid for (height, width), grid in grids.items()}
        return {**config, "origin": made}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, backbone: nn.Module | None, **options: Any
    ) -> Self:
        """A model as config.json describes it, with the words and the graph of the bundle; see from_pretrained."""
        for name in ("head.words", "head.adjacency"):
            if name not in tensors:
                raise ValueError(f"{WEIGHTS} has no tensor {name!r}")
        network, names = restore_backbone(config, backbone), config["class_names"]
        words, adjacency = tensors["head.words"], tensors["head.adjacency"]
        return cls(network, words, adjacency, class_names=names, **config["head"], **options)
