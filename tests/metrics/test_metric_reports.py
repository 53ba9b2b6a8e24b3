"""The torchmetrics classes, in batches and in two processes, and the evaluation report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from metric_loops import RULES, loop_prf, run_process, sample

from ssgrl_fast import metrics

pytest.importorskip("torchmetrics", reason="ssgrl_fast.metrics.AveragePrecision needs torchmetrics (extra train)")


# ---- torchmetrics classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_batches_add_up(rule: str | None) -> None:
    scores, labels = sample(8, images=50)
    ap = metrics.AveragePrecision(6, "plain", difficult=rule)
    prf = metrics.PrecisionRecallF1(6, top_k=3, difficult=rule)
    for part in (slice(0, 20), slice(20, 20), slice(20, 21), slice(21, 50)):
        ap.update(scores[part], labels[part])
        prf.update(scores[part], labels[part])
    expected = metrics.average_precision(scores, labels, definition="plain", difficult=rule)
    assert torch.equal(ap.compute()["AP"], expected)
    assert ap.compute()["mAP"].item() == pytest.approx(expected.mean().item(), rel=1e-15)
    for name, value in loop_prf(scores, labels, 3, 0.5, rule).items():
        assert prf.compute()[name].item() == pytest.approx(value, rel=1e-12)
    ap.reset()
    prf.reset()
    ap.update(scores[:30], labels[:30])
    prf.update(scores[:30], labels[:30])
    assert torch.equal(
        ap.compute()["AP"], metrics.average_precision(scores[:30], labels[:30], definition="plain", difficult=rule)
    )
    assert int(prf.labelled.sum()) == 180


def test_class_without_positives_is_nan_and_out_of_the_mean() -> None:
    scores, labels = sample(9)
    labels[:, 2] = -1
    metric = metrics.AveragePrecision(6)
    metric.update(scores, labels)
    result = metric.compute()
    assert result["AP"].isnan().tolist() == [False, False, True, False, False, False]
    assert result["mAP"].item() == pytest.approx(np.nanmean(result["AP"].numpy()), rel=1e-15)


def test_only_empty_batches() -> None:
    ap, prf = metrics.AveragePrecision(3), metrics.PrecisionRecallF1(3)
    for metric in (ap, prf):
        metric.update(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.int8))
    assert ap.compute()["mAP"].isnan()
    assert ap.compute()["AP"].shape == (3,)
    assert all(value.isnan() for value in prf.compute().values())


def test_forward_gives_the_batch_and_keeps_the_whole() -> None:
    scores, labels = sample(10)
    metric = metrics.AveragePrecision(6)
    metric(scores[:40], labels[:40])
    last = metric(scores[40:], labels[40:])
    assert torch.equal(last["AP"], metrics.average_precision(scores[40:], labels[40:]))
    assert torch.equal(metric.compute()["AP"], metrics.average_precision(scores, labels))


@pytest.mark.parametrize("kind", ["AveragePrecision", "PrecisionRecallF1"])
def test_wrong_batches_are_refused_and_leave_no_trace(kind: str) -> None:
    metric = getattr(metrics, kind)(3)
    good, labels = torch.zeros(2, 3), torch.tensor([[1, -1, 1], [1, 1, -1]])
    metric.update(good, labels)
    before = {name: value.clone() for name, value in metric.compute().items()}
    broken = good.clone()
    broken[1, 2] = broken[0, 1] = math.nan
    for scores, targets, error, message in (
        (broken, labels, ValueError, "scores hold 2 NaN: image 0 class 1, image 1 class 2"),
        (good.int(), labels, TypeError, "scores must be a floating-point tensor.*torch.int32"),
        (good[0], labels[0], ValueError, r"scores must be \[M, C\].*\[3\]"),
        (good, labels[:1], ValueError, r"targets \[1, 3\] do not fit scores \[2, 3\]"),
        (good, labels * 2, ValueError, "targets must hold only 1, 0 and -1, got 2 at image 0, class 0"),
        (torch.zeros(2, 4), torch.zeros(2, 4), ValueError, "4 classes, expected 3"),
        ([[0.0]], labels, TypeError, "got list"),
    ):
        with pytest.raises(error, match=message):
            metric.update(scores, targets)
    metric._computed = None
    for name, value in metric.compute().items():
        assert torch.equal(value, before[name])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="definition must be one of 'voc2010', 'voc2007', 'plain', got 'voc2012'"):
        metrics.AveragePrecision(3, "voc2012")
    with pytest.raises(ValueError, match="difficult must be one of"):
        metrics.PrecisionRecallF1(3, difficult="skip")
    with pytest.raises(ValueError, match="num_classes must be an int of at least 1, got 0"):
        metrics.AveragePrecision(0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        metrics.PrecisionRecallF1(3, top_k=0)
    with pytest.raises(TypeError, match="top_k must be None or an int, got float"):
        metrics.PrecisionRecallF1(3, top_k=2.0)
    with pytest.raises(ValueError, match=r"threshold must be a probability between 0 and 1, got 1\.0"):
        metrics.PrecisionRecallF1(3, threshold=1.0)
    with pytest.raises(ValueError, match="definition must be one of"):
        metrics.evaluate(torch.zeros(1, 1), torch.ones(1, 1), ["a"], "coco")


def test_package_needs_torchmetrics_only_for_the_classes() -> None:
    code = (
        "import sys; sys.modules['torchmetrics'] = None\n"
        "import torch; from ssgrl_fast import metrics\n"
        "print(metrics.evaluate(torch.zeros(1, 1), torch.ones(1, 1), ['a']).mean_ap)\n"
        "try: metrics.AveragePrecision\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    value, sentence = done.stdout.strip().split("\n")
    assert value == "1.0"
    assert sentence == "ssgrl_fast.metrics.AveragePrecision needs torchmetrics: pip install 'ssgrl_fast[train]'"


@pytest.mark.thorough
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    torch.multiprocessing.spawn(run_process, (str(tmp_path),), nprocs=2)
    scores, labels = sample(11, images=30)
    expected_ap = metrics.average_precision(scores, labels)
    expected = loop_prf(scores, labels, 3, 0.5, None)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(result["AP"], expected_ap)
        assert torch.equal(result["idle"], expected_ap)
        assert result["images"] == 30
        for name, value in expected.items():
            assert result[name].item() == pytest.approx(value, rel=1e-12)


# ---- reports ---------------------------------------------------------------------------------------------------------

NAMES = ["ant", "bee", "cat", "dog", "eel", "f|y"]


def make_report(**options: object) -> metrics.Report:
    scores, labels = sample(12)
    labels[:, 4] = -1
    labels[:3, 4] = 0
    described = {"mode": "paper", "backend": "cpu", "device": "cpu", "dtype": "float32", "details": {"seed": "0"}}
    return metrics.evaluate(scores, labels, NAMES, **{**described, **options})


def test_report_holds_what_the_functions_say() -> None:
    report = make_report(ap_definition="voc2007", difficult="negative", top_k=2)
    scores, labels = sample(12)
    labels[:, 4] = -1
    labels[:3, 4] = 0
    ap = metrics.average_precision(scores, labels, definition="voc2007", difficult="negative")
    np.testing.assert_array_equal(report.ap, ap.numpy())
    assert report.mean_ap == pytest.approx(np.nanmean(ap.numpy()), rel=1e-15)
    assert report.class_names == NAMES
    assert report.without_positives == ["eel"]
    assert report.images == 80
    assert report.difficult == "negative"
    assert report.difficult_entries == int((labels == 0).sum())
    for name, value in loop_prf(scores, labels, None, 0.5, "negative").items():
        assert report.all_labels[name] == pytest.approx(value, rel=1e-12)
        assert report.summary()[name] == report.all_labels[name]
    for name, value in loop_prf(scores, labels, 2, 0.5, "negative").items():
        assert report.top_k_labels[name] == pytest.approx(value, rel=1e-12)
        assert report.summary()[f"{name}_top2"] == report.top_k_labels[name]
    assert report.summary()["mAP"] == report.mean_ap
    rated = [row for row in report.classes if row.positives]
    assert np.mean([row.precision for row in rated]) == pytest.approx(report.all_labels["CP"], rel=1e-12)
    assert np.mean([row.recall for row in rated]) == pytest.approx(report.all_labels["CR"], rel=1e-12)
    for c, row in enumerate(report.classes):
        assert (row.positives, row.ignored) == (int((labels[:, c] == 1).sum()), 0)
        assert row.positives + row.negatives == 80


@pytest.mark.parametrize(("rule", "named"), [(None, "ignore"), ("ignore", "ignore"), ("positive", "positive")])
def test_report_counts_by_the_rule(rule: str | None, named: str) -> None:
    _, labels = sample(12)
    report = make_report(difficult=rule)
    assert report.difficult == named
    first = report.classes[0]
    present, unclear, absent = ((labels[:, 0] == code).sum().item() for code in (1, 0, -1))
    expected = (present, absent, unclear) if named == "ignore" else (present + unclear, absent, 0)
    assert (first.positives, first.negatives, first.ignored) == expected


def test_report_survives_json(tmp_path: Path) -> None:
    report = make_report()
    path = tmp_path / "new" / "report.json"
    text = report.to_json(path)
    assert path.read_text() == text
    plain = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert plain["ap_definition"] == "voc2010"
    assert plain["difficult"] == "ignore"
    assert (plain["mode"], plain["backend"], plain["device"], plain["dtype"]) == ("paper", "cpu", "cpu", "float32")
    assert plain["classes"][4]["ap"] is None
    again = metrics.Report.from_json(path)
    assert math.isnan(again.classes[4].ap)
    assert again.to_json() == text
    assert again.ap[0] == report.ap[0]


def test_foreign_reports_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.json is no file"):
        metrics.Report.from_json(tmp_path / "absent.json")
    for content in ("[]", "{}", "{", '{"format": "ssgrl_fast.report"}', '{"format": "ssgrl_fast.report", "unit": 1}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=r"other\.json is no report"):
            metrics.Report.from_json(tmp_path / "other.json")


def test_markdown_names_how_it_was_measured() -> None:
    report = make_report(difficult="positive")
    text = report.to_markdown()
    for line in (
        "| mode | paper |",
        "| AP definition | voc2010 |",
        "| difficult rule | positive |",
        "| backend | cpu |",
        "| device | cpu |",
        "| dtype | float32 |",
        "| seed | 0 |",
        "| images | 80 |",
    ):
        assert line in text
    assert f"| all labels above 0.5 | {100 * report.mean_ap:.2f} | {100 * report.all_labels['CP']:.2f} |" in text
    assert f"| top 3, above 0.5 |  | {100 * report.top_k_labels['CP']:.2f} |" in text
    assert f"| f\\|y | {100 * report.ap[5]:.2f} |" in text
    ignoring = make_report(backend=None)
    assert "| backend | not stated |" in ignoring.to_markdown()
    assert "1 of 6 classes have no positives and are left out of mAP, CP and CR: eel." in ignoring.to_markdown()
    assert "| eel | - | - | - | - | 0 | 77 | 3 |" in ignoring.to_markdown()


def test_evaluate_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 class_names for 3 classes"):
        metrics.evaluate(torch.zeros(1, 3), torch.ones(1, 3), ["a", "b"])
    with pytest.raises(ValueError, match="evaluate: scores hold 1 NaN: image 0 class 0"):
        metrics.evaluate(torch.tensor([[math.nan]]), torch.ones(1, 1), ["a"])


def test_in_brief_a_report_says_over_how_many_classes_and_that_no_true_label_is_found():
    labels = torch.tensor([[1, -1, -1], [-1, 1, -1]])
    low = metrics.evaluate(torch.tensor([[-1.0, -2, -3], [-2, -1, -3]]), labels, ["a", "b", "c"])
    assert low.brief("; pooling 7 %").startswith(
        "mAP 100.00 % over 2 of 3 classes in 2 images; pooling 7 %\nno true label"
    )
    high = metrics.evaluate(torch.tensor([[1.0, -2], [-2, -1]]), labels[:, :2], ["a", "b"])
    assert high.brief() == "mAP 100.00 % over 2 classes in 2 images"
