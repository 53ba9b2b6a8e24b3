"""What a run says of itself: which images chose its epoch, and the preprocessing, recipe and origin in its bundles."""

from __future__ import annotations

import json
import math
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import make_data, make_task, make_trainer, write_image, write_words

from ssgrl_fast import cli
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.labels import graph
from ssgrl_fast.models import SSGRL

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.training import checkpoint
from ssgrl_fast.training.facts import epoch_chosen_on
from ssgrl_fast.training.task import SSGRLTask

LAST = "nothing: the last epoch"
NAMES = ["cat", "dog"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_words(tmp_path_factory.mktemp("words") / "words.txt")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight training images, of which the first two have labels, and two test images."""
    rows = ["file,labels,split"]
    for number in range(10):
        Image.new("RGB", (16, 16), (20 * number, 100, 20)).save(tmp_path / f"{number}.png")  # no two alike
        split = "train" if number < 6 else "val" if number < 8 else "test"
        labels = "" if split == "val" else NAMES[number % 2]
        rows.append(f"{number}.png,{labels},{split}")
    path = tmp_path / "table.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def options(verb: str, table: Path, words: str, **more: Any) -> list[str]:
    given = {
        "data.kind": "csv",
        "data.root": table,
        "data.image_size": 16,
        "model.words": words,
        "model.backbone": "small-cnn",
        "model.joint_dim": 8,
        "model.freeze": "none",
        "model.schedule": "constant",
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": table.parent / "runs",
        **more,
    }
    return [verb, *(f"--{name}={value}" for name, value in given.items())]


def details(run: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads((run / "report_test.json").read_text())["details"]
    return content


# ---- bundles of Python's Trainer.fit ---------------------------------------------------------------------------------


def test_a_bundle_made_in_python_says_what_the_command_lines_says(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    task = make_task(words)
    make_trainer(run, monitor=None, max_epochs=1).fit(task, datamodule=make_data())  # the command line's callbacks
    task.model.save_pretrained(tmp_path / "python")
    exported, own = (json.loads((path / "config.json").read_text()) for path in (run / "bundle", tmp_path / "python"))
    assert own == exported
    assert own["preprocessing"] == {"image_size": 64, "resize": 64}
    assert own["recipe"]["selected on"] == LAST and own["recipe"]["seed"] == "0"
    assert own["origin"]["graph"] and own["normalisation"] == exported["normalisation"]
    predictor = Predictor.load(tmp_path / "python")
    assert (predictor.image_size, predictor.resize) == (64, 64)


def test_a_loaded_checkpoint_keeps_what_its_run_knew(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    task = make_task(words, lr=2e-3)
    make_trainer(run, max_epochs=2).fit(task, datamodule=make_data())
    for name, selected in (("best", "validation images of the set"), ("last", LAST)):
        loaded = SSGRLTask.load_from_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        assert loaded.model.preprocessing == {"image_size": 64, "resize": 64}
        assert loaded.model.recipe["optimizer"] == "adam, lr 0.002"
        if name == "best" or checkpoint.read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == 0:
            assert loaded.model.recipe["selected on"] == selected
    assert SSGRL.from_pretrained(run / "bundle").recipe["selected on"] == "validation images of the set"
    assert task.model.recipe["selected on"] == LAST  # the export has put the last weights back


@pytest.mark.parametrize("size", [None, 48])
def test_a_bundle_without_a_size_is_refused_or_takes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int | None
) -> None:
    torch.manual_seed(0)
    model = SSGRL("small-cnn", torch.randn(2, 5), torch.rand(2, 2), class_names=NAMES, joint_dim=8).eval()
    model.save_pretrained(tmp_path / "bundle")
    for name in "ab":
        write_image(tmp_path / f"{name}.png", [])
    (tmp_path / "table.csv").write_text("file,labels,split\na.png,cat,train\nb.png,cat,test\n")
    data = ["--data.kind=csv", f"--data.root={tmp_path / 'table.csv'}"]
    bundle = f"--model={tmp_path / 'bundle'}"
    commands = {
        "predict": ["predict", bundle, str(tmp_path / "a.png")],
        "export": ["export", bundle, "--format=pt2", f"--output={tmp_path / 'model.pt2'}"],
        "evaluate": ["evaluate", bundle, f"--output={tmp_path / 'report'}", "--attention=0", "--no-progress", *data],
        "plot-attention": ["plot-attention", bundle, str(tmp_path / "a.png"), f"--out={tmp_path / 'sheet.png'}"],
        "app": ["app", bundle],
    }
    if size is not None or find_spec("gradio") is None:
        del commands["app"]  # which would serve; it takes its size as predict does
    for verb, command in commands.items():
        status = cli.main([*command, *([] if size is None else [f"--image-size={size}"])])
        message = capsys.readouterr().err
        assert status == (1 if size is None else 0), (verb, message)
        assert ("does not state the image size" in message) == (size is None), (verb, message)
        assert "--image-size" in message or size is not None
    if size is not None:
        report = json.loads((tmp_path / "report" / "report.json").read_text())
        assert report["details"]["protocol"].startswith("single")
        assert f"{size} -> {size}" in report["details"]["protocol"]


# ---- what chose the epoch --------------------------------------------------------------------------------------------


def test_selected_on_is_the_fits_whatever_test_is_called_with(table: Path, words: str) -> None:
    words = write_words(table.parent / "words.txt", NAMES)
    fitted = {"data.val_fraction": 0.4, "data.split_seed": 3, "model.lr": 0.002, "seed_everything": 5}
    assert cli.main(options("fit", table, words, **fitted)) == 0
    run = table.parent / "runs" / "version_0"
    expected = "0.4 of the training images, held out (split seed 3)"
    bundle = SSGRL.from_pretrained(run / "bundle")
    defined = (run / "checkpoints" / "best.ckpt").is_file()
    assert bundle.recipe["selected on"] == (expected if defined else LAST) and defined
    for other in ({}, {"data.val_split": "test_split"}, {"data.val_fraction": 0.2}):
        assert cli.main(options("test", table, words, **other)) == 0  # best.ckpt; by another seed and rate, it seems
        assert details(run)["selected on"] == expected
        assert (details(run)["seed"], details(run)["optimizer"]) == ("5", "adam, lr 0.002")
    assert cli.main(options("test", table, words, ckpt_path="last", **fitted)) == 0
    assert details(run)["selected on"] == LAST


def test_an_undefined_metric_chooses_no_epoch_and_the_run_says_so(table: Path) -> None:
    words = write_words(table.parent / "words.txt", NAMES)
    with pytest.warns(UserWarning, match="val/mAP was undefined in every epoch: no class has a positive.*the last one"):
        assert cli.main(options("fit", table, words, **{"data.val_split": "val"})) == 0
    run = table.parent / "runs" / "version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt"]
    bundle = SSGRL.from_pretrained(run / "bundle")
    assert bundle.recipe["selected on"] == LAST
    last = checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["epoch"] == 1
    weights = bundle.state_dict()
    assert all(torch.equal(weights[name.removeprefix("model.")], value) for name, value in last["state_dict"].items())
    assert cli.main(options("test", table, words)) == 0
    assert details(run)["selected on"] == LAST


def test_a_checkpoint_says_by_which_images_its_epoch_was_chosen() -> None:
    def chosen(monitor: str | None, current: float, best: float | None) -> str:
        callback = SimpleNamespace(monitor=monitor, best_model_score=None if best is None else torch.tensor(best))
        values = {"val/mAP": torch.tensor(current), "train/loss": torch.tensor(current)}
        trainer = SimpleNamespace(callback_metrics=values, checkpoint_callbacks=[callback], datamodule=make_data())
        return epoch_chosen_on(trainer)  # type: ignore[arg-type]

    assert chosen("val/mAP", 0.5, 0.5) == "validation images of the set"
    assert chosen("val/mAP", 0.4, 0.5) == chosen("val/mAP", 0.5, None) == LAST
    assert chosen("val/mAP", math.nan, math.nan) == LAST
    assert chosen("train/loss", 0.5, 0.5) == chosen("val/other", 0.5, 0.5) == chosen(None, 0.5, 0.5) == LAST


# ---- loaders ---------------------------------------------------------------------------------------------------------


def test_a_fit_without_validation_images_is_quiet(table: Path) -> None:
    words = write_words(table.parent / "words.txt", NAMES)
    data = MultiLabelDataModule(kind="csv", root=str(table), image_size=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_trainer(max_epochs=1).fit(make_task(words, schedule="constant"), datamodule=data)
    assert not [str(each.message) for each in caught if "across ranks is zero" in str(each.message)]


def test_workers_are_at_most_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    for asked, expected in ((0, 0), (1, 1), (2, 2), (4, 2)):
        data = make_data(num_workers=asked)
        assert data.options.workers == expected and data._workers()["num_workers"] == expected
        assert data.options.num_workers == asked  # what configurations keep
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = next(iter(make_data(num_workers=64).test_dataloader()))
    assert batch["image"].shape == (16, 3, 64, 64)


def test_the_graph_of_a_bundle_made_in_python_has_its_origin(words: str, tmp_path: Path) -> None:
    task, data = make_task(words), make_data()
    make_trainer(max_epochs=1, limit_train_batches=1).fit(task, datamodule=data)
    task.model.save_pretrained(tmp_path / "bundle")
    origin = SSGRL.from_pretrained(tmp_path / "bundle").origin
    assert origin is not None and "digits" in json.dumps(origin)
    torch.testing.assert_close(task.model.head.adjacency, graph.cooccurrence(data.train_labels).float())
