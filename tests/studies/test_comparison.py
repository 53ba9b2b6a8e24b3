"""The comparison by seeds and folds: its parts by hand, and the whole on a small made-up data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from ssgrl_fast import cli
from ssgrl_fast.studies import comparison
from ssgrl_fast.studies.comparison import MODELS, Settings, compare, final, fold_rows, paired_bootstrap

CLASSES = ("cat", "dog", "horse")


def test_folds_deal_every_row_once():
    parts = fold_rows(363, 5)
    assert sorted(row for part in parts for row in part) == list(range(363))
    assert {len(part) for part in parts} == {72, 73}
    assert parts == fold_rows(363, 5) and parts != fold_rows(363, 5, seed=1)


def test_a_curve_is_judged_by_its_last_values():
    assert final([3.0, 6.0, 0.0, 9.0]) == pytest.approx(5.0)
    assert final([2.0]) == 2.0


@pytest.mark.parametrize(
    "options",
    [{"models": ("ssgrl",)}, {"models": ("pooling", "resnet")}, {"models": ("pooling", "pooling")}, {"folds": 1}]
    + [{"seeds": 0}, {"draws": 0}, {"epochs": 0}, {"search_seeds": 0}, {"against": "no-sd"}],
)
def test_settings_refuse_what_cannot_be_compared(options):
    with pytest.raises(ValueError, match="compare: "):
        Settings(root="x", **options)


# ---- bootstrap -------------------------------------------------------------------------------------------------------


def made_up(noise: dict[str, float], images: int = 120) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.where(torch.rand(images, 4, generator=generator) < 0.4, 1, -1).to(torch.int8)
    scores = {
        name: labels + size * torch.randn(2, images, 4, generator=generator, dtype=torch.float32)
        for name, size in noise.items()
    }
    return scores, labels


def test_bootstrap_of_equal_models_is_zero_and_of_a_better_one_is_not():
    scores, labels = made_up({"pooling": 2.0, "better": 1.0})
    scores["equal"] = scores["pooling"].clone()
    gaps = paired_bootstrap(scores, labels, 200)
    assert gaps["equal"] == comparison.Gap(0.0, 0.0, 0.0)
    assert 0 < gaps["better"].low < gaps["better"].mean < gaps["better"].high
    assert "pooling" not in gaps
    assert paired_bootstrap(scores, labels, 200) == gaps


def test_bootstrap_agrees_with_a_loop_of_its_own():
    scores, labels = made_up({"pooling": 2.0, "other": 1.8}, images=60)
    found = paired_bootstrap(scores, labels, 60, "plain", seed=7)["other"]
    rng, gaps, truth = np.random.default_rng(7), [], (labels == 1).numpy()

    def mean_ap(name: str, rows: np.ndarray) -> float:
        values = [
            average_precision_score(truth[rows, c], one[rows, c].numpy()) for one in scores[name] for c in range(4)
        ]
        return float(np.mean(values))

    for _ in range(60):
        rows = rng.integers(0, 60, 60)
        gaps.append(mean_ap("other", rows) - mean_ap("pooling", rows))
    everything = np.arange(60)
    assert found.mean == pytest.approx(mean_ap("other", everything) - mean_ap("pooling", everything), abs=1e-6)
    # images drawn twice tie with themselves, where the two definitions may differ a little
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=0.02)


def test_bootstrap_refuses_other_shapes_and_a_missing_baseline():
    scores, labels = made_up({"pooling": 1.0})
    with pytest.raises(ValueError, match="needs 'nobody'"):
        paired_bootstrap(scores, labels, 5, baseline="nobody")
    with pytest.raises(ValueError, match="paired_bootstrap"):
        paired_bootstrap(scores, labels[:-1], 5)


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Patches of the class's own colour on noise, in Pascal VOC format: 24 training and 8 test images."""
    root = tmp_path_factory.mktemp("voc")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        (root / split).mkdir()
        for index in range(count):
            pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            present = [c for c in range(3) if c == index % 3 or rng.random() < 0.3]
            for c in present:
                pixels[8 * c : 8 * c + 10, 4:28, c] = 255
            Image.fromarray(pixels).save(root / split / f"{split}{index}.png")
            objects = "".join(
                f"<object><name>{CLASSES[c]}</name><difficult>0</difficult><bndbox><xmin>4</xmin><ymin>{8 * c + 1}"
                f"</ymin><xmax>28</xmax><ymax>{8 * c + 10}</ymax></bndbox></object>"
                for c in present
            )
            (root / split / f"{split}{index}.xml").write_text(
                f"<annotation><filename>{split}{index}.png</filename>{objects}</annotation>"
            )
    return root


