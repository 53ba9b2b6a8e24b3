"""Average precision and precision/recall/F1 of multi-label scores, in plain PyTorch (sections 4.1 and 4.2.1, eq. 13).

M is the number of images, C the number of classes. Labels are coded 1 present, 0 only difficult objects, -1 absent,
-2 unknown (:mod:`ssgrl_fast.labels.matrix`); unknown entries are left out under every rule. All values are fractions
of 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.labels.matrix import DIFFICULT_RULES, Labels, check_labels, split_labels

AP_DEFINITIONS = ("voc2010", "voc2007", "plain")
PRF_NAMES = ("CP", "CR", "CF1", "OP", "OR", "OF1")

# Classes are computed in blocks, because sorting and running sums take about ten arrays of a block's size.
_BLOCK_ENTRIES = 1 << 20


def check_scores(operation: str, scores: object) -> Tensor:
    """Scores as a floating tensor without NaN; infinities pass.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not [M, C], or NaN somewhere; the message names the first few by image and class.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        what = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{operation}: scores must be a floating-point tensor [M, C], got {what}")
    if scores.dim() != 2:
        raise ValueError(f"{operation}: scores must be [M, C], images by classes, got {list(scores.shape)}")
    nan = torch.isnan(scores)
    if bool(nan.any()):
        places = nan.nonzero()
        listed = ", ".join(f"image {row} class {column}" for row, column in places[:5].tolist())
        raise ValueError(f"{operation}: scores hold {len(places)} NaN: {listed}{', ...' if len(places) > 5 else ''}")
    return scores.detach()


def check_pair(operation: str, scores: object, targets: Labels) -> tuple[Tensor, Tensor]:
    """Scores [M, C] and targets, bool or int8 [M, C], on the scores' device.

    Raises:
        TypeError, ValueError: as :func:`check_scores` and :func:`ssgrl_fast.labels.matrix.check_labels`, or unequal
            shapes.
    """
    checked = check_scores(operation, scores)
    codes = check_labels(operation, "targets", targets)
    if codes.shape != checked.shape:
        raise ValueError(f"{operation}: targets {list(codes.shape)} do not fit scores {list(checked.shape)}")
    return checked, codes.to(checked.device)


def average_precision(
    scores: Tensor, targets: Labels, *, definition: str = "voc2010", difficult: str | None = None
) -> Tensor:
    """Average precision of each class, by one of the three definitions in use (D32).

    With the images of a class sorted by falling score, tp and fp the positives and negatives so far, n all positives,
    precision = tp / (tp + fp) and recall = tp / n:

    - ``"voc2010"``: the area under the precision envelope, max of precision at this recall or more, at every recall
      (SSGRL's published code, Q2L, the VOC devkit from 2010 on);
    - ``"voc2007"``: the mean of that envelope at recalls 0, 0.1, ..., 1 (VOC devkit to 2009), compared as whole
      numbers;
    - ``"plain"``: the mean of the precision at each positive (ML-GCN, ADD-GCN, ASL; scikit-learn's).

    Images with equal scores enter together: precision and recall are taken where a score ends, as scikit-learn does,
    so that the result does not depend on the order of the images.

    Args:
        scores: [M, C], any order-preserving score (logits or probabilities).
        targets: [M, C], bool, {0, 1} or {1, 0, -1}.
        definition: ``"voc2010"``, ``"voc2007"`` or ``"plain"``.
        difficult: how difficult entries count: ``"ignore"`` (left out for their class), ``"positive"`` or
            ``"negative"`` (D27); None as in :mod:`ssgrl_fast.labels.matrix`.

    Returns:
        float64 [C]; NaN for a class without positives (D33).

    Raises:
        TypeError, ValueError: as :func:`check_pair`, or an unknown definition or rule.
    """
    check_choice("average_precision", "definition", definition, AP_DEFINITIONS)
    values, codes = check_pair("average_precision", scores, targets)
    sets = split_labels("average_precision", "targets", codes, difficult)
    images, classes = values.shape
    result = torch.empty(classes, dtype=torch.float64, device=values.device)
    block = max(1, _BLOCK_ENTRIES // max(images, 1))
    for start in range(0, classes, block):
        part = slice(start, start + block)
        known = sets.known[:, part].T.contiguous()
        positive = sets.present[:, part].T & known
        result[part] = _average_precision(values[:, part].T.contiguous(), positive, known, definition)
    return result


def _average_precision(scores: Tensor, positive: Tensor, known: Tensor, definition: str) -> Tensor:
    """AP of a block of classes: scores, bool positive and known, each [C, M] -> float64 [C]."""
    needed = positive.sum(1)
    if not scores.shape[1]:
        return torch.full(needed.shape, math.nan, dtype=torch.float64, device=scores.device)
    ranked, order = scores.sort(dim=1, descending=True)
    true = positive.gather(1, order).cumsum(1)
    counted = known.gather(1, order).cumsum(1)
    ends = torch.ones_like(positive)  # the last image of each score
    ends[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    precision = (true.to(torch.float64) / counted.clamp(min=1)).masked_fill(~ends, 0.0)
    if definition == "voc2007":
        envelope = [precision.masked_fill(10 * true < tenth * needed[:, None], 0.0).amax(1) for tenth in range(11)]
        return torch.stack(envelope).mean(0).masked_fill(needed == 0, math.nan)
    if definition == "voc2010":
        precision = precision.flip(1).cummax(1).values.flip(1)
    # Positives of each score; summed per score, so that the order of equal scores does not change the last bit.
    reached = true.masked_fill(~ends, 0).cummax(1).values
    entering = reached.diff(dim=1, prepend=torch.zeros_like(reached[:, :1]))
    return ((precision * entering).sum(1) / needed).masked_fill(needed == 0, math.nan)


class PredictionCounts(NamedTuple):
    """The counts of eq. 13, by class and label code, so that the difficult rule can be applied at the end.

    Attributes:
        predicted: int64 [3, C], images predicted to hold the class whose label is 1, 0, -1 (rows in this order).
        labelled: int64 [3, C], images whose label is 1, 0, -1.
    """

    predicted: Tensor
    labelled: Tensor


def predict_labels(scores: Tensor, *, top_k: int | None = None, threshold: float = 0.5) -> Tensor:
    """The labels predicted from logits: probability above the threshold and, with ``top_k``, among the image's k
    highest.

    Equal logits at the cut go to the lower class number. ``top_k`` of C or more cuts nothing. The comparison is made
    on logits, s > log(t / (1 - t)), so that rounding of the sigmoid has no effect.

    Args:
        scores: [M, C] logits.
        top_k: number of labels per image at most (3 in section 4.1); None: no limit.
        threshold: a probability in (0, 1).

    Returns:
        bool [M, C].
    """
    check_prediction("predict_labels", top_k, threshold)
    above = scores > math.log(threshold / (1.0 - threshold))
    if top_k is None or top_k >= scores.shape[1]:
        return above
    lowest = scores.topk(top_k, dim=1).values[:, -1:]
    higher, equal = scores > lowest, scores == lowest
    room = top_k - higher.sum(1, keepdim=True)
    if bool((equal.sum(1, keepdim=True) > room).any()):
        equal &= equal.cumsum(1) <= room
    return above & (higher | equal)


def check_prediction(operation: str, top_k: int | None, threshold: float) -> None:
    """Check that top_k is at least 1 and the threshold in (0, 1).

    Raises:
        TypeError: top_k is neither None nor an int.
        ValueError: out of range.
    """
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool)):
        raise TypeError(f"{operation}: top_k must be None or an int, got {type(top_k).__name__}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{operation}: top_k must be at least 1, got {top_k}")
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"{operation}: threshold must be a probability between 0 and 1, got {threshold}")


