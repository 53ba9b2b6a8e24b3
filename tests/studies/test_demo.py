"""The demonstration: its schedule, its measurements, and the whole of it in small."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from rich.console import Console

from ssgrl_fast import cli
from ssgrl_fast.backends import extension
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.metrics import Report
from ssgrl_fast.models import SSGRL, build_backbone, from_pretrained
from ssgrl_fast.studies.demo import measure, training
from ssgrl_fast.studies.demo.measure import HeadSize, PublishedHead, make_head, make_step
from ssgrl_fast.training import optim

SMALL = HeadSize(images=2, height=3, width=4, classes=5, channels=16, word_dim=6, joint_dim=8)


# ---- schedule --------------------------------------------------------------------------------------------------------


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture
def canvases() -> MultiLabelDataModule:
    return MultiLabelDataModule("digits", counts=(8, 1, 8), batch_size=2, eval_batch_size=8)


def test_one_cycle_rises_then_falls_to_zero(canvases):
    rates, peak = Rates(), training.PEAK_LR["pooling"]
    _, done = training._fit("pooling", canvases, 100, 0, "cpu", rates)
    assert done == len(rates.values) == 100  # over the ends of 25 epochs
    top = rates.values.index(max(rates.values))
    assert top == 14 and rates.values[top] == pytest.approx(peak)
    assert rates.values[0] == pytest.approx(peak / 25)
    assert rates.values[: top + 1] == sorted(rates.values[: top + 1])
    assert rates.values[top:] == sorted(rates.values[top:], reverse=True)
    assert 0 < rates.values[-1] < peak / 1000


@pytest.mark.parametrize(("seconds", "expected"), [(1000.0, 300), (120.0, 120), (1.0, 1), (0.5, 1)])
def test_training_is_shortened_to_its_time(seconds, expected):
    assert training.affordable(300, seconds, 1.0) == expected


def test_pace_leaves_out_the_first_steps(monkeypatch):
    clock = SimpleNamespace(global_step=0, now=0.0)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock.now)
    pace = training.Pace()
    for step in range(1, 10):
        clock.global_step, clock.now = step, clock.now + (50.0 if step < 3 else 0.5)
        pace.on_train_batch_end(clock, None, None, None, 0)
    assert pace.seconds_per_step == pytest.approx(0.5)


@pytest.mark.thorough
def test_a_pair_is_cut_to_its_time_with_a_whole_schedule(monkeypatch):
    """The schedule is made for as many steps as fit, and both models take them."""
    totals = []
    monkeypatch.setattr(training, "affordable", lambda planned, seconds, each: totals.append(planned) or 5)
    monkeypatch.setattr(training, "_PROBE", 2)
    schedule = optim.OneCycleLR
    monkeypatch.setattr(
        optim, "OneCycleLR", lambda o, r, count, **kw: totals.append(count) or schedule(o, r, count, **kw)
    )
    pair = training.train_pair(
        epochs=5, minutes=10, canvases=64, seed=0, backend="reference", console=Console(quiet=True)
    )
    assert totals == [4, 10, 5, 5]  # of the probe, planned, of either model
    assert (pair.steps, pair.planned) == (5, 10) and min(pair.seconds.values()) > 0


def test_the_timer_has_the_last_word():
    pair = training.train_pair(
        epochs=20, minutes=1e-4, canvases=64, seed=0, backend="reference", console=Console(quiet=True)
    )
    assert pair.planned == 40 and pair.steps == 1


# ---- measurements ----------------------------------------------------------------------------------------------------


def test_published_head_has_the_same_scores_and_gradients():
    head = make_head(SMALL, "reference").double()
    published = PublishedHead(head)
    x = torch.rand(2, 16, 3, 4, dtype=torch.float64)
    logits = [one(x) for one in (head, published)]
    assert torch.allclose(*logits, rtol=1e-12, atol=1e-12) and logits[0].std() > 0
    for value in logits:
        value.square().sum().backward()
    assert torch.allclose(published.layers["u_r"].grad, head.graph_propagation.weight_zr.grad[16:, :16], atol=1e-12)
    assert torch.allclose(published.layers["image"].grad, head.semantic_decoupling.weight_u.grad, atol=1e-12)
    assert published.layers["image"].grad.norm() > 0


def test_a_training_step_leaves_every_gradient_afresh():
    head = make_head(SMALL, "reference")
    step = make_step(head, SMALL, "training")
    step()
    first = copy.deepcopy({name: parameter.grad for name, parameter in head.named_parameters()})
    step()
    for name, parameter in head.named_parameters():
        assert torch.equal(parameter.grad, first[name]), name
    assert not make_step(head, SMALL, "inference")().requires_grad


def test_speed_times_both_forms_and_refuses_forms_that_disagree(monkeypatch):
    times = measure.speed(SMALL, "reference", repeats=2)
    assert {run: set(forms) for run, forms in times.items()} == dict.fromkeys(measure.RUNS, set(measure.FORMS))
    assert all(value > 0 for forms in times.values() for value in forms.values())
    published = PublishedHead.forward
    monkeypatch.setattr(PublishedHead, "forward", lambda self, x: published(self, x) + 1)
    with pytest.raises(RuntimeError, match="differ by"):
        measure.speed(SMALL, "reference", repeats=1)


@pytest.mark.thorough
def test_memory_sees_the_tensors_of_the_published_form():
    size = HeadSize(images=2, height=9, width=9, classes=40, channels=128, word_dim=8, joint_dim=256)
    peaks = measure.memory(size, "reference")
    if isinstance(peaks, str):
        pytest.skip(peaks)
    joint = 4 * 2 * 81 * 40 * 256  # one [B·L, C, K] tensor in float32, of which the published form makes several
    assert 2 * joint < peaks["inference"]["published"] < 12 * joint
    assert 3 * joint < peaks["training"]["published"] < 20 * joint


def test_memory_says_what_a_failing_process_said():
    with pytest.raises(RuntimeError, match="no_such_backend"):
        measure.memory(SMALL, "no_such_backend")


def test_parity_of_an_exact_head_is_small_and_of_a_wrong_one_is_not(monkeypatch):
    torch.manual_seed(0)
    model = SSGRL(build_backbone("small-cnn", width=4), torch.randn(10, 6), torch.rand(10, 10), joint_dim=16).eval()
    images = torch.rand(2, 3, 64, 64)
    found = measure.parity(model, images)
    assert 0 < found.plain_forward < 2e-6 and found.plain_gradient < 1e-5
    assert found.forward < 2e-6 and found.gradient < 1e-5 and found.worst
    run = measure._run_head

    def wrong(head, features, backend):
        result = run(head, features, backend)
        if features.dtype == torch.float32:
            result["semantic_decoupling.weight_v"] = result["semantic_decoupling.weight_v"] * 1.01
        return result

    monkeypatch.setattr(measure, "_run_head", wrong)
    spoilt = measure.parity(model, images)
    assert spoilt.plain_gradient == pytest.approx(0.01, rel=1e-2) and spoilt.plain_worst.endswith("weight_v")


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The measured head is small; everything else is as ever."""
    monkeypatch.setattr(measure, "HeadSize", lambda images=1: SMALL)


