"""Whether attention lies on the objects: the pointing game, and the share of attention inside the boxes.

Measured on every pair of an image and a class of which the image has a box, on the photograph at its own size:

- **pointing** (Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016): 1 if the highest point of
  the map lies in a box of the class, or at most 15 pixels from one; of several highest points the mean.
- **inside** (the energy-based pointing game of Wang et al., "Score-CAM", CVPR workshops 2020): the part of the map that
  lies in the boxes of the class.

Beside them stand *chance*, what a map that is even over the photograph gets (for pointing the part of the photograph in
or near the boxes, for inside their part of its area), the *centre* of the photograph as the point, and the class
activation maps (Zhou et al., CVPR 2016) of a pooling baseline; of these, negative values count as zero for inside, and
a map without a positive value as even.

Objects whose label is 0 (difficult; crowds, if the data have them so) follow the difficult rule (D27): "positive"
counts their boxes as the others, "negative" as background. By "ignore" a point that is on such a box alone counts
neither way, and what lies in it alone is left out of the shares and their chance.

P pairs; H, W are the sides of a photograph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssgrl_fast._utils.ahead import read_batches
from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.data.boxes import Edges, ImageBoxes
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.inference.figures import SHEET_PIXELS, new_figure, overlay, shortened, show_picture
from ssgrl_fast.inference.placement import Placement, pixels
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics.pairs import PairTable
from ssgrl_fast.models import SSGRL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssgrl_fast.data.base import MultiLabelDataset
    from ssgrl_fast.inference.predictor import Predictor

__all__ = ["TOLERANCE", "Localisation", "Targets", "localise", "measure", "network_inputs", "read_targets"]

TOLERANCE = 15.0
"""Pixels of the photograph that the highest point may lie beside a box (Zhang et al.)."""
_TITLES = {
    "pointing": "pointing",
    "pointing chance": "chance",
    "pointing centre": "centre",
    "pointing CAM": "CAM",
    "inside": "inside",
    "inside chance": "chance of inside",
    "inside CAM": "CAM inside",
}


@dataclass(frozen=True)
class Targets:
    """The boxes of one class in one image.

    Attributes:
        row, column: of the image and the class.
        boxes: those that count.
        unclear: those that count neither way.
    """

    row: int
    column: int
    boxes: list[Edges]
    unclear: list[Edges]


@dataclass(frozen=True)
class Localisation:
    """The measurements on all pairs.

    Attributes:
        table: the values "pointing", "pointing chance", "pointing centre", "inside", "inside chance", and with a
            baseline "pointing CAM" and "inside CAM"; rows are those of the data set.
        targets: P, in the order of the table.
        left_out: number of pairs or boxes by the reason why they are not measured.
        facts: what the values depend on, as text.
    """

    table: PairTable
    targets: list[Targets]
    left_out: dict[str, int]
    facts: str

    @property
    def differences(self) -> list[tuple[str, str]]:
        """What is compared with what."""
        beside = [(name, f"{name} {other}") for name in ("pointing", "inside") for other in ("chance", "centre", "CAM")]
        return [pair for pair in beside if pair[1] in self.table.values]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.table.to_dict(self.differences), "left out": dict(self.left_out), "measured by": self.facts}

    def to_markdown(self) -> str:
        """The tables in Markdown, in per cent."""
        titles = {name: title for name, title in _TITLES.items() if name in self.table.values}
        missing = "".join(f" Not measured: {count} {reason}." for reason, count in self.left_out.items())
        text = f"Attention and the boxes of the objects (per cent). {self.facts}.{missing}"
        return f"## Localisation\n\n{text}\n\n{self.table.to_markdown(titles, self.differences)}"

    def extremes(self, count: int) -> tuple[list[int], list[int]]:
        """Pairs with the most attention inside beyond chance, and those with the least, half of ``count`` each."""
        gain = self.table.values["inside"] - self.table.values["inside chance"]
        order = [int(pair) for pair in np.argsort(-gain, kind="stable") if not np.isnan(gain[pair])]
        best = order[: (count + 1) // 2]
        return best, order[len(best) :][::-1][: count // 2]


# ---- targets ---------------------------------------------------------------------------------------------------------


def read_targets(dataset: MultiLabelDataset, difficult: str) -> tuple[list[Targets], list[ImageBoxes], Counter[str]]:
    """The pairs to measure, the boxes of each image, and how many were left out, by reason.

    A pair with an object that has no box is left out.

    Args:
        dataset: in the format of Pascal VOC or COCO.
        difficult: "ignore", "positive" or "negative" (D27).

    Raises:
        ValueError: the data have no boxes.
        BrokenAnnotation, FileNotFoundError: naming the annotation.
    """
    check_choice("read_targets", "difficult", difficult, DIFFICULT_RULES)
    images, targets, left_out = dataset.boxes(), [], Counter[str]()
    if not any(each.edges for image in images for each in image.objects):
        raise ValueError(f"localisation: none of the {len(images)} images has an object with a box in its annotation")
    column = {name: index for index, name in enumerate(dataset.class_names)}
    for row, (_, objects) in enumerate(images):
        for name in sorted({each.name for each in objects}, key=column.__getitem__):
            own = [each for each in objects if each.name == name and (each.code == 1 or difficult != "negative")]
            sure = [each.edges for each in own if each.code == 1 or difficult == "positive"]
            unclear = [each.edges for each in own if each.code != 1 and difficult == "ignore"]
            if not sure:
                continue
            if None in (*sure, *unclear):
                left_out["labels with an object that has no box"] += 1
                continue
            targets.append(
                Targets(row, column[name], [each for each in sure if each], [each for each in unclear if each])
            )
    return targets, images, left_out


def _picture_size(dataset: MultiLabelDataset, row: int, stated: tuple[int, int] | None, found: tuple[int, int]) -> Any:
    """(H, W) of the picture that the boxes are of.

    Args:
        stated: of the annotation; None: that of the image file.
        found: of the image as it was decoded, perhaps at a reduced size.

    Raises:
        BrokenAnnotation: the annotation is of a picture of another shape.
    """
    if stated is None:
        width, height = dataset.load_image(row).size
        return height, width
    if abs(stated[0] * found[1] - stated[1] * found[0]) > 2 * max(*stated, *found):
        raise BrokenAnnotation(
            f"{dataset.ids[row]}: its boxes are of a picture of {stated[1]}×{stated[0]} pixels (width × height), its "
            f"image has {found[1]}×{found[0]} upright: they cannot be laid over it"
        )
    return stated


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(
    placement: Placement | None,
    attention: NDArray[Any] | None,
    target: Targets,
    size: tuple[int, int],
    tolerance: float,
) -> tuple[float, float]:
    """(pointing, inside) of one map; NaN where it lies only where nothing counts.

    Args:
        placement: of the map's cells on the photograph; None: the chance, that of a map which is even over it.
        attention: [h, w], of any sign; None with ``placement``.
        target: the boxes, within the photograph.
        size: (H, W) of the photograph.
        tolerance: pixels.
    """
    near, unclear_near = (covered(edges, size, tolerance) for edges in (target.boxes, target.unclear))
    inside, unclear = (covered(edges, size) for edges in (target.boxes, target.unclear))
    known, known_near = inside | ~unclear, near | ~unclear_near
    if placement is None or attention is None:
        return float(near.sum() / known_near.sum()), float(inside.sum() / known.sum())
    hits = [_verdict(point, target, tolerance) for point in placement.points(attention) + 0.5]
    counted = [hit for hit in hits if hit is not None]
    positive = attention.clip(0).astype(np.float64)
    if not positive.any():
        positive = np.ones_like(positive)
    parts = [float((positive * placement.weights(mask)).sum()) for mask in (inside, known)]
    return float(np.mean(counted)) if counted else np.nan, parts[0] / parts[1] if parts[1] > 0 else np.nan


def _within(target: Targets, size: tuple[int, int]) -> Targets:
    """The boxes cut at the edges of a photograph (H, W), without those that have no area there."""
    parts = []
    for boxes in (target.boxes, target.unclear):
        cut = [(max(t, 0.0), max(l, 0.0), min(b, size[0]), min(r, size[1])) for t, l, b, r in boxes]
        parts.append([each for each in cut if each[2] > each[0] and each[3] > each[1]])
    return Targets(target.row, target.column, *parts)


def _verdict(point: NDArray[np.float64], target: Targets, tolerance: float) -> bool | None:
    """Whether a point (y, x), pixels from the edges, hits; None if it lies on a box that counts neither way."""
    if any(_distance(point, box) <= tolerance for box in target.boxes):
        return True
    return None if any(_distance(point, box) <= tolerance for box in target.unclear) else False


def _distance(point: NDArray[np.float64], box: Edges) -> float:
    top, left, bottom, right = box
    beside = max(top - point[0], point[0] - bottom, 0.0), max(left - point[1], point[1] - right, 0.0)
    return float(np.hypot(*beside))


def covered(boxes: Sequence[Edges], size: tuple[int, int], tolerance: float = 0.0) -> NDArray[np.bool_]:
    """[H, W]: whether the middle of a pixel lies in one of the boxes, or at most ``tolerance`` pixels from it."""
    mask = np.zeros(size, dtype=np.bool_)
    for top, left, bottom, right in boxes:
        away = []
        for side, first, end in ((size[0], top, bottom), (size[1], left, right)):
            middles = np.arange(side) + 0.5
            away.append(np.maximum(np.maximum(first - middles, middles - end), 0))
        rows, columns = (np.flatnonzero(each <= tolerance) for each in away)
        if len(rows) and len(columns):
            part = np.hypot(away[0][rows, None], away[1][None, columns]) <= tolerance
            mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] |= part
    return mask


def network_inputs(
    predictor: Predictor, dataset: MultiLabelDataset, rows: Sequence[int], scale: tuple[int, int], batch_size: int
) -> Iterator[tuple[list[int], Tensor, list[tuple[int, int]]]]:
    """Some images of a data set in batches: their rows, the network's input [B, 3, S, S] at one scale (resize, size),
    and the sizes (height, width) that they were decoded at."""
    from ssgrl_fast.data.transforms import eval_transform

    body, (resize, side) = predictor.model.backbone, scale
    transform = eval_transform(side, resize=resize, mean=body.mean, std=body.std)

    def read(row: int) -> tuple[int, Tensor, tuple[int, int]]:
        image = dataset.image_for(row, transform)
        return row, transform(image), (image.height, image.width)

    for batch in read_batches(read, list(rows), batch_size=batch_size):
        numbers, images, sizes = zip(*batch, strict=True)
        yield list(numbers), torch.stack(images), list(sizes)


def localise(
    predictor: Predictor,
    dataset: MultiLabelDataset,
    scale: tuple[int, int],
    *,
    difficult: str = "ignore",
    baseline: Predictor | None = None,
    tolerance: float = TOLERANCE,
    batch_size: int = 16,
) -> Localisation:
    """Measure the attention of a model on every pair of an image and a class that has a box.

    Args:
        predictor: of an SSGRL model whose classes are the data's.
        dataset: in the format of Pascal VOC or COCO.
        scale: (resize, size), pixels; the network sees the centre crop alone.
        difficult: "ignore", "positive" or "negative" (D27).
        baseline: a pooling model, for its class activation maps; of another kind it is left out.
        tolerance: of the pointing game, pixels of the photograph.
        batch_size: images per batch.

    Raises:
        ValueError: as :func:`read_targets`; a model without attention; no pair that can be measured.
        BrokenImage, BrokenAnnotation, FileNotFoundError: naming the file.
    """
    if not isinstance(predictor.model, SSGRL):
        raise ValueError(
            f"localisation: {predictor.source} holds a {type(predictor.model).__name__}, without attention"
        )
    targets, images, left_out = read_targets(dataset, difficult)
    by_row: dict[int, list[int]] = {}
    for pair, target in enumerate(targets):
        by_row.setdefault(target.row, []).append(pair)
    shown = {"": predictor}
    if baseline is not None and not isinstance(baseline.model, SSGRL):
        shown[" CAM"] = baseline
    kinds = [
        *(f"{name}{suffix}" for suffix in (*shown, " chance") for name in ("pointing", "inside")),
        "pointing centre",
    ]
    values = {name: np.full(len(targets), np.nan) for name in kinds}
    for rows, inputs, sizes in network_inputs(predictor, dataset, list(by_row), scale, batch_size):
        maps = {suffix: each.maps(inputs).numpy() for suffix, each in shown.items()}
        for number, (row, found) in enumerate(zip(rows, sizes, strict=True)):
            size = _picture_size(dataset, row, images[row].size, found)
            placements = {suffix: each.placement(size, scale) for suffix, each in shown.items()}
            middle = np.array(size) / 2
            for pair in by_row[row]:
                target = targets[pair] = _within(targets[pair], size)
                if not target.boxes:
                    left_out["labels whose boxes have no area on the photograph"] += 1
                    continue
                measured = {" chance": measure(None, None, target, size, tolerance)}
                for suffix, placement in placements.items():
                    measured[suffix] = measure(placement, maps[suffix][number, target.column], target, size, tolerance)
                for suffix, (pointing, inside) in measured.items():
                    values[f"pointing{suffix}"][pair], values[f"inside{suffix}"][pair] = pointing, inside
                if (hit := _verdict(middle, target, tolerance)) is not None:
                    values["pointing centre"][pair] = hit
    kept = [pair for pair, target in enumerate(targets) if target.boxes]
    targets = [targets[pair] for pair in kept]
    if not targets:
        raise ValueError(f"localisation: no label of the {len(images)} images has a box that counts: {dict(left_out)}")
    rows, columns = np.array([(target.row, target.column) for target in targets]).T
    measures = {name: values[name][kept] for name in _TITLES if name in values}
    table = PairTable(dataset.class_names, rows, columns, measures)
    facts = (
        f"Highest point within {tolerance:g} pixels of a box; centre crop at {scale[0]} -> {scale[1]}; "
        f"{len(targets)} labels of {len(by_row)} images; difficult rule {difficult}"
    )
    return Localisation(table, targets, left_out, facts)


# ---- the sheet -------------------------------------------------------------------------------------------------------


def localisation_sheet(
    predictor: Predictor, dataset: MultiLabelDataset, scale: tuple[int, int], found: Localisation, count: int
) -> Figure:
    """Photographs with the attention of one label, its boxes (white) and the map's highest point (a cross): in the
    upper row those with the most attention inside beyond chance, in the lower row those with the least.

    Args:
        predictor, dataset, scale: as for :func:`localise`.
        found: what it measured.
        count: number of photographs, at least 1.
    """
    best, worst = found.extremes(count)
    across = len(best)
    figure = new_figure(2.4 * across, 5.2)
    stated, values = dataset.boxes(), found.table.values
    for place, pair in [*enumerate(best, 1), *enumerate(worst, across + 1)]:
        target = found.targets[pair]
        _, inputs, sizes = next(network_inputs(predictor, dataset, [target.row], scale, 1))
        attention = predictor.maps(inputs)[0, target.column].numpy()
        picture = pixels(dataset.load_image(target.row), SHEET_PIXELS)
        placement = predictor.placement(picture.shape, scale)
        axes = figure.add_subplot(2, across, place)
        inside, chance = values["inside"][pair], values["inside chance"][pair]
        title = f"{shortened(dataset.class_names[target.column], 24)}\n{inside:.0%} inside, chance {chance:.0%}"
        show_picture(axes, overlay(picture, attention, placement), title)
        height, _ = _picture_size(dataset, target.row, stated[target.row].size, sizes[0])
        _outline(axes, target.boxes, placement.points(attention), picture.shape[0] / height)
    figure.supxlabel("upper row: most attention inside the boxes beyond chance; lower row: least", fontsize=8)
    return figure


def _outline(axes: Any, boxes: Sequence[Edges], points: NDArray[np.float64], ratio: float) -> None:
    from matplotlib.patches import Rectangle

    for top, left, bottom, right in boxes:
        corner = (left * ratio - 0.5, top * ratio - 0.5)
        sides = ((right - left) * ratio, (bottom - top) * ratio)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="white", linewidth=1.2))
    axes.autoscale(False)
    axes.plot(points[:, 1], points[:, 0], "+", color="cyan", markersize=9)
