"""Whether the attention matters, over a data set: deletion and insertion curves of its true labels.

Of some images every true label is scored while cells of the map are removed: the most attended ones first (deletion),
the least attended ones first (insertion), and in random order (:func:`~ssgrl_fast.inference.explain.removal_curves`).
If the attention holds what the score rests on, deletion lies below random and insertion above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ssgrl_fast.inference.explain import RemovalCurves, removal_curves
from ssgrl_fast.inference.figures import MODEL, MUTED, TRUE, new_figure
from ssgrl_fast.inference.localisation import network_inputs
from ssgrl_fast.labels.matrix import split_labels
from ssgrl_fast.metrics.pairs import PairTable
from ssgrl_fast.models import SSGRL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssgrl_fast.data.base import MultiLabelDataset
    from ssgrl_fast.inference.predictor import Predictor

__all__ = ["Removal", "measure_removal", "removal_chart"]

CURVES = {  # title and colour
    "deletion": ("most attended cells removed first (deletion)", TRUE),
    "random": ("random order", MUTED),
    "insertion": ("least attended cells removed first (insertion)", MODEL),
}
_TITLES = {"whole": "whole map", "deletion": "deletion", "random": "random", "insertion": "insertion"}
_DIFFERENCES = [("deletion", "random"), ("insertion", "random")]


@dataclass(frozen=True)
class Removal:
    """The curves of all pairs of an image and a true label.

    Attributes:
        table: the values "whole" (the probability with all cells) and the means of the three curves.
        curves: of each pair.
        facts: what the values depend on, as text.
    """

    table: PairTable
    curves: list[RemovalCurves]
    facts: str

    def mean_curves(self) -> dict[str, list[float]]:
        """The mean of each curve over the pairs, and "kept", the shares of cells that are left."""
        means = {name: np.mean([getattr(each, name) for each in self.curves], axis=0).tolist() for name in CURVES}
        return {"kept": list(self.curves[0].kept), **means}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.table.to_dict(_DIFFERENCES), "curves": self.mean_curves(), "measured by": self.facts}

    def to_markdown(self) -> str:
        """The tables in Markdown, in per cent."""
        text = (
            "Mean probability of the true labels while cells of the map are removed (per cent): the most attended "
            f"first (deletion), in random order, the least attended first (insertion). {self.facts}."
        )
        return f"## Removing cells\n\n{text}\n\n{self.table.to_markdown(_TITLES, _DIFFERENCES)}"


@torch.inference_mode()
def measure_removal(
    predictor: Predictor,
    dataset: MultiLabelDataset,
    scale: tuple[int, int],
    *,
    images: int,
    difficult: str = "ignore",
    batch_size: int = 16,
) -> Removal:
    """Remove cells from the maps of images spread evenly over a data set.

    Args:
        predictor: of an SSGRL model whose classes are the data's.
        dataset: labelled images.
        scale: (resize, size), pixels.
        images: how many, at most, of those that have a true label.
        difficult: whether a label of difficult objects alone is a true one (D27).
        batch_size: images per batch.

    Raises:
        ValueError: a model without attention; images below 1; no image with a true label.
        BrokenImage, FileNotFoundError: naming the file.
    """
    if not isinstance(predictor.network, SSGRL):
        raise ValueError(f"removal: {predictor.source} holds a {type(predictor.model).__name__}, without attention")
    if images < 1:
        raise ValueError(f"removal: images must be at least 1, got {images}")
    present = split_labels("removal", "labels", dataset.labels, difficult).present
    labelled = present.any(1).nonzero().flatten()
    if not len(labelled):
        raise ValueError(f"removal: none of the {len(dataset)} images has a true label")
    even = torch.linspace(0, len(labelled) - 1, min(images, len(labelled))).round().long().unique()
    rows = labelled[even].tolist()
    network, weight = predictor.network, next(predictor.model.head.parameters())
    places: list[tuple[int, int]] = []
    curves: list[RemovalCurves] = []
    for numbers, inputs, _ in network_inputs(predictor, dataset, rows, scale, batch_size):
        for row, features in zip(numbers, network.backbone(inputs.to(weight.device, weight.dtype)), strict=True):
            classes = present[row].nonzero().flatten().tolist()
            curves += removal_curves(network.head, features, classes)
            places += [(row, index) for index in classes]
    areas = [{"whole": each.random[-1], **each.areas()} for each in curves]
    values = {name: np.array([each[name] for each in areas]) for name in _TITLES}
    at, of = np.array(places).T
    facts = f"{len(curves)} labels of {len(rows)} images, {scale[0]} -> {scale[1]}, difficult rule {difficult}"
    return Removal(PairTable(dataset.class_names, at, of, values), curves, facts)


def removal_chart(found: Removal) -> Figure:
    """The mean curves over the share of cells that are removed."""
    means = found.mean_curves()
    removed = [100 * (1 - share) for share in means["kept"]]
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for name, (title, color) in CURVES.items():
        axes.plot(removed, 100 * np.array(means[name]), color=color, label=title)
    axes.set(xlabel="cells removed, %", ylabel="probability, %", xlim=(0, 100), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"Mean over {len(found.curves)} true labels", loc="left", fontsize=11)
    return figure
