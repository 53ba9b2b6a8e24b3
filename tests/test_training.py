"""The task: loss, modes, optimizer, checkpoints, resumption, test and export."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")

from lightning.pytorch import Trainer

from ssgrl_fast import runs
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.losses import multilabel_loss
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.training import SSGRLTask

OPTIONS: dict[str, Any] = {
    "backbone": "small-cnn",
    "freeze": "none",
    "words": "words.npz",
    "joint_dim": 16,
    "steps": 2,
    "lr": 1e-3,
}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of word vectors of the ten digits, so that no package of vectors is needed."""
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    values = torch.randn(10, 8, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("".join(f"{name} {' '.join(map(str, row))}\n" for name, row in zip(names, values, strict=True)))
    return str(path)


def make_task(words: str, **options: Any) -> SSGRLTask:
    return SSGRLTask(**{**OPTIONS, "words": words, **options})


def make_data(**options: Any) -> MultiLabelDataModule:
    return MultiLabelDataModule(**{"counts": (48, 24, 24), "batch_size": 16, **options})


def make_trainer(run: Path | None = None, *, monitor: str | None = "val/mAP", **options: Any) -> Trainer:
    logs: Any = False if run is None else runs.loggers(run)
    kept: Any = [] if run is None else [*runs.checkpoints(run, monitor), runs.BundleExport(run)]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plugins = [runs.AtomicCheckpointIO()]
    return Trainer(
        accelerator="cpu",
        logger=logs,
        callbacks=kept,
        enable_checkpointing=run is not None,
        plugins=plugins,
        log_every_n_steps=1,
        **{**quiet, "max_epochs": 2, **options},
    )


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---- loss ----


def hand_loss(logits: torch.Tensor, targets: torch.Tensor, difficult: str) -> tuple[float, int]:
    total, counted = 0.0, 0
    for scores, codes in zip(logits.tolist(), targets.tolist(), strict=True):
        for score, code in zip(scores, codes, strict=True):
            if code == 0 and difficult == "ignore":
                continue
            present = code == 1 or (code == 0 and difficult == "positive")
            probability = 1 / (1 + math.exp(-score))
            total -= math.log(probability if present else 1 - probability)
            counted += 1
    return total, counted


@pytest.mark.parametrize("difficult", ["ignore", "positive", "negative"])
def test_loss_is_eq_12_by_hand(difficult: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(-1, 2, (5, 7), generator=generator).to(torch.int8)
    assert {-1, 0, 1} == set(targets.flatten().tolist())
    total, counted = hand_loss(logits, targets, difficult)
    assert multilabel_loss(logits, targets, difficult=difficult).item() == pytest.approx(total, rel=1e-12)
    mean = multilabel_loss(logits, targets, reduction="mean", difficult=difficult)
    assert mean.item() == pytest.approx(total / counted, rel=1e-12)


def test_loss_of_reduced_precision_is_float32_and_ignored_entries_get_no_gradient() -> None:
    logits = torch.tensor([[3.0, -2.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = multilabel_loss(logits, torch.tensor([[1, 0]], dtype=torch.int8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None and logits.grad[0, 1] == 0 and logits.grad[0, 0] != 0
    nothing = multilabel_loss(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int8), reduction="mean")
    assert nothing.item() == 0


def test_loss_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"targets must be \[2, 3\]"):
        multilabel_loss(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(ValueError, match="reduction"):
        multilabel_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8), reduction="median")


# ---- options ----


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
        SSGRLTask(kind="transformer")  # type: ignore[arg-type]


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


def write_image(path: Path, names: list[str]) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16), (40 * len(names), 100, 20)).save(path)
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    path.with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")


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
    best = runs.read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["epoch"] == max(range(4), key=scores.__getitem__)
    assert runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 3
    assert list(run.glob("events.out.tfevents.*"))

    exported = SSGRL.from_pretrained(run / "bundle")
    loaded = SSGRLTask.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(exported(images), loaded(images))
    assert exported.class_names == task.class_names
    assert exported.preprocessing == {"image_size": 64, "resize": 64}
    last = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
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
    state = runs.read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert state["lr_schedulers"][0]["last_epoch"] == 6


def test_a_monitor_that_is_not_logged_is_named(words: str) -> None:
    with pytest.raises(ValueError, match="'val/f1' is not logged; there are .*val/mAP"):
        make_trainer(max_epochs=1).fit(make_task(words, plateau_monitor="val/f1"), datamodule=make_data())


# ---- resuming ----


def fit_command(words: str, parent: Path, workers: int, *more: str) -> list[str]:
    given = {
        "model.backbone": "small-cnn",
        "model.freeze": "none",
        "model.words": words,
        "model.joint_dim": "16",
        "model.lr": "1e-3",
        "model.plateau_patience": "0",
        "data.counts": "[192,16,16]",
        "data.batch_size": "8",
        "data.num_workers": str(workers),
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "3",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": str(parent),
    }
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "ssgrl_fast", "fit", *options, *more]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fit_resumes_with_the_same_losses_to_the_bit(words: str, tmp_path: Path, workers: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(fit_command(words, whole, workers), check=True, capture_output=True, env=environment)

    log = killed / "version_0" / "metrics.csv"
    process = subprocess.Popen(
        fit_command(words, killed, workers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    deadline = time.monotonic() + 240
    while not (log.is_file() and "\n1,30," in log.read_text()):  # epoch 1 has steps 24 to 47
        assert process.poll() is None, "fit ended before it could be killed"
        assert time.monotonic() < deadline, "fit made no progress"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    interrupted = [row for row in rows(killed / "version_0") if row["train/loss_step"]]
    assert 30 < len(interrupted) < 72

    subprocess.run(
        fit_command(words, killed, workers, "--ckpt_path", "last"), check=True, capture_output=True, env=environment
    )
    assert not (killed / "version_1").exists()
    expected, found = rows(whole / "version_0"), rows(killed / "version_0")
    assert sum(bool(row["train/loss_step"]) for row in expected) == 72
    assert found == expected  # every loss of every step, every metric and rate of every epoch
    one, other = (runs.read_checkpoint(folder / "version_0/checkpoints/last.ckpt") for folder in (whole, killed))
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name


def test_resuming_another_architecture_or_other_classes_is_refused(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    make_trainer(run, max_epochs=1).fit(make_task(words), datamodule=make_data())
    path = run / "checkpoints" / "last.ckpt"

    trainer = make_trainer(max_epochs=2)
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"cannot resume with another architecture: joint_dim=32 \(checkpoint: 16\)"):
        trainer.fit(make_task(words, joint_dim=32), datamodule=make_data())

    for index, names in enumerate((["one", "two"], ["two"])):
        folder = tmp_path / "images" / "test" if index else tmp_path / "images" / "train"
        folder.mkdir(parents=True)
        write_image(folder / f"{index}.png", names)
    other = MultiLabelDataModule(kind="voc", root=str(tmp_path / "images"), image_size=16, resize=16)
    trainer = make_trainer()
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"the model has the classes \[zero, one, .* the data \[one, two\]"):
        trainer.test(make_task(words), datamodule=other)


def test_a_test_rebuilds_the_network_of_its_checkpoint(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    task = make_task(words)
    trainer = make_trainer(run, max_epochs=2)
    trainer.fit(task, datamodule=make_data())
    trainer.test(task, datamodule=make_data(), verbose=False)
    assert task.report is not None
    expected = task.report.to_dict()

    # no words, another architecture and an untrained start: all of it comes from the checkpoint
    again = SSGRLTask(backbone="resnet18", freeze="none", ap_definition="voc2010")
    trainer = make_trainer()
    trainer.ckpt_path = str(run / "checkpoints" / "last.ckpt")
    trainer.test(again, datamodule=make_data(), verbose=False)
    assert again.report is not None
    found = again.report.to_dict()
    for name in ("mean_ap", "all_labels", "top_k_labels", "classes", "images", "mode", "backend", "difficult"):
        assert found[name] == expected[name], name
    assert found["details"]["model"] == "ssgrl on small-cnn"


# ---- files ----


def test_a_truncated_checkpoint_is_named(words: str, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    make_trainer(run, max_epochs=1).fit(make_task(words), datamodule=make_data())
    path = run / "checkpoints" / "last.ckpt"
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint"):
            runs.read_checkpoint(path)
    trainer = make_trainer()
    trainer.ckpt_path = str(path)
    with pytest.raises(ValueError, match=r"last\.ckpt: not a readable checkpoint"):
        trainer.fit(make_task(words), datamodule=make_data())
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"last\.ckpt: a torch file, but no training checkpoint"):
        runs.read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt: no such checkpoint"):
        runs.read_checkpoint(tmp_path / "none.ckpt")


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": {}, "payload": Touch()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: not a readable checkpoint"):
        runs.read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    writer = runs.AtomicCheckpointIO()
    writer.save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)

    def full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        writer.save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, path)
    assert torch.equal(runs.read_checkpoint(path)["state_dict"]["w"], torch.ones(1000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


KILLED_SAVE = """
import os, signal, sys, torch
from ssgrl_fast.runs import AtomicCheckpointIO
def die(checkpoint, file):
    file.write(b"half of it"); file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = die
AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, sys.argv[1])
"""


def test_a_kill_during_a_save_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    runs.AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(1000)}}, path)
    done = subprocess.run([sys.executable, "-c", KILLED_SAVE, str(path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(runs.read_checkpoint(path)["state_dict"]["w"], torch.ones(1000))
    runs.AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(1000)}}, path)
    assert torch.equal(runs.read_checkpoint(path)["state_dict"]["w"], torch.zeros(1000))
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_run_folders_are_numbered_and_found(tmp_path: Path) -> None:
    assert runs.new_run(tmp_path / "none") == tmp_path / "none" / "version_0"
    for number in (0, 2, 10):
        (tmp_path / f"version_{number}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "version_x").mkdir()
    assert runs.new_run(tmp_path) == tmp_path / "version_11"
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/best\.ckpt in a run under"):
        runs.find_checkpoint(tmp_path, "best")
    for number in (0, 2):
        (tmp_path / f"version_{number}" / "checkpoints" / "best.ckpt").touch()
    found = runs.find_checkpoint(tmp_path, "best")
    assert found == tmp_path / "version_2" / "checkpoints" / "best.ckpt"
    assert runs.run_of(found) == tmp_path / "version_2"
    elsewhere = tmp_path / "mine.ckpt"
    elsewhere.touch()
    assert runs.find_checkpoint(tmp_path, str(elsewhere)) == elsewhere
    assert runs.run_of(elsewhere) is None
    with pytest.raises(FileNotFoundError, match="gone.ckpt: no such checkpoint"):
        runs.find_checkpoint(tmp_path, str(tmp_path / "gone.ckpt"))
