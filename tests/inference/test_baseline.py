"""A baseline over other images, labels or classes is refused, by reports and verbs, before anything is done."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_sets import NAMES, make_coco
from torch import Tensor

from ssgrl_fast import cli, metrics
from ssgrl_fast.metrics import Report
from ssgrl_fast.models import GlobalPoolingClassifier, build_backbone

IDS = ["c.jpg", "a.jpg", "d.jpg", "b.jpg"]
LABELS = torch.tensor([[1, -1, 0], [-1, 1, 1], [1, 1, -1], [-1, -1, 1]], dtype=torch.int8)


def report(labels: Tensor = LABELS, ids: list[str] | None = IDS, names: list[str] = NAMES, **options: Any) -> Report:
    scores = torch.randn(labels.shape, generator=torch.Generator().manual_seed(3))
    return metrics.evaluate(scores, labels, names, ids=ids, **options)


def test_digests_are_of_images_and_labels_in_the_order_of_their_names() -> None:
    found = report()
    rows, columns = np.argsort(IDS), np.argsort(NAMES)
    assert found.images_sha256 == hashlib.sha256(json.dumps(sorted(IDS)).encode()).hexdigest()
    assert found.labels_sha256 == hashlib.sha256(LABELS.numpy()[rows][:, columns].tobytes()).hexdigest()
    turned = report(LABELS.flip(0).flip(1), IDS[::-1], NAMES[::-1])
    for same in (turned, report(difficult="positive"), report(difficult="negative"), report(ap_definition="plain")):
        assert (same.images_sha256, same.labels_sha256) == (found.images_sha256, found.labels_sha256)
    assert report(LABELS == 1).labels_sha256 != found.labels_sha256  # of which nothing is difficult
    assert report((LABELS == 1).int()).labels_sha256 == report(LABELS == 1).labels_sha256
    unnamed = report(ids=None)
    for rule in ("ignore", "positive", "negative"):
        named = report(ids=None, difficult=rule).naming(IDS[::-1], LABELS.flip(0))
        assert (named.images_sha256, named.labels_sha256) == (found.images_sha256, found.labels_sha256)
    assert (unnamed.images_sha256, unnamed.labels_sha256) == ("not stated", "not stated")
    with pytest.raises(ValueError, match="ids must be 4 names, one per image, got 3"):
        report(ids=IDS[:3])
    twice = report(torch.cat([LABELS, LABELS.flip(0)]), [*IDS, *IDS])
    assert twice.labels_sha256 == report(torch.cat([LABELS.flip(0), LABELS]), [*IDS, *IDS]).labels_sha256


def swapped() -> Tensor:
    """Two images with each other's labels: every count stays."""
    return LABELS[[1, 0, 2, 3]]


def negated() -> Tensor:
    changed = LABELS.clone()
    changed[0, 0] = -1
    return changed


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "images": (
        {"ids": [*IDS[:3], "e.jpg"]},
        r"the rival is over other images than ours \(SHA-256 .*cannot be compared",
    ),
    "labels": ({"labels": swapped()}, "the rival is over other labels of the same images than ours"),
    "number": (
        {"labels": LABELS[:3], "ids": IDS[:3]},
        "ours is over 4 images, the rival over 3: AP over different images",
    ),
    "classes": ({"names": ["boat", "bird", "dog"]}, "different classes: chair only in ours, dog only in the rival"),
    "counts": (
        {"labels": negated(), "ids": None},
        "ours has 2 positives of class 'boat', the rival 1: AP over different",
    ),
    "rule": ({"difficult": "negative"}, "ours has difficult 'ignore', the rival 'negative'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reports_that_do_not_compare_are_refused_with_the_reason(case: str) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        metrics.baseline_ap(report(), report(**options), names=("ours", "the rival"))
    with pytest.raises(ValueError):
        metrics.class_table(report(), report(**options))


def test_a_report_of_before_that_names_no_images_is_held_to_its_counts(tmp_path: Path) -> None:
    content = json.loads(report().to_json())
    del content["images_sha256"], content["labels_sha256"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    old = Report.from_json(tmp_path / "old.json")
    assert old.images_sha256 == "not stated"
    assert metrics.baseline_ap(report(), old) == report().ap
    with pytest.raises(ValueError, match="AP over different images or labels cannot be compared"):
        metrics.baseline_ap(report(negated()), old)


# ---- the verbs -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def plain_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pytest's own arguments are none of ours."""
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])


def evaluate(place: Path, output: str, *more: str, bundle: str = "bundle") -> int:
    data = ["--data.kind=coco", f"--data.root={place / 'set'}", "--no-progress", "--attention=0"]
    return cli.main(["evaluate", f"--model={place / bundle}", f"--output={place / output}", *data, *more])


def test_evaluate_and_plot_ap_refuse_a_baseline_over_other_images_or_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning", reason="the training extra is not installed")
    pytest.importorskip("torchvision", reason="the training extra is not installed")
    make_coco(tmp_path / "set", ("train", "val"))
    torch.manual_seed(1)
    model = GlobalPoolingClassifier(build_backbone("small-cnn", width=2), 3, class_names=NAMES)
    model.preprocessing = {"image_size": 24, "resize": 24}
    model.save_pretrained(tmp_path / "bundle")
    model.class_names = ["boat", "bird", "stool"]
    model.save_pretrained(tmp_path / "stool")
    assert evaluate(tmp_path, "val") == 0
    same = f"--baseline={tmp_path / 'val' / 'report.json'}"
    assert evaluate(tmp_path, "again", same) == 0
    assert "Every class beside the baseline" in (tmp_path / "again" / "report.md").read_text()
    assert evaluate(tmp_path, "train", "--data.test_split=train") == 0
    chart = ["plot-ap", str(tmp_path / "train" / "report.json"), "--out", str(tmp_path / "ap.png")]
    assert cli.main([*chart, "--baseline", str(tmp_path / "val" / "report.json")]) == 1
    assert "report.json is over 20 images" in capsys.readouterr().err and not (tmp_path / "ap.png").exists()

    path = tmp_path / "set" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for entry in content["annotations"]:  # images 1 and 2 change places: every count stays
        entry["image_id"] = {1: 2, 2: 1}.get(entry["image_id"], entry["image_id"])
    path.write_text(json.dumps(content))

    def no_scoring(*_: object, **__: object) -> None:
        raise AssertionError("images were scored")

    monkeypatch.setattr("ssgrl_fast.inference.evaluation_report.score_images", no_scoring)
    cases = {
        "is over other labels of the same images than this evaluation": [same],
        "this evaluation is over 20 images": [same, "--data.test_split=train"],
        "has ap_definition 'plain'": [same, "--ap-definition=plain"],
        "has other classes than the data": [f"--baseline={tmp_path / 'stool'}"],
    }
    for sentence, more in cases.items():
        capsys.readouterr()
        assert evaluate(tmp_path, "refused", *more) == 1
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    assert evaluate(tmp_path, "refused", f"--baseline={tmp_path / 'stool' / 'config.json'}") == 1
    assert "is no report of ssgrl_fast" in capsys.readouterr().err
