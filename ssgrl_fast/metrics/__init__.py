"""Multi-label evaluation (sections 4.1 and 4.2.1; D27, D32-D34): average precision by three definitions, and eq. 13.

:func:`evaluate` and the functions beside it need torch alone; the classes :class:`AveragePrecision`,
:class:`PrecisionRecallF1` and :class:`MeanLoss` build on torchmetrics and are imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ssgrl_fast.metrics.functional import (
    AP_DEFINITIONS,
    PRF_NAMES,
    PredictionCounts,
    average_precision,
    count_predictions,
    precision_recall_f1,
    predict_labels,
)
from ssgrl_fast.metrics.report import ClassRow, Report, evaluate
from ssgrl_fast.metrics.tables import PRE, baseline_ap, class_table, row_title, table_1

if TYPE_CHECKING:
    from ssgrl_fast.metrics.modules import AveragePrecision, MeanLoss, PrecisionRecallF1

__all__ = [
    "AP_DEFINITIONS",
    "PRE",
    "PRF_NAMES",
    "AveragePrecision",
    "ClassRow",
    "MeanLoss",
    "PrecisionRecallF1",
    "PredictionCounts",
    "Report",
    "average_precision",
    "baseline_ap",
    "class_table",
    "count_predictions",
    "evaluate",
    "precision_recall_f1",
    "predict_labels",
    "row_title",
    "table_1",
]


def __getattr__(name: str) -> Any:
    if name in ("AveragePrecision", "MeanLoss", "PrecisionRecallF1"):
        from ssgrl_fast.metrics import modules

        return getattr(modules, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
