"""The content of the page for one photograph: scores, attention, and the neighbours' contributions to a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.inference.explain import NeighbourContributions, RemovalCurves, neighbour_contributions, removal_curves
from ssgrl_fast.models.ssgrl import SSGRL

if TYPE_CHECKING:
    from ssgrl_fast.inference.predictor import Predictor

__all__ = ["Analysis", "Explorer", "read_thresholds"]

_LONGEST = 2048  # pixels of a photograph on the page


@dataclass(frozen=True)
class Analysis:
    """The scores of one photograph. C is the number of classes.

    Attributes:
        image: [H, W, 3] uint8, the photograph, with at most 2048 pixels on its longer side.
        probabilities: class name to probability, all C of them, the highest first.
        attention: [C, h, w] float32; each map sums to 1.
        features: [1, D, h, w], the backbone's map, on the model's device.
    """

    image: NDArray[np.uint8]
    probabilities: dict[str, float]
    attention: NDArray[np.floating[Any]]
    features: Tensor


class Explorer:
    """A model, and the functions that the page calls.

    Args:
        predictor: of an SSGRL model.
        neighbours: number of neighbours to compute per label, those of the heaviest edges.
        thresholds: class name to the probability above which it is predicted; None: 0.5 for all.

    Raises:
        ValueError: a model without SSGRL's head; neighbours below 1.
    """

    def __init__(
        self, predictor: Predictor, *, neighbours: int = 24, thresholds: Mapping[str, float] | None = None
    ) -> None:
        if not isinstance(predictor.model, SSGRL):
            kind = type(predictor.model).__name__
            raise ValueError(f"app: {predictor.source} holds a {kind}, which has neither attention nor a graph")
        if neighbours < 1:
            raise ValueError(f"app: neighbours must be at least 1, got {neighbours}")
        self.predictor, self.model, self.limit = predictor, predictor.model, neighbours
        self.thresholds = dict.fromkeys(self.class_names, 0.5) if thresholds is None else dict(thresholds)

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return self.model.class_names

    @torch.no_grad()
    def analyse(self, path: str | Path) -> Analysis:
        """Score an image file.

        Raises:
            FileNotFoundError, BrokenImage: naming the file.
            ValueError: the scores are not finite.
        """
        image = self.predictor.read(Path(path))
        weight = next(self.model.head.parameters())
        network = self.predictor.network
        features = network.backbone(image[None].to(weight.device, weight.dtype))
        logits, attention = network.head(features, return_attention=True)
        if not torch.isfinite(logits).all():
            raise ValueError(f"app: {path}: the model's scores are not finite: its weights may be damaged")
        values = logits[0].double().sigmoid().tolist()
        order = logits[0].argsort(descending=True, stable=True).tolist()
        probabilities = {self.class_names[index]: values[index] for index in order}
        photograph = self.predictor.photograph(path, _LONGEST)
        return Analysis(photograph, probabilities, attention[0].float().cpu().numpy(), features)

    def attention(self, analysis: Analysis, name: str) -> NDArray[np.uint8]:
        """[H, W, 3] uint8: the photograph with the attention of one class over it.

        Raises:
            ValueError: no class of this name.
        """
        from ssgrl_fast.inference.figures import overlay

        placement = self.predictor.placement(analysis.image.shape)
        return overlay(analysis.image, self.map_of(analysis, name), placement)

    def map_of(self, analysis: Analysis, name: str) -> NDArray[np.floating[Any]]:
        """The attention of one class, [h, w], which sums to 1; errors as :meth:`attention`."""
        chosen: NDArray[np.floating[Any]] = analysis.attention[self._index(name)]
        return chosen

    def neighbours(self, analysis: Analysis, name: str) -> NeighbourContributions | None:
        """The contributions of a class's neighbours to its logit; None for a model without a graph (w/o SI).

        Raises:
            ValueError: no class of this name.
        """
        index = self._index(name)
        if not self.model.head.interaction:
            return None
        return neighbour_contributions(self.model.head, analysis.features, index, limit=self.limit)

    def removal(self, analysis: Analysis, name: str) -> RemovalCurves | None:
        """What becomes of a class's probability when cells of the map are removed; None for a map of one cell.

        Raises:
            ValueError: no class of this name.
        """
        index = self._index(name)
        if analysis.attention[index].size < 2:
            return None
        network = self.predictor.network
        assert isinstance(network, SSGRL)
        return removal_curves(network.head, analysis.features, [index])[0]

    def _index(self, name: str) -> int:
        if name not in self.class_names:
            raise ValueError(f"app: {name!r} is none of the {len(self.class_names)} classes")
        return self.class_names.index(name)


def read_thresholds(given: str, class_names: Sequence[str]) -> dict[str, float]:
    """The decision threshold of every class, a probability.

    Args:
        given: one number for all classes, or the evaluation.json that ``evaluate --thresholds tune`` has written.
        class_names: C names.

    Raises:
        ValueError: a number outside 0 to 1, no such file, or one without tuned thresholds or of other classes.
    """
    try:
        found: object = dict.fromkeys(class_names, float(given))
    except ValueError:
        try:
            found = parse_json(Path(given).read_bytes())["thresholds"]["probability"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"app: --threshold {given} is neither a probability nor the evaluation.json of a run that tuned them"
            ) from error
    values = found if isinstance(found, dict) else {}
    if set(values) != set(class_names):
        raise ValueError(f"{given}: thresholds of other classes than the model's: {sorted(values)[:5]}")
    if wrong := [value for value in values.values() if not (isinstance(value, float) and 0 <= value <= 1)]:
        raise ValueError(f"app: a threshold must be a probability from 0 to 1, got {wrong[0]}")
    return values