def quick(root: Path, tmp_path: Path, **options) -> Settings:
    plain = {"backbone": "small-cnn", "image_size": 32, "words": "glove-6b-50d", "joint_dim": 8}
    few = {"seeds": 2, "folds": 2, "draws": 20, "epochs": 2, "models": ("ssgrl", "pooling")}
    return Settings(str(root), str(tmp_path / "features"), **{**plain, **few, **options})


@pytest.mark.thorough
def test_protocol_end_to_end(photographs, tmp_path, monkeypatch):
    trained = []
    from ssgrl_fast.studies import comparison_runs

    fit = comparison_runs.ComparisonRuns._fit

    def noted(self, name, rate, epochs, rows, seed, held=None, callbacks=None):
        trained.append((name, rate, epochs, tuple(rows), seed, held))
        return fit(self, name, rate, epochs, rows, seed, held, callbacks)

    monkeypatch.setattr(comparison_runs.ComparisonRuns, "_fit", noted)
    said: list[str] = []
    outcome = compare(quick(photographs, tmp_path), log=said.append, keep=tmp_path / "out")

    for name in ("ssgrl", "pooling"):
        mine = [run for run in trained if run[0] == name]
        chosen = outcome.chosen[name]
        choosing, testing, folding = mine[: len(MODELS[name].rates)], mine[-6:-4], mine[-4:]
        testing = [run for run in mine if len(run[3]) == 24]
        folding = [run for run in mine if run[5] is None and len(run[3]) == 16]
        assert [run[1:3] for run in choosing] == [(rate, 2) for rate in MODELS[name].rates]
        for run in choosing:  # on training images alone, 80 : 20
            assert max(*run[3], *run[5]) < 24 and not set(run[3]) & set(run[5])
            assert (len(run[3]), len(run[5])) == (19, 5)
        assert [(run[1], run[2], run[4]) for run in testing] == [(chosen.rate, chosen.epochs, seed) for seed in (0, 1)]
        assert len(folding) == 4 and len(mine) == len(choosing) + 6
        assert chosen.score == max(candidate.score for candidate in outcome.candidates[name])
        assert all(len(candidate.curve) == 2 for candidate in outcome.candidates[name])
        assert np.shape(outcome.folds[name]) == (2, 2) and len(outcome.pooled[name]) == 2 == len(outcome.test[name])
    stored = np.load(tmp_path / "out" / "predictions.npz")
    assert stored["labels"].shape == (32, 3) and stored["logits_ssgrl"].shape == (2, 32, 3)
    assert np.bincount(stored["fold"]).tolist() == [16, 16]
    assert not (stored["logits_pooling"] == 0).all(-1).any()  # every image got logits
    gap = np.mean(outcome.pooled["ssgrl"]) - np.mean(outcome.pooled["pooling"])
    assert outcome.gaps["ssgrl"].mean == pytest.approx(gap, abs=1e-6)
    text = outcome.markdown()
    assert "| SSGRL |" in text and "| global pooling + linear |" in text and "2 folds" in text
    assert any("validation" in line for line in said)


@pytest.mark.thorough
def test_every_pair_of_rate_and_epochs_is_tried_with_a_falling_rate(photographs, tmp_path, monkeypatch):
    small = comparison.Model("small", {"kind": "pooling"}, (1e-3, 1e-2), (1, 3))
    monkeypatch.setitem(MODELS, "pooling", small)
    schedules = []
    from ssgrl_fast.studies import comparison_runs

    task = comparison_runs.SSGRLTask

    def noted(**options):
        schedules.append(options["schedule"])
        return task(**options)

    monkeypatch.setattr(comparison_runs, "SSGRLTask", noted)
    settings = quick(photographs, tmp_path, models=("pooling",), epochs=None, seeds=1)
    outcome = compare(settings, log=lambda line: None)
    tried = outcome.candidates["pooling"]
    assert [(one.rate, one.epochs) for one in tried] == [(1e-3, 1), (1e-2, 1), (1e-3, 3), (1e-2, 3)]
    assert all(len(one.curve) == one.epochs and one.score == final(one.curve) for one in tried)
    assert outcome.chosen["pooling"].score == max(one.score for one in tried)
    assert set(schedules) == {"onecycle"}


