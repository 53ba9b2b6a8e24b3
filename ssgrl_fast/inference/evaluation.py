"""Evaluation of a model by the paper's protocols (4.1, 4.2.2): views, scales, fusion, a threshold per class.

| letter | meaning |
|---|---|
| M | images |
| V | views of an image at one scale: 1, or 10 with ten-crop |
| C | classes |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ssgrl_fast._utils.ahead import read_batches
from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast._utils.memory import return_memory
from ssgrl_fast.labels.matrix import Labels, split_labels
from ssgrl_fast.metrics import count_predictions, precision_recall_f1
from ssgrl_fast.metrics.functional import check_pair

if TYPE_CHECKING:
    from ssgrl_fast.data.base import MultiLabelDataset
    from ssgrl_fast.inference.figures import Sample
    from ssgrl_fast.inference.predictor import Predictor

FUSIONS = ("logits", "probabilities")


@dataclass(frozen=True)
class Protocol:
    """How an image becomes one score per class.

    Attributes:
        views: "single" or "ten-crop".
        scales: (resize, size) of every scale, pixels: images are resized to squares of side ``resize``, of which crops
            of side ``size`` are taken.
        fuse: what is averaged over views, and then over scales: "logits" or "probabilities". The paper does not state
            which (4.2.2).
    """

    views: str
    scales: tuple[tuple[int, int], ...]
    fuse: str

    def __post_init__(self) -> None:
        from ssgrl_fast.data.transforms import VIEWS

        check_choice("Protocol", "views", self.views, VIEWS)
        check_choice("Protocol", "fuse", self.fuse, FUSIONS)
        if not self.scales or len(set(self.scales)) != len(self.scales):
            raise ValueError(f"Protocol: scales must be one or more different ones, got {self.scales}")

    def __str__(self) -> str:
        scales = " and ".join(f"{resize} -> {size}" for resize, size in self.scales)
        alone = self.views == "single" and len(self.scales) == 1
        return f"{self.views}, scale {scales}" + ("" if alone else f", mean of {self.fuse}")


def scale_of(resize: int) -> tuple[int, int]:
    """(resize, size) of the scale whose images are resized to this side: 640 -> 576 (3.5), 512 -> 448 (4.2.2), any
    other side in the ratio 576 / 640.

    Raises:
        ValueError: a side below 2 pixels.
    """
    from ssgrl_fast.data.transforms import PAPER_SCALES

    if resize < 2:
        raise ValueError(f"a scale must be a side of at least 2 pixels, got {resize}")
    known = {side: size for size, (side, _) in PAPER_SCALES.items()}
    return resize, known.get(resize, round(resize * 576 / 640))


def fuse(logits: Tensor, how: str, dim: int) -> Tensor:
    """Average scores over one dimension.

    Args:
        logits: any shape.
        how: "logits": their mean; "probabilities": the logit of the mean of their sigmoids, computed in the logarithm,
            so that probabilities next to 0 and 1 keep their order.
        dim: the dimension to reduce.

    Returns:
        Logits of the averaged scores, float64.

    Raises:
        ValueError: ``how`` is neither.
    """
    check_choice("fuse", "how", how, FUSIONS)
    exact = logits.double()
    if how == "logits":
        return exact.mean(dim)
    return logsigmoid(exact).logsumexp(dim) - logsigmoid(-exact).logsumexp(dim)


@torch.inference_mode()
def score_images(
    predictor: Predictor,
    dataset: MultiLabelDataset,
    protocol: Protocol,
    *,
    batch_size: int = 8,
    readers: int | None = None,
    progress: str | None = None,
) -> Tensor:
    """Fused logits of every image of a data set, float64 [M, C] on the CPU, in its order.

    Args:
        predictor: the model; its own image size is not used.
        dataset: images; its own transform is not used.
        protocol: views, scales and fusion.
        batch_size: views per batch, rounded down to whole images, at least one image.
        readers: threads that read images while the network runs; None: one per core, at most 8.
        progress: title of a progress bar on standard error; None: no bar.

    Raises:
        BrokenImage, FileNotFoundError: naming the file.
        ValueError: scores that are not finite, naming the image; a batch size below 1.
    """

    from ssgrl_fast.data.transforms import view_transform

    if batch_size < 1:
        raise ValueError(f"score_images: batch_size must be at least 1, got {batch_size}")
    body = predictor.model.backbone
    scales = []
    for resize, size in protocol.scales:
        transform = view_transform(size, resize=resize, views=protocol.views, mean=body.mean, std=body.std)
        views = dataset.select(range(len(dataset)), transform=transform)
        count = max(1, batch_size // transform.count)
        batches = read_batches(views.__getitem__, range(len(views)), batch_size=count, readers=readers)
        rows = []
        for batch in _tracked(batches, progress, f"{resize} -> {size}", -(-len(views) // count)):
            images = torch.stack([item["image"] for item in batch])  # [B, V, 3, size, size]
            logits, _ = predictor.scores(images.flatten(0, 1))
            rows.append(fuse(logits.unflatten(0, images.shape[:2]), protocol.fuse, 1))
        scales.append(torch.cat(rows))
        return_memory()
    fused = fuse(torch.stack(scales), protocol.fuse, 0)
    broken = (~fused.isfinite()).any(1).nonzero().flatten().tolist()
    if broken:
        named = ", ".join(dataset.ids[index] for index in broken[:5])
        raise ValueError(f"evaluate: the scores of {len(broken)} images are not finite ({named}): damaged weights?")
    return fused


def _tracked(
    batches: Iterable[list[dict[str, Any]]], progress: str | None, scale: str, count: int
) -> Iterable[list[dict[str, Any]]]:
    if progress is None:
        return batches
    tools = need("rich.progress", "train", "the progress bar of evaluate")
    console = need("rich.console", "train", "the progress bar of evaluate").Console(stderr=True)
    shown: Iterable[list[dict[str, Any]]] = tools.track(
        batches, description=f"{progress} {scale}", console=console, total=count
    )
    return shown


def tune_thresholds(logits: Tensor, targets: Labels, *, difficult: str | None = None) -> Tensor:
    """For each class the threshold with the highest F1 on these images, which must not be the evaluated ones.

    Thresholds lie half-way between neighbouring scores. Of several with the same F1 the highest is taken. A class
    without positives, or without negatives, keeps logit 0, probability 0.5.

    Args:
        logits: [M, C].
        targets: [M, C], bool, {0, 1} or {1, 0, -1}.
        difficult: "ignore" leaves difficult entries out, "positive" and "negative" count them as such; None as in
            :mod:`ssgrl_fast.labels.matrix`.

    Returns:
        Logits, float64 [C]; a label is predicted if its logit is above the threshold of its class.

    Raises:
        TypeError, ValueError: as :func:`ssgrl_fast.metrics.average_precision`.
    """
    values, codes = check_pair("tune_thresholds", logits, targets)
    sets = split_labels("tune_thresholds", "targets", codes, difficult)
    cuts = torch.zeros(values.shape[1], dtype=torch.float64)
    for column in range(len(cuts)):
        known = sets.known[:, column]
        scores, order = values[known, column].double().sort(descending=True)
        positive = sets.present[known, column][order]
        if not 0 < int(positive.sum()) < len(positive):
            continue
        ends = torch.cat([scores[:-1] != scores[1:], scores.new_ones(1, dtype=torch.bool)]).nonzero().flatten()
        correct = positive.cumsum(0)[ends].double()
        f1 = 2 * correct / (ends + 1 + positive.sum())  # of predicting every image down to that score
        best = int(ends[f1.argmax()])
        below = scores[best + 1] if best + 1 < len(scores) else scores[best] - 1
        cuts[column] = (scores[best] + below) / 2
    return cuts


def prf_above(
    logits: Tensor, targets: Labels, cuts: Tensor, *, top_k: int | None = None, difficult: str | None = None
) -> dict[str, float]:
    """CP, CR, CF1, OP, OR, OF1 (eq. 13) of labels above their class's threshold and, with ``top_k``, among the k best.

    Args:
        logits: [M, C]; the k highest are those of the highest probability, whatever the thresholds.
        targets: [M, C].
        cuts: thresholds as logits [C], of :func:`tune_thresholds`.
        top_k: None for all labels, 3 for the paper's top-3 setting.
        difficult: as for the metrics.

    Raises:
        TypeError, ValueError: as :func:`ssgrl_fast.metrics.count_predictions`; not C thresholds.
    """
    values, codes = check_pair("prf_above", logits, targets)
    if cuts.shape != values.shape[1:]:
        raise ValueError(f"prf_above: cuts must be [{values.shape[1]}], one per class, got {list(cuts.shape)}")
    above = values.double() - cuts.to(values.device)
    if top_k is not None:
        kept = values.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
        above = above.masked_fill(torch.ones_like(codes, dtype=torch.bool).scatter(1, kept, False), -math.inf)
    return {
        name: value.item() for name, value in precision_recall_f1(count_predictions(above, codes), difficult).items()
    }


def attention_samples(
    predictor: Predictor,
    dataset: MultiLabelDataset,
    scale: tuple[int, int],
    count: int,
    *,
    rows: Sequence[int] | None = None,
) -> Sequence[Sample]:
    """The rows of an attention sheet (Fig. 4): images spread evenly over a data set, at one scale, with true labels.

    Args:
        predictor: a model with attention maps.
        dataset: at least one image.
        scale: (resize, size), pixels.
        count: number of rows at most.
        rows: which images, in this order; None: spread evenly.

    Raises:
        ValueError: the model has no attention maps, or a count below 1.
    """
    from ssgrl_fast.data.transforms import eval_transform
    from ssgrl_fast.inference.figures import SHEET_PIXELS, Sample
    from ssgrl_fast.inference.placement import pixels

    if count < 1:
        raise ValueError(f"attention_samples: count must be at least 1, got {count}")
    resize, size = scale
    body = predictor.model.backbone
    even = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().long().unique().tolist()
    chosen = even if rows is None else list(rows)[:count]
    transform = eval_transform(size, resize=resize, mean=body.mean, std=body.std)
    shown = dataset.select(chosen, transform=transform)
    samples = []
    for index in range(len(shown)):
        item = shown[index]
        logits, maps = predictor.scores(item["image"][None], attention=True)
        assert maps is not None  # requested
        probabilities, targets = logits[0].sigmoid().numpy(), item["target"].numpy()
        title = shown.ids[index].rpartition("/")[2]
        picture = pixels(shown.image_for(index, transform), SHEET_PIXELS)
        placement = predictor.placement(picture.shape, scale)
        samples.append(Sample(picture, probabilities, maps[0].numpy(), placement, targets, title))
    return samples
