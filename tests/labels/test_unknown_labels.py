"""Unknown labels (code -2) count in no loss, no metric and no graph, under any rule for difficult objects: each against
a count by hand or against the same data without the unknown entries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssgrl_fast.labels import graph
from ssgrl_fast.labels.matrix import split_labels
from ssgrl_fast.metrics import average_precision, count_predictions, evaluate, precision_recall_f1

RULES = ["ignore", "positive", "negative"]


def matrix(images: int = 60, classes: int = 5, seed: int = 0) -> Tensor:
    """Codes 1, 0, -1, -2 in equal parts, int8 [M, C]."""
    return torch.randint(-2, 2, (images, classes), generator=torch.Generator().manual_seed(seed)).to(torch.int8)


def scores(labels: Tensor) -> Tensor:
    return torch.randn(labels.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
def test_sets(rule: str) -> None:
    labels = matrix()
    sets = split_labels("test", "labels", labels, rule)
    assert torch.equal(sets.unknown, labels == -2)
    assert torch.equal(sets.known, (labels != -2) & ((labels != 0) | (rule != "ignore")))
    assert torch.equal(sets.present, (labels == 1) | ((labels == 0) & (rule == "positive")))
    assert torch.equal(
        split_labels("test", "labels", torch.tensor([[1, 0, -2]]), None).known,
        labels[:1, :3] * 0 + torch.tensor([1, 1, 0]) > 0,
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_graph_counts_images_in_which_both_are_known(rule: str) -> None:
    labels = matrix()
    present = [[code == 1 or (code == 0 and rule == "positive") for code in row] for row in labels.tolist()]
    known = [[code != -2 for code in row] for row in labels.tolist()]
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for given in range(5):
        for other in range(5):
            rows = [row for row in range(len(labels)) if present[row][given] and known[row][other]]
            if given != other:
                expected[given, other] = sum(present[row][other] for row in rows) / len(rows)
    torch.testing.assert_close(graph.cooccurrence(labels, difficult=rule), expected.float(), rtol=0, atol=0)


def test_without_unknown_entries_the_graph_is_the_same() -> None:
    labels = matrix().clamp(min=-1)
    pairs, totals = graph.counts(labels)
    assert torch.equal(graph.cooccurrence(labels), graph.conditional_probability(pairs, totals).float())


def test_pairs_of_which_nothing_is_known_are_named() -> None:
    labels = torch.tensor([[1, -2, 1], [-2, 1, -1], [1, -2, -1]])
    with pytest.warns(graph.PairsNeverKnown, match="for 3 pairs of classes"):
        adjacency = graph.cooccurrence(labels, diagonal=1.0)
    assert adjacency.tolist() == [[1, 0, 0.5], [0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("definition", ["voc2010", "voc2007", "plain"])
def test_average_precision_is_that_of_the_known_images(rule: str, definition: str) -> None:
    labels = matrix()
    logits = scores(labels)
    measured = average_precision(logits, labels, definition=definition, difficult=rule)
    for column in range(5):
        rows = labels[:, column] != -2
        alone = average_precision(
            logits[rows, column, None], labels[rows, column, None], definition=definition, difficult=rule
        )
        torch.testing.assert_close(measured[column], alone[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_precision_and_recall_are_counted_by_hand(rule: str) -> None:
    labels = matrix()
    logits = scores(labels)
    counted = (labels != -2) & ((labels != 0) | (rule != "ignore"))
    true = (labels == 1) | ((labels == 0) & (rule == "positive"))
    predicted = logits > 0
    values = precision_recall_f1(count_predictions(logits, labels), rule)
    hits = (predicted & true & counted).sum()
    assert values["OP"] == hits.double() / (predicted & counted).sum()
    assert values["OR"] == hits.double() / (true & counted).sum()
    report = evaluate(logits, labels, list("abcde"), difficult=rule, ids=[str(row) for row in range(len(labels))])
    assert report.unknown_entries == int((labels == -2).sum()) and "unknown entries, left out" in report.to_markdown()
    assert report.to_dict()["unknown_entries"] == report.unknown_entries
    assert "unknown_entries" not in evaluate(logits, labels.clamp(min=-1), list("abcde")).to_dict()
    for column, row in enumerate(report.classes):
        assert row.positives + row.negatives + row.ignored == len(labels)
        assert row.ignored == int((~counted[:, column]).sum())
    other = labels.clone()
    other[other == -2] = -1
    assert report.labels_sha256 != report.naming([str(row) for row in range(len(labels))], other).labels_sha256


@pytest.mark.parametrize("rule", RULES)
def test_losses_leave_unknown_entries_out(rule: str) -> None:
    losses = pytest.importorskip("ssgrl_fast.training.losses", reason="needs Lightning (extra train)")
    labels = matrix()
    logits = scores(labels).requires_grad_()
    total, mean = 0.0, 0
    for row, codes in enumerate(labels.tolist()):
        for column, code in enumerate(codes):
            if code == -2 or (code == 0 and rule == "ignore"):
                continue
            sign = 1 if code == 1 or (code == 0 and rule == "positive") else -1
            total += math.log1p(math.exp(-sign * logits[row, column].item()))
            mean += 1
    loss = losses.multilabel_loss(logits, labels, difficult=rule)
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert losses.multilabel_loss(logits, labels, difficult=rule, reduction="mean").item() == pytest.approx(
        total / mean
    )
    loss.backward()
    assert logits.grad is not None and bool((logits.grad[labels == -2] == 0).all())
    exact = losses.asymmetric_loss(logits, labels, gamma_negative=0, margin=0, difficult=rule)
    assert exact.item() == pytest.approx(total, rel=1e-12)
