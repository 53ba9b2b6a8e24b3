"""Files that version 0.1.0 wrote (tests/fixtures/v0_1) are read as before, with the numbers they had then."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ssgrl_fast as sf
from ssgrl_fast import cli
from ssgrl_fast.backends import extension

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "v0_1"
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DATA = ["--data.kind=digits", "--data.counts=[32,16,16]"]
OPTIONS = [
    *DATA,
    "--data.batch_size=16",
    "--model.backbone=timm:ssgrl_test_resnet",
    "--model.pretrained=false",
    "--model.freeze=none",
    "--model.joint_dim=8",
    "--model.steps=2",
    "--model.lr=1e-3",
    "--model.schedule=constant",
    "--model.backend=reference",
    "--model.words=words.txt",
    "--run_dir=run",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, as the working folder; the run's backbone is known to timm."""
    for package in ("lightning", "timm"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'ssgrl_fast[train]'")
    import tiny_resnet  # noqa: F401

    copy = tmp_path / "files"
    shutil.copytree(FIXTURES, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "argv", ["ssgrl-fast"])
    return copy


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_alike(found: Any, expected: Any, where: str = "", tolerance: float = 1e-5) -> None:
    """The same keys, texts and integers, and floating-point numbers within the tolerance."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and list(found) == list(expected), where
        for key, value in expected.items():
            assert_alike(found[key], value, f"{where}/{key}", tolerance)
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_alike(found[number], value, f"{where}/{number}", tolerance)
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), f"{where}: {found}, was {expected}"
    else:
        assert found == expected, where


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_bundle_computes_what_it_did(backend: str) -> None:
    if backend == "cpu" and (reason := extension.library()) is not None:
        pytest.skip(reason)
    expected = load_file(FIXTURES / "bundle_expected.safetensors")
    model = sf.SSGRL.from_pretrained(FIXTURES / "bundle")
    assert model.class_names == ["zwei", "two words", "Ångström"] and model.head.mode == "official"
    with torch.no_grad(), sf.use_backend(backend):
        logits, attention = model(expected["images"], return_attention=True)
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(attention, expected["attention"], rtol=0, atol=1e-6)


def test_a_bundle_saved_again_is_the_same(tmp_path: Path) -> None:
    sf.SSGRL.from_pretrained(FIXTURES / "bundle").save_pretrained(tmp_path / "again")
    again, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "again", FIXTURES / "bundle"))
    assert list(again) == list(before)
    assert all(torch.equal(again[name], value) for name, value in before.items())
    config = read_json(tmp_path / "again" / "config.json")
    assert len(config.pop("digest")) == 64, "which 0.1.0 did not write"
    assert_alike(config, read_json(FIXTURES / "bundle" / "config.json"))


def test_the_run_is_tested_and_validated_with_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "run" / "version_0"
    before = read_json(run / "report_test.json")
    (run / "report_test.json").unlink()
    before["details"]["selected on"] = "nothing: the last epoch"  # 0.1.0 named images that had not chosen last.ckpt
    assert cli.main(["test", *OPTIONS, "--ckpt_path=last"]) == 0
    printed = capsys.readouterr().out
    assert_alike(read_json(run / "report_test.json"), before)
    earlier = (folder / "test.txt").read_text().replace("| measured how |", "| setting |")  # that heading was reworded
    earlier = earlier.replace(
        "| selected on | validation images of the set |", "| selected on | nothing: the last epoch |"
    )
    tables = [re.findall(r"^\| .*$", text, flags=re.MULTILINE) for text in (printed, earlier)]
    assert tables[0] == tables[1] and len(tables[0]) > 30
    assert cli.main(["validate", *OPTIONS, "--ckpt_path=last"]) == 0
    (score,) = re.findall(r"val/mAP\s+│\s+([\d.]+)", capsys.readouterr().out)
    logged = [row["val/mAP"] for row in rows(run / "metrics.csv") if row["val/mAP"]]
    assert float(score) == pytest.approx(float(logged[0]), abs=1e-5)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_resumes_with_the_losses_it_had(folder: Path) -> None:
    resume = ["--trainer.max_epochs=2", "--seed_everything=0", "--ckpt_path=last"]
    assert cli.main(["fit", *OPTIONS, *resume]) == 0
    found, expected = rows(folder / "run" / "version_0" / "metrics.csv"), rows(folder / "resumed.csv")
    assert len(found) == len(expected)
    for row, before in zip(found, expected, strict=True):
        assert list(row) == list(before)
        for name, value in before.items():
            assert (row[name] == "") == (value == ""), name
            if value:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-4), (name, before["step"])


def test_the_configuration_of_the_run_trains_the_same_weights(folder: Path) -> None:
    """Every key of a config.yaml written then is still taken, and means what it did."""
    config = str(folder / "run" / "version_0" / "config.yaml")
    assert cli.main(["fit", "--config", config, "--run_dir=again"]) == 0
    weights = [load_file(folder / name / "version_0" / "bundle" / "model.safetensors") for name in ("run", "again")]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_predictions_are_those_of_then(folder: Path) -> None:
    bundle = ["--model", "run/version_0/bundle", "--no-progress", "--backend", "reference"]
    assert cli.main(["predict", "photos", *bundle, "--output", "again.json"]) == 0
    found, before = read_json(folder / "again.json"), read_json(folder / "predictions.json")
    assert set(found.pop("versions")) == set(before.pop("versions"))
    assert found.pop("passed_over") == []  # these three were added since
    assert found.pop("runtime") == "torch"
    assert found.pop("attention") is None
    assert set(found) == set(before)
    assert_alike({name: found[name] for name in before}, before)  # rows are written as they come: counts stand behind


def test_a_report_of_then_is_a_baseline_without_a_difference(folder: Path) -> None:
    bundle = ["--model", "run/version_0/bundle", "--no-progress", "--backend", "reference", "--attention", "0"]
    assert cli.main(["evaluate", *bundle, *DATA, "--output", "again", "--baseline", "report.json"]) == 0
    found, before = read_json(folder / "again" / "report.json"), read_json(folder / "report.json")
    for name in ("format", "unit", "mean_ap", "all_labels", "top_k_labels", "classes", "images", "ap_definition"):
        assert_alike(found[name], before[name], name)


def test_words_and_graphs_are_read() -> None:
    from_text, from_array = (sf.words.load(FIXTURES / name, CLASS_NAMES) for name in ("words.txt", "words.npy"))
    assert torch.equal(from_text, from_array) and from_text.shape == (10, 8)
    backwards = sf.words.load(FIXTURES / "words.npy", CLASS_NAMES[::-1])
    assert torch.equal(backwards, from_text.flip(0))
    labels = [[int(value) for value in list(row.values())[1:]] for row in rows(FIXTURES / "labels.csv")]
    counted = sf.graph.cooccurrence(torch.tensor(labels))
    for suffix in ("safetensors", "npz"):
        saved = sf.graph.read(FIXTURES / f"graph.{suffix}")
        assert saved.class_names == CLASS_NAMES and saved.details["images"] == "32"
        torch.testing.assert_close(sf.graph.load(FIXTURES / f"graph.{suffix}", CLASS_NAMES), counted)


def test_a_published_checkpoint_computes_what_its_network_did() -> None:
    expected = load_file(FIXTURES / "published_expected.safetensors")
    backbone = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.ReLU())
    path = FIXTURES / "published.pth.tar"
    model = sf.load_official_checkpoint(path, expected["words"], expected["adjacency"], backbone=backbone)
    with torch.no_grad(), sf.use_backend("reference"):
        torch.testing.assert_close(model(expected["images"]), expected["logits"], rtol=0, atol=1e-6)
