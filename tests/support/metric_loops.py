"""Oracles for the metrics: entry by entry, in exact fractions; and the worker of the two-process test."""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from ssgrl_fast import metrics

RULES = (None, "ignore", "positive", "negative")


def sample(seed: int, images: int = 80, classes: int = 6, levels: int | None = None, difficult: bool = True):
    """Random logits [M, C] (of few distinct values where levels is given) and labels int8 [M, C]."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    if levels is not None:
        scores = (scores * levels).round() / levels
    low = torch.randint(-1, 2, (images, classes), generator=generator).to(torch.int8)
    return scores, low if difficult else torch.where(low == 1, 1, -1).to(torch.int8)


def listed(scores: list[float], labels: list[int], rule: str | None) -> list[tuple[float, bool]]:
    """(score, is positive) of the images that count, by falling score."""
    rule = rule or "ignore"
    kept = [
        (score, label == 1 or (label == 0 and rule == "positive"))
        for score, label in zip(scores, labels, strict=True)
        if not (label == 0 and rule == "ignore")
    ]
    return sorted(kept, key=lambda pair: -pair[0])


def curve(ranked: list[tuple[float, bool]]) -> list[tuple[Fraction, Fraction]]:
    """(recall, precision) at every distinct score."""
    total = sum(positive for _, positive in ranked)
    points = []
    for score in sorted({score for score, _ in ranked}, reverse=True):
        taken = [positive for other, positive in ranked if other >= score]
        points.append((Fraction(sum(taken), total), Fraction(sum(taken), len(taken))))
    return points


def loop_ap(scores: list[float], labels: list[int], definition: str, rule: str | None) -> float:
    ranked = listed(scores, labels, rule)
    total = sum(positive for _, positive in ranked)
    if not total:
        return math.nan
    points = curve(ranked)
    if definition == "voc2007":
        best = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
        return float(sum(best) / 11)
    area, last = Fraction(0), Fraction(0)
    for place, (recall, precision) in enumerate(points):
        if definition == "voc2010":
            precision = max(p for _, p in points[place:])
        area += (recall - last) * precision
        last = recall
    return float(area)


def loop_prf(scores: torch.Tensor, labels: torch.Tensor, top_k: int | None, threshold: float, rule: str | None):
    """Eq. 13 by counting one entry after the other."""
    rule = rule or "ignore"
    images, classes = scores.shape
    correct, predicted, true = ([0] * classes for _ in range(3))
    for image in range(images):
        row = [score.item() for score in scores[image]]
        by_rank = sorted(range(classes), key=lambda c: (-row[c], c))
        allowed = set(by_rank if top_k is None else by_rank[:top_k])
        for c in range(classes):
            label = int(labels[image, c])
            if label == 0 and rule == "ignore":
                continue
            positive = label == 1 or (label == 0 and rule == "positive")
            guess = c in allowed and 1 / (1 + math.exp(-row[c])) > threshold
            correct[c] += guess and positive
            predicted[c] += guess
            true[c] += positive
    rated = [c for c in range(classes) if true[c]]
    cp = sum(correct[c] / predicted[c] if predicted[c] else 0 for c in rated) / len(rated)
    cr = sum(correct[c] / true[c] for c in rated) / len(rated)
    op, overall = sum(correct) / sum(predicted), sum(correct) / sum(true)
    return {
        "CP": cp,
        "CR": cr,
        "CF1": 2 * cp * cr / (cp + cr),
        "OP": op,
        "OR": overall,
        "OF1": 2 * op * overall / (op + overall),
    }


def run_process(rank: int, folder: str) -> None:
    """One of two processes; the second sees fewer images in other batches, the first of the batches is empty."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    scores, labels = sample(11, images=30)
    parts = [slice(0, 13), slice(13, 22)] if rank == 0 else [slice(22, 22), slice(22, 30)]
    ap, idle = metrics.AveragePrecision(6), metrics.AveragePrecision(6)
    prf = metrics.PrecisionRecallF1(6, top_k=3)
    for part in parts:
        ap.update(scores[part], labels[part])
        prf.update(scores[part], labels[part])
    if rank == 0:  # the other process has no image at all
        idle.update(scores, labels)
    report = ap.report(list("abcdef"))
    result = {
        "AP": ap.compute()["AP"],
        "idle": idle.compute()["AP"],
        **prf.compute(),
        "images": torch.tensor(report.images),
    }
    torch.save(result, f"{folder}/{rank}.pt")
    assert len(torch.cat(ap.scores)) == (22 if rank == 0 else 8), "the local state must come back after the gathering"
    torch.distributed.destroy_process_group()