def count_predictions(
    scores: Tensor, targets: Labels, *, top_k: int | None = None, threshold: float = 0.5
) -> PredictionCounts:
    """Count predictions and labels; the counts of batches can be added.

    Args:
        scores: [M, C] logits.
        targets: [M, C]; bool, or 1, 0, -1. Boolean labels count as 1 and -1. Entries of
            -2 (unknown) are in neither count.
        top_k, threshold: as :func:`predict_labels`.

    Raises:
        TypeError, ValueError: as :func:`check_pair` and :func:`check_prediction`.
    """
    values, codes = check_pair("count_predictions", scores, targets)
    predicted = predict_labels(values, top_k=top_k, threshold=threshold)
    if codes.dtype == torch.bool:
        codes = codes.to(torch.int8) * 2 - 1
    by_code = torch.stack([codes == code for code in (1, 0, -1)])  # [3, M, C]
    return PredictionCounts((by_code & predicted).sum(1), by_code.sum(1))


def precision_recall_by_class(counts: PredictionCounts, difficult: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """N_c, N_p and N_g of eq. 13 under the difficult rule: correct, predicted and true images of each class, int64
    [C] each.

    Under ``"ignore"`` a prediction of a difficult entry is not counted, but it takes one of the k places.
    """
    if difficult is not None:
        check_choice("precision_recall_f1", "difficult", difficult, DIFFICULT_RULES)
    predicted, labelled = counts
    # without a rule, 0 means difficult only if a -1 occurs
    rule = difficult or ("ignore" if int(labelled[2].sum()) else "negative")
    if rule == "positive":
        return predicted[0] + predicted[1], predicted.sum(0), labelled[0] + labelled[1]
    if rule == "negative":
        return predicted[0], predicted.sum(0), labelled[0]
    return predicted[0], predicted[0] + predicted[2], labelled[0]


def precision_recall_f1(counts: PredictionCounts, difficult: str | None = None) -> dict[str, Tensor]:
    """CP, CR, CF1 and OP, OR, OF1 of eq. 13.

    CP and CR are means over the classes that have positives; a class that is never predicted has precision 0. A class
    without positives is left out of both, and its false predictions enter OP. CF1 is the harmonic mean of CP and CR.
    Without any positive at all, CR, CF1, OR, OF1 and CP are NaN.

    Args:
        counts: of all images (:func:`count_predictions`).
        difficult: ``"ignore"``, ``"positive"``, ``"negative"`` or None (:mod:`ssgrl_fast.labels.matrix`).

    Returns:
        float64 scalars by name, in the order CP, CR, CF1, OP, OR, OF1.

    Raises:
        ValueError: an unknown rule.
    """
    correct, predicted, true = (count.to(torch.float64) for count in precision_recall_by_class(counts, difficult))
    has = true > 0
    by_class_precision = correct[has] / predicted[has].clamp(min=1)
    by_class_recall = correct[has] / true[has]
    overall_precision, overall_recall = _ratio(correct.sum(), predicted.sum(), true.sum()), correct.sum() / true.sum()
    cp, cr = by_class_precision.mean(), by_class_recall.mean()
    values = (cp, cr, f1(cp, cr), overall_precision, overall_recall, f1(overall_precision, overall_recall))
    return dict(zip(PRF_NAMES, values, strict=True))


def f1(precision: Tensor, recall: Tensor) -> Tensor:
    """The harmonic mean; 0 where both are 0, NaN where one is."""
    total = precision + recall
    return torch.where(total == 0, torch.zeros_like(total), 2 * precision * recall / total)


def _ratio(correct: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Precision: 0 where nothing was predicted though there were positives, NaN where there was neither."""
    return torch.where((predicted == 0) & (true > 0), torch.zeros_like(correct), correct / predicted)
