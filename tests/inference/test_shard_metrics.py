"""Metrics from shards are those of the whole matrices, and take little memory at Open Images' size."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("pyarrow", reason="the training extra is not installed")
from ssgrl_fast import cli
from ssgrl_fast.inference import shard_metrics
from ssgrl_fast.inference.predict import Scored
from ssgrl_fast.inference.shard_metrics import evaluate_shards
from ssgrl_fast.inference.shards import Shards
from ssgrl_fast.metrics import AP_DEFINITIONS, Report, average_precision, evaluate

IMAGES, CLASSES = 61, 7
NAMES = [f"class {number}" for number in range(CLASSES)]
IDS = [f"{number:02}" for number in range(IMAGES)]


def write(folder: Path, scores: Tensor, ids: list[str], names: list[str], rows: int = 9, **facts: Any) -> str:
    known = {"format": "ssgrl_fast.predictions", "model": "m", "top": None, "threshold": 0.5, "class_names": names}
    known |= {"image_size": 9, "resize": 9, "mode": "published", "backend": "cpu", "dtype": "float32", **facts}
    scored = (Scored(f"/photos/a/{name}.jpg", row) for name, row in zip(ids, scores, strict=True))
    assert sum(
        counts["images"] for counts in Shards(str(folder)).write_all(known, scored, batch_size=1, rows=rows)
    ) == len(ids)
    return str(folder)


def case(seed: int) -> tuple[Tensor, Tensor]:
    """Scores with ties, and labels of every code; no label of the last class is known."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(IMAGES, CLASSES, generator=draw).mul(4).round().div(4)
    labels = torch.randint(-2, 2, (IMAGES, CLASSES), generator=draw, dtype=torch.int8)
    labels[:, -1] = -2
    labels[0] = torch.tensor([1, -1, 0, 1, -1, 0, -2], dtype=torch.int8)
    return scores, labels


def write_rows(path: Path, labels: Tensor, header: str = "image,class,value") -> Path:
    rows = [(IDS[i], NAMES[c], int(labels[i, c])) for i, c in (labels != -2).nonzero().flip(0).tolist()]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def assert_same(found: Report, expected: Report) -> None:
    for name, value in expected.summary().items():
        assert math.isclose(found.summary()[name], value, rel_tol=0, abs_tol=1e-12), name
    for mine, theirs in zip(found.classes, expected.classes, strict=True):
        for part in ("ap", "precision", "recall", "f1"):
            one, other = getattr(mine, part), getattr(theirs, part)
            assert (math.isnan(one) and math.isnan(other)) or abs(one - other) <= 1e-12
        empty = dict.fromkeys(("ap", "precision", "recall", "f1"), 0.0)
        assert replace(mine, **empty) == replace(theirs, **empty)
    for part in ("without_positives", "images", "difficult", "difficult_entries", "unknown_entries"):
        assert getattr(found, part) == getattr(expected, part), part
    assert (found.images_sha256, found.labels_sha256) == (expected.images_sha256, expected.labels_sha256)


@pytest.mark.parametrize("entries", [1 << 25, 20], ids=["at once", "in groups"])
@pytest.mark.parametrize("difficult", [None, "ignore", "positive", "negative"])
@pytest.mark.parametrize("definition", AP_DEFINITIONS)
def test_every_metric_is_that_of_the_matrices(
    definition: str, difficult: str | None, entries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_metrics, "_ENTRIES", entries)
    monkeypatch.setattr(shard_metrics, "_BLOCK_VALUES", 4 * CLASSES)
    scores, labels = case(len(definition))
    shards = write(tmp_path / "shards", scores, IDS, NAMES)
    for codes in (labels, labels.abs() - 3 * (labels == -2)):  # -1 occurs; only 1, 0 and unknown
        codes = codes.to(torch.int8)
        found = evaluate_shards(
            shards, write_rows(tmp_path / "labels.csv", codes), ap_definition=definition, difficult=difficult
        )
        assert_same(found, evaluate(scores, codes, NAMES, definition, difficult, ids=IDS))