def test_demo_in_small(small, tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--out", str(out), "--epochs", "1", "--canvases", "96"]) == 0
    said = capsys.readouterr().out
    for word in ("test mAP", "OF1", "CF1", "head, inference", "head, training", "as published", str(out / "ap.png")):
        assert word in said, word
    report = json.loads((out / "report.json").read_text())
    assert report["format"] == "ssgrl_fast.demo" and report["steps"] == {"done": 3, "planned": 3}
    assert set(report["test"]) == {"ssgrl", "pooling"} and 0 < report["test"]["ssgrl"]["mAP"] < 1
    assert (out / "report.md").read_text().count("\n| ") >= 8
    for picture in ("ap.png", "attention.png"):
        assert min(Image.open(out / picture).size) > 300
    model = from_pretrained(out / "ssgrl" / "bundle")
    assert model.preprocessing == {"image_size": 64, "resize": 64} and model.class_names[0] == "zero"
    stored = Report.from_json(out / "pooling" / "report_test.json")
    assert stored.mean_ap == pytest.approx(report["test"]["pooling"]["mAP"]) and stored.images == 200


@pytest.mark.thorough
def test_demo_without_the_kernels_says_so_and_runs(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extension, "library", lambda: "ssgrl_fast._C is not in this installation: build it")
    monkeypatch.setattr(measure, "memory", lambda size, backend: "only Linux has a meter")
    assert cli.main(["demo", "--out", str(tmp_path), "--epochs", "1", "--canvases", "64"]) == 0
    said = capsys.readouterr().out
    assert "run" in said and "reference" in said and "is not in this installation" in said
    assert "only Linux has a meter" in said and "not measured" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["backend"] == "reference" and "not in this" in report["fused_kernels_absent_because"]
    assert "fused kernels are absent" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("option", ["--epochs", "--canvases", "--minutes"])
def test_demo_refuses_nothing_to_do(option, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "demo"), option, "0"]) == 1
    assert option in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.long
def test_ssgrl_is_above_pooling_on_the_digits_over_seeds():
    gaps = []
    for seed in range(3):
        pair = training.train_pair(
            epochs=7, minutes=60, canvases=6000, seed=seed, backend="cpu", console=Console(quiet=True)
        )
        ours, theirs = (pair.reports[kind].mean_ap for kind in ("ssgrl", "pooling"))
        print(f"seed {seed}: test mAP {100 * ours:.2f} with SSGRL, {100 * theirs:.2f} with global pooling")
        assert ours >= 0.95
        gaps.append(ours - theirs)
    assert sum(gaps) / len(gaps) > 0.003 and min(gaps) > 0
