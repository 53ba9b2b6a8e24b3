"""The report of one evaluation: a row per class, CP to OF1 over all and over the top k labels, and how they were
measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgrl_fast._utils.escape import for_markdown
from ssgrl_fast._utils.files import write_text
from ssgrl_fast._utils.text import parse_json
from ssgrl_fast.labels.matrix import (
    ABSENT,
    DIFFICULT,
    PRESENT,
    UNKNOWN,
    Labels,
    LabelSets,
    check_class_names,
    split_labels,
)
from ssgrl_fast.metrics.functional import (
    PRF_NAMES,
    PredictionCounts,
    average_precision,
    check_pair,
    count_predictions,
    f1,
    precision_recall_by_class,
    precision_recall_f1,
)

FORMAT = "ssgrl_fast.report"
UNSTATED = "not stated"
_DIGEST_ROWS = 1024  # images whose labels are taken at once
_DESCRIPTION = ("mode", "ap_definition", "difficult", "backend", "device", "dtype")


@dataclass(frozen=True)
class ClassRow:
    """One class of a report; values are fractions of 1, NaN where undefined.

    Attributes:
        name: the class.
        ap: average precision, NaN without positives.
        precision, recall, f1: of all labels above the threshold; precision 0 when it is never predicted, all NaN
            without positives.
        positives, negatives, ignored: numbers of images.
    """

    name: str
    ap: float
    precision: float
    recall: float
    f1: float
    positives: int
    negatives: int
    ignored: int


@dataclass(frozen=True)
class Report:
    """An evaluation (sections 4.1 and 4.2.1).

    Attributes:
        mean_ap: mean of the AP over classes with positives.
        all_labels, top_k_labels: CP, CR, CF1, OP, OR, OF1 at the threshold alone, and with the k highest labels of an
            image.
        classes: one row per class.
        without_positives: names of the classes left out of mAP, CP and CR.
        images: M.
        ap_definition: ``"voc2010"``, ``"voc2007"`` or ``"plain"``.
        difficult: the rule applied to difficult entries.
        difficult_entries: their number.
        top_k, threshold: of the label predictions.
        mode, backend, device, dtype: how the scores were computed; "not stated" if unknown.
        details: further text by name (model, data set, seed, ...).
        images_sha256, labels_sha256: of the images' names and of their labels (:func:`evaluated_on`); "not stated"
            if the images have no names.
        unknown_entries: number of unknown labels (partial annotation), which count in none of the other numbers.
    """

    mean_ap: float
    all_labels: dict[str, float]
    top_k_labels: dict[str, float]
    classes: list[ClassRow]
    without_positives: list[str]
    images: int
    ap_definition: str
    difficult: str
    difficult_entries: int
    top_k: int
    threshold: float
    mode: str = UNSTATED
    backend: str = UNSTATED
    device: str = UNSTATED
    dtype: str = UNSTATED
    details: dict[str, str] = field(default_factory=dict)
    images_sha256: str = UNSTATED
    labels_sha256: str = UNSTATED
    unknown_entries: int = 0

    @property
    def class_names(self) -> list[str]:
        """C names."""
        return [row.name for row in self.classes]

    @property
    def ap(self) -> list[float]:
        """C values, NaN for a class without positives."""
        return [row.ap for row in self.classes]

    def naming(self, ids: Sequence[str], labels: Tensor) -> Report:
        """A copy of this report with the checksums of its images and labels, in any order of the images.

        Args:
            ids: M names.
            labels: [M, C], bool or int8 as data sets have them: 1 present, 0 only difficult objects, -1 absent.

        Raises:
            TypeError, ValueError: other values, or not M names.
        """
        seen = evaluated_on(ids, self.class_names, split_labels("report", "labels", labels, "ignore"))
        return replace(self, images_sha256=seen[0], labels_sha256=seen[1])

    def summary(self) -> dict[str, float]:
        """The main results, for a log: mAP, CP ... OF1 of all labels, and ``CP_top3`` ... of the k highest."""
        highest = {f"{name}_top{self.top_k}": value for name, value in self.top_k_labels.items()}
        return {"mAP": self.mean_ap, **self.all_labels, **highest}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts; an undefined value is None. ``unknown_entries`` is there if any are,
        so that reports without unknown labels are as earlier versions wrote them."""
        content = asdict(self)
        if not self.unknown_entries:
            del content["unknown_entries"]
        return {"format": FORMAT, "unit": "fraction", **defined(content)}

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The report as JSON text (undefined values are null), also written to ``path`` if one is given.

        Raises:
            OSError: the file could not be written; an earlier file is unchanged.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            write_text(path, text)
        return text

    @classmethod
    def from_json(cls, path: str | PathLike[str]) -> Report:
        """Read what :meth:`to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a report; the message names the file.
        """
        source = Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"report: {source} is no file")
        try:
            data = parse_json(source.read_text(encoding="utf-8-sig"))
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            del data["unit"]
            data["classes"] = [ClassRow(**_undefined(row)) for row in data["classes"]]
            data["all_labels"], data["top_k_labels"] = _undefined(data["all_labels"]), _undefined(data["top_k_labels"])
            return cls(**_undefined(data))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"report: {source} is no report of ssgrl_fast: {error}") from error

    def to_markdown(self) -> str:
        """Tables in Markdown, values in per cent."""
        described = [*_DESCRIPTION, "images", "threshold", "top_k"]
        lines = ["| setting | |", "|---|---|"]
        lines += [f"| {_LABELS.get(name, name)} | {for_markdown(getattr(self, name))} |" for name in described]
        lines += [f"| difficult entries | {self.difficult_entries} |"]
        if self.unknown_entries:
            lines += [f"| unknown entries, left out | {self.unknown_entries} |"]
        lines += [f"| {for_markdown(name)} | {for_markdown(value)} |" for name, value in self.details.items()]
        lines += ["", f"| per cent | mAP | {' | '.join(PRF_NAMES)} |", "|---" * (len(PRF_NAMES) + 2) + "|"]
        for title, mean_ap, values in (
            (f"all labels above {self.threshold:g}", percent(self.mean_ap), self.all_labels),
            (f"top {self.top_k}, above {self.threshold:g}", "", self.top_k_labels),
        ):
            lines.append(f"| {title} | {mean_ap} | {' | '.join(percent(values[name]) for name in PRF_NAMES)} |")
        lines += [
            "",
            "| class | AP | precision | recall | F1 | positives | negatives | ignored |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for row in self.classes:
            shares = " | ".join(percent(value) for value in (row.ap, row.precision, row.recall, row.f1))
            lines.append(f"| {for_markdown(row.name)} | {shares} | {row.positives} | {row.negatives} | {row.ignored} |")
        if self.without_positives:
            names = ", ".join(map(for_markdown, self.without_positives))
            lines += [
                "",
                f"{len(self.without_positives)} of {len(self.classes)} classes have no positives "
                f"and are left out of mAP, CP and CR: {names}.",
            ]
        return "\n".join(lines) + "\n"

    def brief(self, beside: str = "") -> str:
        """mAP in one line, followed by ``beside``; and a second line if no true label is predicted."""
        counted, every = len(self.classes) - len(self.without_positives), len(self.classes)
        over = f"{every}" if counted == every else f"{counted} of {every}"
        text = f"mAP {percent(self.mean_ap)} % over {over} classes in {self.images} images{beside}"
        if self.all_labels["OP"] or math.isnan(self.mean_ap):
            return text
        return (
            f"{text}\nno true label has a probability above {self.threshold:g}, as after few epochs; mAP measures"
            " their order, which counts already: predict --top 3, or thresholds of evaluate --thresholds tune"
        )


_LABELS = {"ap_definition": "AP definition", "difficult": "difficult rule", "top_k": "k of top-k"}


def evaluate(
    scores: Tensor,
    targets: Labels,
    class_names: Sequence[str],
    ap_definition: str = "voc2010",
    difficult: str | None = None,
    *,
    top_k: int = 3,
    threshold: float = 0.5,
    mode: str | None = None,
    backend: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    details: Mapping[str, str] | None = None,
    ids: Sequence[str] | None = None,
) -> Report:
    """Evaluate the logits of a whole split.

    Args:
        scores: [M, C] logits, floating point.
        targets: [M, C]; bool, {0, 1} or {1, 0, -1} (:mod:`ssgrl_fast.labels.matrix`).
        class_names: C names.
        ap_definition: ``"voc2010"``, ``"voc2007"`` or ``"plain"`` (:func:`~ssgrl_fast.metrics.average_precision`).
        difficult: ``"ignore"``, ``"positive"``, ``"negative"``; None: 0 means difficult, and is ignored, only when a
            -1 occurs.
        top_k: k of the top-k setting (3 in the paper).
        threshold: probability above which a label is predicted.
        mode, backend, device, dtype: how the scores were computed, for the report.
        details: further text by name, for the report.
        ids: M names of the images in the order of the rows; None: the report has no checksums of images and labels,
            and a report over other images cannot be recognised.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes, NaN scores, unknown options, not C class names or not M ids.
    """
    values, codes = check_pair("evaluate", scores, targets)
    names = check_class_names("evaluate", class_names, values.shape[1])
    sets = split_labels("evaluate", "targets", codes, difficult)
    seen = (UNSTATED, UNSTATED) if ids is None else evaluated_on(ids, names, sets)
    ap = average_precision(values, codes, definition=ap_definition, difficult=difficult)
    every = count_predictions(values, codes, threshold=threshold)
    highest = count_predictions(values, codes, top_k=top_k, threshold=threshold)
    facts = {"mode": mode, "backend": backend, "device": device, "dtype": dtype}
    stated = {name: value or UNSTATED for name, value in facts.items()}
    return report_of(
        names,
        ap,
        (every, highest),
        len(values),
        difficult,
        ap_definition=ap_definition,
        top_k=top_k,
        threshold=threshold,
        details={str(key): str(value) for key, value in (details or {}).items()},
        images_sha256=seen[0],
        labels_sha256=seen[1],
        **stated,
    )


def report_of(
    class_names: list[str],
    ap: Tensor,
    counts: tuple[PredictionCounts, PredictionCounts],
    images: int,
    difficult: str | None,
    **described: Any,
) -> Report:
    """The report that counts make; arguments are checked by :func:`evaluate`.

    Args:
        class_names: C names.
        ap: float64 [C].
        counts: of all labels above the threshold, and of those among the k highest.
        images: M.
        difficult: the rule, or None.
        described: further attributes of :class:`Report`.
    """
    every, highest = counts
    correct, predicted, true = (count.to(torch.float64) for count in precision_recall_by_class(every, difficult))
    precision = torch.where(true > 0, correct / predicted.clamp(min=1), math.nan)
    recall = correct / true
    columns = (ap, precision, recall, f1(precision, recall))
    labelled, positives = every.labelled, true.to(torch.int64)
    plain = difficult is None and not int(labelled[2].sum())  # 0 means absent
    negatives = labelled[1:].sum(0) if plain or difficult == "negative" else labelled[2]
    numbers = (positives, negatives, images - positives - negatives)
    rows = [
        ClassRow(name, *measures, *amounts)
        for name, measures, amounts in zip(
            class_names, torch.stack(columns).T.tolist(), torch.stack(numbers).T.tolist(), strict=True
        )
    ]
    return Report(
        mean_ap=ap[~ap.isnan()].mean().item(),
        all_labels=_numbers(precision_recall_f1(every, difficult)),
        top_k_labels=_numbers(precision_recall_f1(highest, difficult)),
        classes=rows,
        without_positives=[row.name for row in rows if not row.positives],
        images=images,
        difficult=difficult or "ignore",
        difficult_entries=0 if plain else int(labelled[1].sum()),
        unknown_entries=images * len(class_names) - int(labelled.sum()),
        **described,
    )


def evaluated_on(ids: Sequence[str], class_names: Sequence[str], sets: LabelSets) -> tuple[str, str]:
    """SHA-256 of the images' names, and of their labels; neither depends on the order of images or classes.

    Args:
        ids: M names.
        class_names: C names.
        sets: [M, C]; difficult entries are coded 0 whatever the rule.

    Returns:
        Of the sorted names as JSON text, and of the labels as int8 (1, 0 difficult, -1, -2 unknown), rows and columns
        in the order of the sorted names of images and classes.

    Raises:
        ValueError: not M names.
    """
    if len(ids) != len(sets.present):
        raise ValueError(f"evaluate: ids must be {len(sets.present)} names, one per image, got {len(ids)}")
    codes = torch.where(sets.present, PRESENT, ABSENT)
    codes = codes.masked_fill(sets.difficult, DIFFICULT).masked_fill(sets.unknown, UNKNOWN).to("cpu", torch.int8)
    return digests(ids, class_names, codes.numpy().__getitem__)


def digests(
    ids: Sequence[str], class_names: Sequence[str], codes: Callable[[list[int]], np.ndarray]
) -> tuple[str, str]:
    """:func:`evaluated_on` for labels that are given as ``codes(rows)``, int8 [len(rows), C]; images of equal names are
    in the order of their labels."""
    columns = sorted(range(len(class_names)), key=class_names.__getitem__)
    rows = sorted(range(len(ids)), key=ids.__getitem__)
    if len(set(ids)) < len(ids):
        rows.sort(key=lambda row: (ids[row], codes([row])[:, columns].tobytes()))
    listed = json.dumps([ids[row] for row in rows], ensure_ascii=False).encode(errors="backslashreplace")
    labels = hashlib.sha256()
    for start in range(0, len(rows), _DIGEST_ROWS):
        labels.update(codes(rows[start : start + _DIGEST_ROWS])[:, columns].tobytes())
    return hashlib.sha256(listed).hexdigest(), labels.hexdigest()


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in values.items()}


def percent(value: float) -> str:
    """A fraction as per cent with two decimals; "-" where it is undefined."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def defined(value: Any) -> Any:
    """NaN as None, at any depth: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [defined(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _undefined(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in values.items()}
