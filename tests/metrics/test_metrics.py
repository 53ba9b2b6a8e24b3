"""Average precision by its three definitions and eq. 13, against scikit-learn, hand calculation and counting loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_loops import RULES, loop_ap, loop_prf, sample

from ssgrl_fast import metrics

# ---- average precision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_average_precision_equals_the_loops(definition: str, levels: int | None, rule: str | None) -> None:
    scores, labels = sample(1, levels=levels)
    ap = metrics.average_precision(scores, labels, definition=definition, difficult=rule)
    assert ap.dtype == torch.float64
    expected = [loop_ap(scores[:, c].tolist(), labels[:, c].tolist(), definition, rule) for c in range(6)]
    np.testing.assert_allclose(ap.numpy(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("levels", [None, 2])
def test_plain_definition_is_scikit_learns(levels: int | None) -> None:
    sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn (extra train)")
    scores, labels = sample(2, levels=levels)
    ap = metrics.average_precision(scores, labels, definition="plain", difficult="negative")
    for c in range(6):
        expected = sklearn_metrics.average_precision_score(labels[:, c] == 1, scores[:, c])
        assert ap[c].item() == pytest.approx(expected, rel=1e-12)


def test_average_precision_by_hand() -> None:
    # By falling score: + - - + +, so precisions 1, 1/2, 1/3, 2/4, 3/5 and recalls 1/3, 1/3, 1/3, 2/3, 1.
    scores = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]])
    labels = torch.tensor([[1], [-1], [-1], [1], [1]])
    by_hand = {
        "plain": (1 + 1 / 2 + 3 / 5) / 3,
        "voc2010": (1 + 3 / 5 + 3 / 5) / 3,
        "voc2007": (4 * 1 + 7 * 3 / 5) / 11,  # recalls 0 to 0.3 reach the first positive
    }
    for definition, expected in by_hand.items():
        assert metrics.average_precision(scores, labels, definition=definition).item() == pytest.approx(
            expected, rel=1e-14
        )
    # The third image difficult: ignored it gives + - + +, as a positive + - + + +, as a negative the same as above.
    labels[2] = 0
    for rule, expected in (
        ("ignore", (1 + 2 / 3 + 3 / 4) / 3),
        ("positive", (1 + 2 / 3 + 3 / 4 + 4 / 5) / 4),
        ("negative", (1 + 1 / 2 + 3 / 5) / 3),
    ):
        ap = metrics.average_precision(scores, labels, definition="plain", difficult=rule)
        assert ap.item() == pytest.approx(expected, rel=1e-14)


def test_eleven_points_are_compared_as_whole_numbers() -> None:
    # Ten positives, the first three ranked first: recall 3/10 must reach the point 0.3, which 3 * 0.1 > 0.3 would miss.
    labels = torch.tensor([[1]] * 3 + [[-1]] * 70 + [[1]] * 7)
    scores = -torch.arange(80.0)[:, None]
    expected = (4 * 1 + 7 * 10 / 80) / 11
    ap = metrics.average_precision(scores, labels, definition="voc2007")
    assert ap.item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("definition", metrics.AP_DEFINITIONS)
def test_equal_scores_do_not_depend_on_the_order(definition: str) -> None:
    scores, labels = sample(3, levels=1)
    expected = metrics.average_precision(scores, labels, definition=definition)
    for seed in range(5):
        order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(metrics.average_precision(scores[order], labels[order], definition=definition), expected)
    constant = metrics.average_precision(torch.zeros(80, 6), labels, definition=definition, difficult="negative")
    np.testing.assert_allclose(constant.numpy(), (labels == 1).double().mean(0).numpy(), rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([1, 0, -1])), min_size=1, max_size=12),
    definition=st.sampled_from(metrics.AP_DEFINITIONS),
    rule=st.sampled_from(["ignore", "positive", "negative"]),
)
def test_any_short_list_equals_the_loops(entries: list[tuple[int, int]], definition: str, rule: str) -> None:
    scores = torch.tensor([[float(score)] for score, _ in entries])
    labels = torch.tensor([[label] for _, label in entries])
    ap = metrics.average_precision(scores, labels, definition=definition, difficult=rule)
    expected = loop_ap(scores.flatten().tolist(), labels.flatten().tolist(), definition, rule)
    np.testing.assert_allclose(ap.numpy(), [expected], rtol=1e-13)


def test_blocks_of_classes_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = sample(4, classes=7)
    expected = metrics.average_precision(scores, labels)
    monkeypatch.setattr("ssgrl_fast.metrics.functional._BLOCK_ENTRIES", 160)
    assert torch.equal(metrics.average_precision(scores, labels), expected)


def test_degenerate_classes() -> None:
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -1, 0, -1]] * 4 + [[1, -1, 0, 1]])
    ap = metrics.average_precision(scores, labels)
    assert ap[0] == 1.0  # only positives
    assert ap[1].isnan()  # none
    assert ap[2].isnan()  # only ignored ones
    assert metrics.average_precision(scores, labels, difficult="positive")[2] == 1.0
    assert metrics.average_precision(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int8)).isnan().all()
    infinite = torch.tensor([[math.inf], [-math.inf], [0.0]])
    assert metrics.average_precision(infinite, torch.tensor([[1], [-1], [1]])).item() == 1.0


def test_bool_and_zero_one_labels_are_present_and_absent() -> None:
    scores, labels = sample(5, difficult=False)
    expected = metrics.average_precision(scores, labels)
    assert torch.equal(metrics.average_precision(scores, labels == 1), expected)
    assert torch.equal(metrics.average_precision(scores, (labels == 1).int()), expected)
    assert torch.equal(metrics.average_precision(scores, (labels == 1).numpy()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_of_scores(dtype: torch.dtype) -> None:
    scores, labels = sample(6)
    reduced = scores.to(dtype)
    expected = metrics.average_precision(reduced.double(), labels)
    assert torch.equal(metrics.average_precision(reduced, labels), expected)


# ---- precision, recall, F1 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("top_k", "threshold"), [(None, 0.5), (3, 0.5), (2, 0.3), (1, 0.7), (9, 0.5), (None, 0.9)])
def test_precision_recall_f1_equals_the_loops(top_k: int | None, threshold: float, rule: str | None) -> None:
    scores, labels = sample(7, levels=3 if threshold == 0.5 else None)
    counts = metrics.count_predictions(scores, labels, top_k=top_k, threshold=threshold)
    values = metrics.precision_recall_f1(counts, rule)
    expected = loop_prf(scores, labels, top_k, threshold, rule)
    assert list(values) == list(metrics.PRF_NAMES) == list(expected)
    for name, value in values.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-12), name


def test_precision_recall_f1_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, -1.0], [3.0, -1.0, -2.0]])
    labels = torch.tensor([[1, -1, 1], [-1, -1, -1]])
    values = metrics.precision_recall_f1(metrics.count_predictions(scores, labels))
    # N_c = 1 0 0, N_p = 2 1 0, N_g = 1 0 1: the second class has no positives and is left out of CP and CR.
    by_hand = {"CP": 0.25, "CR": 0.5, "CF1": 1 / 3, "OP": 1 / 3, "OR": 0.5, "OF1": 0.4}
    for name, expected in by_hand.items():
        assert values[name].item() == pytest.approx(expected, rel=1e-14), name
    highest = metrics.precision_recall_f1(metrics.count_predictions(scores, labels, top_k=1))
    assert highest["OP"].item() == 0.5


def test_equal_logits_at_the_cut_go_to_the_lower_class() -> None:
    predicted = metrics.predict_labels(torch.ones(2, 300), top_k=3)
    assert predicted.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_threshold_is_exclusive_and_exact() -> None:
    scores = torch.tensor([[0.0, 1e-12, -1e-12]])
    assert metrics.predict_labels(scores).tolist() == [[False, True, False]]
    assert metrics.predict_labels(scores, top_k=1).tolist() == [[False, True, False]]


def test_ignored_entries_still_take_places_of_the_top() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    labels = torch.tensor([[0, 1, -1]])
    one = metrics.precision_recall_f1(metrics.count_predictions(scores, labels, top_k=1), "ignore")
    assert one["OR"].item() == 0.0
    two = metrics.precision_recall_f1(metrics.count_predictions(scores, labels, top_k=2), "ignore")
    assert (two["OP"].item(), two["OR"].item()) == (1.0, 1.0)


def test_nothing_predicted_and_nothing_true() -> None:
    labels = torch.tensor([[1, -1], [-1, -1]])
    silent = metrics.precision_recall_f1(metrics.count_predictions(torch.full((2, 2), -5.0), labels))
    assert [value.item() for value in silent.values()] == [0.0] * 6
    negative = torch.full((2, 2), -1)
    loud = metrics.precision_recall_f1(metrics.count_predictions(torch.ones(2, 2), negative))
    assert loud["OP"].item() == 0.0
    assert all(loud[name].isnan() for name in ("CP", "CR", "CF1", "OR", "OF1"))
    nothing = metrics.precision_recall_f1(metrics.count_predictions(-torch.ones(2, 2), negative))
    assert all(value.isnan() for value in nothing.values())


def test_no_rule_means_ignore_only_beside_minus_one() -> None:
    scores = torch.tensor([[2.0, 2.0]])
    beside = metrics.count_predictions(torch.cat([scores, scores]), torch.tensor([[1, 0], [1, -1]]))
    alone = metrics.count_predictions(scores, torch.tensor([[1, 0]]))
    assert metrics.precision_recall_f1(beside)["OP"].item() == 2 / 3
    assert metrics.precision_recall_f1(alone)["OP"].item() == 0.5
    assert metrics.precision_recall_f1(alone, "ignore")["OP"].item() == 1.0
