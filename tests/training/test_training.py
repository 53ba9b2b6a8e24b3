"""The task: options, modes, optimizer, schedules, fit and export."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import make_data, make_task, make_trainer, rows, write_image, write_words

from ssgrl_fast.training import checkpoint

pytest.importorskip("lightning", reason="the training extra is not installed")

from lightning.pytorch import Callback, Trainer

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.training.checkpoint import TrainingEntry
from ssgrl_fast.training.facts import training_facts
from ssgrl_fast.training.network import Ingredients
from ssgrl_fast.training.options import ARCHITECTURE, TaskOptions
from ssgrl_fast.training.task import SSGRLTask


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_words(tmp_path_factory.mktemp("words") / "words.txt")


def test_modes_settle_what_is_left_open() -> None:
    paper, official = SSGRLTask(), SSGRLTask(mode="official")
    names = ("loss", "schedule", "freeze", "difficult")
    assert [paper.hparams[name] for name in names] == ["sum", "plateau", "paper", "ignore"]
    assert [official.hparams[name] for name in names] == ["mean", "constant", "official", "negative"]
    assert SSGRLTask(mode="official", loss="sum").hparams["loss"] == "sum"


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ValueError, match="cache_features needs freeze='all', got freeze='paper'"):
        SSGRLTask(cache_features="somewhere")
    with pytest.raises(ValueError, match="kind must be one of"):
        SSGRLTask(kind="transformer")


def test_missing_words_and_missing_validation_images_are_sentences(words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind 'ssgrl' needs words"):
        make_trainer().fit(SSGRLTask(backbone="small-cnn", freeze="none"), datamodule=make_data())
    folder = tmp_path / "train"
    folder.mkdir()
    write_image(folder / "a.png", ["one"])
    write_image(folder / "b.png", ["two"])
    data = MultiLabelDataModule(kind="voc", root=str(tmp_path), image_size=16, resize=16, crops=[16])
    with pytest.raises(ValueError, match="plateau_monitor 'val/loss' needs validation images"):
        make_trainer().fit(make_task(words), datamodule=data)


def test_optimizer_has_a_head_group_and_leaves_out_what_is_frozen(words: str) -> None:
    task = make_task(words, head_lr=5e-4, betas=(0.8, 0.9), weight_decay=0.1, schedule="constant")
    make_trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0).fit(task, datamodule=make_data())
    optimizer = task.configure_optimizers()
    head, body = optimizer.param_groups
    assert (head["lr"], body["lr"]) == (5e-4, 1e-3)
    assert head["betas"] == (0.8, 0.9) and head["weight_decay"] == 0.1
    assert {id(p) for p in head["params"]} == {id(p) for p in task.model.head.parameters()}
    assert {id(p) for p in body["params"]} == {id(p) for p in task.model.backbone.parameters()}

    frozen = make_task(words, freeze="all")
    before = None
    trainer = make_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(frozen, datamodule=make_data())
    before = [tensor.clone() for tensor in frozen.model.backbone.state_dict().values()]
    assert len(trainer.optimizers[0].param_groups) == 1
    trainer.fit(frozen, datamodule=make_data())
    for one, other in zip(before, frozen.model.backbone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_report_line_names_all_that_a_number_depends_on(words: str) -> None:
    task = make_task(words, backend="reference", ap_definition="plain")
    make_trainer(max_epochs=1, limit_train_batches=1).fit(task, datamodule=make_data())
    line = task.describe()
    for part in ("mode paper", "AP plain", "difficult ignore", "backend reference", "device cpu", "dtype float32"):
        assert part in line


# ---- fit, checkpoints, export ----


def test_fit_learns_logs_and_exports_its_best_epoch(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    task = make_task(words)
    make_trainer(run, max_epochs=4).fit(task, datamodule=make_data())
    table = rows(run)
    losses = [float(row["train/loss_epoch"]) for row in table if row["train/loss_epoch"]]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert sum(bool(row["train/loss_step"]) for row in table) == 4 * 3
    logged = {"val/mAP", "val/CF1", "val/OF1", "val/CF1_top3", "val/OF1_top3", "val/loss", "train/lr"}
    assert logged <= set(table[0])
    scores = [float(row["val/mAP"]) for row in table if row["val/mAP"]]
    best = checkpoint.read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["epoch"] == max(range(4), key=scores.__getitem__)
    assert checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 3
    assert list(run.glob("events.out.tfevents.*"))

    exported = SSGRL.from_pretrained(run / "bundle")
    loaded = SSGRLTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(exported(images), loaded(images))
    assert exported.class_names == task.class_names
    assert exported.preprocessing == {"image_size": 64, "resize": 64}
    last = checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, last[name]) for name, value in task.state_dict().items())  # export put them back


def test_weights_depend_on_the_seed_alone(words: str) -> None:
    states = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)
        task = make_task(words, seed=seed)
        make_trainer(max_epochs=1, limit_train_batches=0, limit_val_batches=0).fit(task, datamodule=make_data())
        states.append(task.model.head.semantic_decoupling.weight_u.detach())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_bf16_mixed_trains_on_the_cpu(words: str) -> None:
    task = make_task(words)
    trainer = make_trainer(max_epochs=2, precision="bf16-mixed")
    trainer.fit(task, datamodule=make_data())
    assert "dtype bfloat16" in task.describe()
    assert all(value.dtype == torch.float32 for value in task.model.parameters())
    assert all(bool(value.isfinite().all()) for value in task.model.parameters())
    assert math.isfinite(float(trainer.callback_metrics["train/loss_epoch"]))


def test_plateau_divides_the_rate_and_a_checkpoint_holds_its_state(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    # train/loss cannot fall with a rate of 1e-30: every epoch after the first one is a plateau
    task = make_task(words, lr=1e-30, plateau_monitor="train/loss", plateau_patience=1)
    make_trainer(run, max_epochs=6).fit(task, datamodule=make_data())
    rates = [float(row["train/lr"]) for row in rows(run) if row["train/lr"]]
    expected = [1e-30, 1e-30, 1e-30, 1e-31, 1e-31, 1e-32]
    assert rates == pytest.approx(expected, rel=1e-5)
    state = checkpoint.read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert state["lr_schedulers"][0]["last_epoch"] == 6


def test_one_cycle_rises_falls_and_resumes(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    given = {"schedule": "onecycle", "lr": 1e-2, "head_lr": 2e-2}
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = make_trainer(run, max_epochs=4)
    trainer.callbacks.append(Rates())
    trainer.fit(make_task(words, **given), datamodule=make_data(counts=(80, 16, 16)))
    assert len(rates) == 20
    assert max(rates) == pytest.approx(2e-2, rel=0.05) and rates.index(max(rates)) in (2, 3)
    assert rates[0] == pytest.approx(2e-2 / 25) and rates[-1] < 1e-3

    class Stops(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    first, run = list(rates), tmp_path / "version_1"
    rates.clear()
    for stop in (True, False):
        trainer = make_trainer(run, max_epochs=4)
        trainer.callbacks += [Rates(), *([Stops()] if stop else [])]
        trainer.ckpt_path = None if stop else str(run / "checkpoints" / "last.ckpt")
        trainer.fit(make_task(words, **given), datamodule=make_data(counts=(80, 16, 16)))
    assert rates == first


def test_a_monitor_that_is_not_logged_is_named(words: str) -> None:
    with pytest.raises(ValueError, match="'val/f1' is not logged; there are .*val/mAP"):
        make_trainer(max_epochs=1).fit(make_task(words, plateau_monitor="val/f1"), datamodule=make_data())


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("64-true", "float64"), ("32-true", "float32"), ("16-mixed", "float16"), ("bf16-mixed", "bfloat16")],
)
def test_the_facts_name_the_dtype_of_the_precision(precision: str, dtype: str) -> None:
    options = TaskOptions(kind="pooling", backbone="small-cnn")
    facts = training_facts(options, precision, torch.device("cpu"), "nothing", None)
    assert facts["dtype"] == dtype and facts["precision"] == precision


def test_a_checkpoint_of_another_mode_brings_what_follows_its_mode() -> None:
    """`test --model.mode=official` on a checkpoint of mode paper measures by the paper's difficult rule."""
    built = {name: getattr(TaskOptions(words="w", mode="paper"), name) for name in ARCHITECTURE}
    entry = TrainingEntry(built, ["a"], Ingredients(None, None, None), None)
    official = TaskOptions(words="w", mode="official", loss="asymmetric")
    settled = entry.settle(official, "last.ckpt", resuming=False)
    expected = TaskOptions(words="w", mode="paper", loss="asymmetric")
    assert settled == expected and settled.difficult != official.difficult
