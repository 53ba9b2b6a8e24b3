"""Training of the demonstration's two models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.metrics import Report
from ssgrl_fast.models import build_backbone
from ssgrl_fast.studies.trials import quiet_trainer
from ssgrl_fast.training.task import SSGRLTask

BATCH = 32
# Of each, the best of three by mAP on 2,000 validation canvases after seven epochs, seed 0, the backbone in bfloat16:
# SSGRL 97.8, 97.5, 93.9 at 2e-3, 4e-3, 8e-3; pooling 89.6, 91.4, 83.5 at 1.6e-2, 3.2e-2, 6.4e-2. With more epochs the
# two come close: after eight, 98.7 (4e-3) and 97.9 (3.2e-2); after ten, 99.1 (4e-3) and 98.8 (3.2e-2).
PEAK_LR = {"ssgrl": 2e-3, "pooling": 3.2e-2}
SSGRL_SHARE = 0.62  # of the time for training; the rest is for the baseline
_WARM_UP, _PROBE = 2, 40  # steps that are not timed, and those that are, to estimate the duration of the training
_TEST = 2000


@dataclass(frozen=True)
class Pair:
    """The trained models, their test reports and what training took.

    Attributes:
        ssgrl, pooling: the tasks; ``.model`` is the network.
        reports: of "ssgrl" and "pooling" on the test canvases.
        seconds: of training, by kind.
        steps: optimizer steps of either model; ``planned`` where the time sufficed.
        data: canvases.
    """

    ssgrl: SSGRLTask
    pooling: SSGRLTask
    reports: dict[str, Report]
    seconds: dict[str, float]
    steps: int
    planned: int
    data: MultiLabelDataModule

    def test_images(self, count: int) -> Tensor:
        """The first test canvases, normalised, [count, 3, 64, 64]."""
        test = self.data.test_dataset
        assert test is not None
        return torch.stack([test[index]["image"] for index in range(min(count, len(test)))])


class Bar(Callback):
    """Shows the steps that are done, and the loss, in a progress bar.

    Args:
        progress, bar: the display, and the task of it.
    """

    def __init__(self, progress: Progress, bar: TaskID) -> None:
        self.progress, self.bar = progress, bar

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by the trainer."""
        self.progress.update(self.bar, completed=trainer.global_step, loss=f"loss {outputs['loss'].item():.3f}")


class Pace(Callback):
    """Measures the duration of a training step, from the third one on: the first two are slower than the others."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seconds_per_step = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by the trainer."""
        if trainer.global_step == _WARM_UP:
            self.began = time.perf_counter()
        elif trainer.global_step > _WARM_UP:
            self.seconds_per_step = (time.perf_counter() - self.began) / (trainer.global_step - _WARM_UP)


def affordable(planned: int, seconds: float, seconds_per_step: float) -> int:
    """How many of the planned steps fit into the seconds; at least one."""
    return max(1, min(planned, int(seconds / seconds_per_step)))


def train_pair(*, epochs: int, minutes: float, canvases: int, seed: int, backend: str, console: Console) -> Pair:
    """Train SSGRL, then global pooling + linear for as many steps, and test both.

    Args:
        epochs: of either model, if the time suffices.
        minutes: limit for the training of both.
        canvases: training canvases.
        seed: of weights and order.
        backend: of SSGRL's operations.
        console: for the progress bars.
    """
    counts = (canvases, 1, min(_TEST, max(200, canvases // 3)))
    body = build_backbone("small-cnn")  # for its normalisation; each task builds its own
    data = MultiLabelDataModule(
        "digits", counts=counts, batch_size=BATCH, eval_batch_size=100, seed=seed, mean=body.mean, std=body.std
    )
    planned = steps = epochs * -(-canvases // BATCH)
    limit = 60 * minutes * SSGRL_SHARE  # seconds, of SSGRL's training
    tasks, seconds = {}, {}
    columns = [TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as progress:
        # A first model of a few steps shows how many steps fit, so that the schedule ends with the training
        if planned > _WARM_UP + _PROBE:
            pace = Pace()
            _fit("ssgrl", data, _WARM_UP + _PROBE, seed, backend, pace)
            limit -= (_WARM_UP + _PROBE) * pace.seconds_per_step
            steps = affordable(planned, limit, pace.seconds_per_step)
        # Both models, for the same number of steps; SSGRL's timer has the last word
        for kind, name in (("ssgrl", "training SSGRL"), ("pooling", "training global pooling")):
            bar = Bar(progress, progress.add_task(name, total=steps, loss=""))
            timer = Timer(timedelta(seconds=limit) if kind == "ssgrl" else None, verbose=False)
            tasks[kind], steps = _fit(kind, data, steps, seed, backend, bar, timer)
            seconds[kind] = timer.time_elapsed("train")
        # The test canvases, once
        reports = {}
        bar_of_tests = progress.add_task("testing both", total=2, loss="")
        for kind, task in tasks.items():
            quiet_trainer().test(task, datamodule=data, verbose=False)
            assert task.report is not None
            reports[kind] = task.report
            progress.advance(bar_of_tests)
    return Pair(tasks["ssgrl"], tasks["pooling"], reports, seconds, steps, planned, data)


def _fit(
    kind: Any, data: MultiLabelDataModule, steps: int, seed: int, backend: str, *callbacks: Callback
) -> tuple[SSGRLTask, int]:
    """Train a model by one cycle of the learning rate over so many steps; returns it and the number of steps done."""
    task = SSGRLTask(
        kind=kind,
        backbone="small-cnn",
        words="glove-6b-50d" if kind == "ssgrl" else None,
        joint_dim=128,
        freeze="none",
        loss="mean",
        schedule="onecycle",
        lr=PEAK_LR[kind],
        backend=backend if kind == "ssgrl" else None,
        seed=seed,
    )
    trainer = quiet_trainer(max_epochs=-1, max_steps=steps, callbacks=list(callbacks), limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    task.model.preprocessing = data.preprocessing
    task.model.eval()
    return task, trainer.global_step