def test_tables_of_every_form_give_one_report(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    scores, labels = case(1)
    labels[labels == 0] = -1
    shards = write(tmp_path / "shards", scores, IDS, NAMES)
    expected = evaluate(scores, labels, NAMES, ids=IDS)
    table = pyarrow.csv.read_csv(
        write_rows(tmp_path / "rows.csv", labels),
        convert_options=pyarrow.csv.ConvertOptions(column_types={"image": pyarrow.string()}),
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert_same(evaluate_shards(shards, tmp_path / "rows.parquet"), expected)
    rows = [
        [f"/m/{name.split()[1]}", value]
        for name, value in zip(*(table[n].to_pylist() for n in ("class", "value")), strict=True)
    ]
    with open(tmp_path / "human.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "Source", "LabelName", "Confidence"])
        for image, (label, value) in zip(table["image"].to_pylist(), rows, strict=True):
            writer.writerow([image, "verification", label, int(value == 1)])
        writer.writerow([IDS[0], "verification", "/m/other", 1])
    (tmp_path / "names.csv").write_text("".join(f"/m/{n},class {n}\n" for n in range(CLASSES)) + "/m/other,Other\n")
    words = ["--labels", str(tmp_path / "human.csv"), "--descriptions", str(tmp_path / "names.csv")]
    assert cli.main(["evaluate", "--predictions", shards, *words, "--output", str(tmp_path / "report")]) == 0
    report = Report.from_json(tmp_path / "report" / "report.json")
    assert_same(report, expected)
    assert report.details["labels of other classes, left out"] == "1 labels of 1 classes: Other"
    dense = labels.clone()
    dense[dense == -2] = -1
    with open(tmp_path / "dense.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [["file", *NAMES], *([f"a/{i}.jpg", *row.tolist()] for i, row in zip(IDS, (dense == 1).int(), strict=True))]
        )
    ids = [f"a/{name}.jpg" for name in IDS]
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(tmp_path / "dense.csv"), tmp_path / "dense.parquet")
    names = [[NAMES[c] for c in row.nonzero().flatten().tolist()] for row in dense == 1]
    pyarrow.parquet.write_table(pyarrow.table({"file": ids, "labels": names}), tmp_path / "sets.parquet")
    for table in ("dense.csv", "dense.parquet", "sets.parquet"):
        assert_same(evaluate_shards(shards, tmp_path / table), evaluate(scores, dense == 1, NAMES, ids=ids))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    scores, labels = case(2)
    table = write_rows(tmp_path / "labels.csv", labels)
    with pytest.raises(FileNotFoundError, match="nowhere: no predictions"):
        evaluate_shards(str(tmp_path / "nowhere"), table)
    few = write(tmp_path / "few", scores[1:], IDS[1:], NAMES)
    with pytest.raises(ValueError, match="no prediction of 1 images of .*: 00"):
        evaluate_shards(few, table)
    write(tmp_path / "few", scores[:2], ["00", "b/01"], NAMES)
    with pytest.raises(ValueError, match="01 is the name of two predictions, /photos/a/(b/)?01.jpg and "):
        evaluate_shards(few, table)
    other = write(tmp_path / "other", scores, IDS, NAMES)
    write(tmp_path / "other", scores[:3], ["x", "y", "z"], NAMES, model="another")
    with pytest.raises(ValueError, match="was written with model = "):
        evaluate_shards(other, table)
    with pytest.raises(ValueError, match="holds the 3 highest scores of an image"):
        evaluate_shards(write(tmp_path / "top", scores, IDS, NAMES, top=3), table)
    scores[4, 2] = math.nan
    with pytest.raises(ValueError, match="scores hold NaN"):
        evaluate_shards(write(tmp_path / "nan", scores, IDS, NAMES), table)
    lines = table.read_text().splitlines()
    good = write(tmp_path / "good", case(2)[0], IDS, NAMES)
    for line, message in {
        "00,class 1,7": "value must be 1 or 0 or -1, got 7.0 in row",
        "00,class 0,-1": "'class 0' of 00 is stated in two ways",
        "00,class 0": "Expected 3 columns, got 2",
        "00,,1": "rows with an empty image or class or value",
    }.items():
        table.write_text("\n".join([*lines, line]) + "\n")
        with pytest.raises(ValueError, match=message):
            evaluate_shards(good, table)
    table.write_text("image,class,value\n00,horse,1\n")
    with pytest.raises(ValueError, match="no label of the model's classes; its classes are horse"):
        evaluate_shards(good, table)


LARGE = """
import resource, sys, time
from ssgrl_fast.inference.shard_metrics import evaluate_shards
start = time.perf_counter()
report = evaluate_shards(sys.argv[1], sys.argv[2])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, report.ap[5])
"""


@pytest.mark.long
def test_the_size_of_open_images_takes_at_most_two_gigabytes(tmp_path: Path) -> None:
    """125,436 images of 9,605 classes, about 12 known labels of each image; one class is checked on its own."""
    import pyarrow
    import pyarrow.parquet

    images, classes, each = 125_436, 9_605, 12
    random = np.random.default_rng(0)
    ids, names = [f"{number:06}" for number in range(images)], [f"class {number}" for number in range(classes)]
    draw = torch.Generator().manual_seed(0)
    probe = torch.empty(images)
    for start in range(0, images, 4096):
        scores = torch.randn(min(4096, images - start), classes, generator=draw).sub_(4)
        probe[start : start + len(scores)] = scores[:, 5]
        write(tmp_path / "shards", scores, ids[start : start + len(scores)], names, rows=4096)
    chosen = np.sort(random.integers(0, classes, (images, each)), axis=1)
    chosen[::50, 0] = 5
    values = random.integers(0, 2, (images, each)) * 2 - 1
    columns = {"image": np.repeat(ids, each), "class": np.array(names)[chosen.ravel()], "value": values.ravel()}
    table = pyarrow.table({name: pyarrow.array(column) for name, column in columns.items()})
    keys, first = np.unique(np.repeat(np.arange(images), each) * classes + chosen.ravel(), return_index=True)
    pyarrow.parquet.write_table(table.take(pyarrow.array(first)), tmp_path / "labels.parquet")
    command = [sys.executable, "-c", LARGE, str(tmp_path / "shards"), str(tmp_path / "labels.parquet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, peak, ap = map(float, done.stdout.split())
    own = (
        torch.from_numpy(keys[keys % classes == 5] // classes),
        torch.from_numpy(values.ravel()[first][keys % classes == 5]),
    )
    expected = average_precision(probe[own[0], None], own[1][:, None])
    print(f"{len(keys):,} known labels: {seconds:.0f} s, peak {peak / 1e9:.2f} GB")
    assert peak <= 2e9 and abs(ap - expected.item()) <= 1e-12 and len(own[0]) > 2500