@pytest.mark.thorough
def test_table_5_has_gaps_to_the_full_network(photographs, tmp_path, monkeypatch):
    """Every row but the full network's has one, and a candidate's score is the mean over the seeds of the search."""
    from ssgrl_fast.studies import comparison_runs

    heads, searched, fit = {}, [], comparison_runs.ComparisonRuns._fit

    def noted(self, name, rate, epochs, rows, seed, held=None, callbacks=None):
        task = fit(self, name, rate, epochs, rows, seed, held, callbacks)
        heads[name] = task.model.head
        if held is not None:
            callbacks[0].values = [0.25 * (seed + 1), 0.5 * (seed + 1)]
            searched.append((name, rate, seed))
        return task

    monkeypatch.setattr(comparison_runs.ComparisonRuns, "_fit", noted)
    monkeypatch.setitem(MODELS, "ssgrl", comparison.Model("SSGRL", {"kind": "ssgrl"}, (1e-3, 4e-3), (2,)))
    models = ("ssgrl", "decoupling", "no-sd", "no-sd-concat", "pooling")
    settings = quick(photographs, tmp_path, models=models, against="ssgrl", search_seeds=2, seeds=1)
    outcome = compare(settings, log=lambda line: None)
    assert set(outcome.gaps) == set(models) - {"ssgrl"}
    for name, gap in outcome.gaps.items():
        assert gap.mean == pytest.approx(outcome.pooled[name][0] - outcome.pooled["ssgrl"][0], abs=1e-6)
    assert "the gap is to SSGRL, over all images" in outcome.markdown() and "| w/o SD-concat |" in outcome.markdown()
    assert [heads[name].decoupling for name in models[:4]] == ["semantic", "semantic", "average", "concat"]
    assert [heads[name].interaction for name in models[:4]] == [True, False, True, True]
    assert searched[:4] == [("ssgrl", rate, seed) for rate in (1e-3, 4e-3) for seed in (0, 1)]
    for candidate in outcome.candidates["ssgrl"]:
        assert candidate.curve == pytest.approx([0.375, 0.75]) and candidate.score == pytest.approx(0.5625)


@pytest.mark.thorough
def test_same_seed_same_outcome(photographs, tmp_path):
    one, two = (compare(quick(photographs, tmp_path, seeds=1), log=lambda line: None) for _ in range(2))
    assert one.folds == two.folds and one.test == two.test and one.gaps == two.gaps


def test_command_writes_the_report(photographs, tmp_path, capsys):
    given = quick(photographs, tmp_path)
    options = {"backbone": given.backbone, "words": given.words, "features": given.features, "image-size": 32}
    options |= {"joint-dim": 8, "seeds": 1, "folds": 2, "draws": 5, "epochs": 1, "out": tmp_path / "out"}
    command = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert cli.main(["compare", "--root", str(photographs), *command, "--models", "pooling", "decoupling"]) == 0
    assert "semantic decoupling" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["format"] == "ssgrl_fast.comparison" and set(report["gaps"]) == {"decoupling"}
    assert (tmp_path / "out" / "report.md").is_file()


def test_a_folder_without_test_images_is_refused(photographs, tmp_path):
    only = tmp_path / "only"
    only.mkdir()
    (only / "train").symlink_to(photographs / "train")
    with pytest.raises((ValueError, FileNotFoundError), match="test|only"):
        compare(quick(only, tmp_path), log=lambda line: None)


@pytest.mark.long
def test_ssgrl_is_four_points_above_pooling_on_playing_cards(shared_data, tmp_path):
    settings = Settings(str(shared_data / "playing_cards"), str(tmp_path), models=("ssgrl", "pooling"), draws=500)
    outcome = compare(settings)
    assert outcome.gaps["ssgrl"].mean >= 0.04 and outcome.gaps["ssgrl"].low > 0
