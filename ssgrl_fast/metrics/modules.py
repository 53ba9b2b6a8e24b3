"""The metrics as torchmetrics classes, for training loops and several processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice, need
from ssgrl_fast.labels.matrix import DIFFICULT_RULES
from ssgrl_fast.metrics import functional
from ssgrl_fast.metrics.functional import AP_DEFINITIONS, PredictionCounts
from ssgrl_fast.metrics.report import Report, evaluate

if TYPE_CHECKING:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
else:
    Metric = need("torchmetrics", "train", "ssgrl_fast.metrics.AveragePrecision").Metric
    dim_zero_cat = need("torchmetrics.utilities", "train", "ssgrl_fast.metrics.AveragePrecision").dim_zero_cat


class AveragePrecision(Metric):
    """Average precision of each class and its mean, by one of the definitions of D32.

    The state is every score and label seen, float32 and int8 [n, C] in the order of the updates, gathered over
    processes; about 5·M·C bytes. Scores of lower precision are kept exactly, float64 scores are rounded.

    Args:
        num_classes: C.
        definition: ``"voc2010"`` (envelope at every recall), ``"voc2007"`` (11 points) or ``"plain"`` (mean precision
            at the positives).
        difficult: ``"ignore"``, ``"positive"``, ``"negative"``; None: 0 means difficult, and is ignored, only when a
            -1 occurs.
        options: keywords of torchmetrics' ``Metric``.

    Raises:
        ValueError: fewer than 1 class, an unknown definition or rule.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self, num_classes: int, definition: str = "voc2010", *, difficult: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        check_choice("AveragePrecision", "definition", definition, AP_DEFINITIONS)
        self.num_classes = _check_classes("AveragePrecision", num_classes)
        self.definition = definition
        self.difficult = _check_rule("AveragePrecision", difficult)
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Empty the state. One empty block remains, so that a process without images has something to send."""
        super().reset()
        self.scores.append(torch.empty(0, self.num_classes, device=self.device))
        self.targets.append(torch.empty(0, self.num_classes, dtype=torch.int8, device=self.device))

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch, which may be empty.

        Args:
            scores: [B, C], logits or any other order-preserving score.
            targets: [B, C], int8 1, 0, -1 (or bool).

        Raises:
            TypeError, ValueError: wrong dtype or shape, NaN scores, other codes; the state is then unchanged.
        """
        values, codes = _batch("AveragePrecision", scores, targets, self.num_classes)
        self.scores.append(values.to(torch.float32))
        self.targets.append(codes)

    def compute(self) -> dict[str, Tensor]:
        """The result so far.

        Returns:
            ``"mAP"``: float64 scalar, the mean over the classes with positives, NaN if there are none;
            ``"AP"``: float64 [C], NaN for the classes without positives.
        """
        ap = functional.average_precision(
            dim_zero_cat(self.scores), dim_zero_cat(self.targets), definition=self.definition, difficult=self.difficult
        )
        return {"mAP": ap[~ap.isnan()].mean(), "AP": ap}

    def report(self, class_names: Sequence[str], **described: Any) -> Report:
        """The full report over the images of all processes; every process must call it.

        Args:
            class_names: C names.
            described: other keywords of :func:`ssgrl_fast.metrics.evaluate`: top_k, threshold, mode, backend,
                device, dtype, details.
        """
        with self.sync_context(should_sync=True, should_unsync=True):
            scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)
        return evaluate(
            scores, targets, class_names, ap_definition=self.definition, difficult=self.difficult, **described
        )


class PrecisionRecallF1(Metric):
    """CP, CR, CF1, OP, OR and OF1 of eq. 13, over labels above a probability and, with ``top_k``, among an image's k
    highest.

    The state is two int64 [3, C] counts, summed over processes.

    Args:
        num_classes: C.
        top_k: None for every label above the threshold, 3 for the paper's top-3 setting. C or more cuts nothing.
        threshold: a probability in (0, 1); a label is predicted above it.
        difficult: ``"ignore"``, ``"positive"``, ``"negative"``; None: 0 means difficult, and is ignored, only when a
            -1 occurs.
        options: keywords of torchmetrics' ``Metric``.

    Raises:
        TypeError, ValueError: fewer than 1 class, a k below 1, a threshold outside (0, 1), an unknown rule.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predicted: Tensor
    labelled: Tensor

    def __init__(
        self,
        num_classes: int,
        top_k: int | None = None,
        threshold: float = 0.5,
        *,
        difficult: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        functional.check_prediction("PrecisionRecallF1", top_k, threshold)
        self.num_classes = _check_classes("PrecisionRecallF1", num_classes)
        self.top_k = top_k
        self.threshold = threshold
        self.difficult = _check_rule("PrecisionRecallF1", difficult)
        self.add_state("predicted", default=torch.zeros(3, self.num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("labelled", default=torch.zeros(3, self.num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch, which may be empty: scores [B, C] logits, targets [B, C] int8 1, 0, -1 (or bool).

        Raises:
            TypeError, ValueError: wrong dtype or shape, NaN scores, other codes; the state is then unchanged.
        """
        values, codes = _batch("PrecisionRecallF1", scores, targets, self.num_classes)
        counts = functional.count_predictions(values, codes, top_k=self.top_k, threshold=self.threshold)
        self.predicted += counts.predicted
        self.labelled += counts.labelled

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars ``CP``, ``CR``, ``CF1``, ``OP``, ``OR``, ``OF1``, fractions of 1."""
        return functional.precision_recall_f1(PredictionCounts(self.predicted, self.labelled), self.difficult)


class MeanLoss(Metric):
    """The mean loss over all images or entries: sums and counts of all batches and processes are added, then divided.

    The state is a float64 and an int64 scalar, summed over processes. (A mean of the batches' means would give a last
    batch that is not full the wrong weight.)

    Args:
        options: keywords of torchmetrics' ``Metric``.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor | int) -> None:
        """Add a batch: its summed loss, a scalar, and the number of summands, at least 0."""
        self.total += total.detach()
        self.count += count

    def compute(self) -> Tensor:
        """float64 scalar; 0 before the first batch."""
        return self.total / self.count.clamp(min=1)


def _batch(operation: str, scores: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """A checked batch: scores [B, C], codes int8 [B, C]."""
    values, codes = functional.check_pair(operation, scores, targets)
    if values.shape[1] != num_classes:
        raise ValueError(
            f"{operation}: scores {list(values.shape)} are for {values.shape[1]} classes, expected {num_classes}"
        )
    if codes.dtype == torch.bool:
        codes = codes.to(torch.int8) * 2 - 1
    return values, codes


def _check_classes(operation: str, num_classes: int) -> int:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"{operation}: num_classes must be an int of at least 1, got {num_classes!r}")
    return num_classes


def _check_rule(operation: str, difficult: str | None) -> str | None:
    if difficult is not None:
        check_choice(operation, "difficult", difficult, DIFFICULT_RULES)
    return difficult
