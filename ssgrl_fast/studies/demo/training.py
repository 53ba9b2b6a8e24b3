"""Training of the demonstration's two models."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.metrics import Report
from ssgrl_fast.models import build_backbone
from ssgrl_fast.studies.trials import quiet_trainer
from ssgrl_fast.training.task import SSGRLTask

BATCH = 32
# The best of three each by mAP on 2,000 validation canvases after seven epochs, seed 0, the backbone in bfloat16:
# SSGRL 97.8, 97.5, 93.9 at 2e-3, 4e-3, 8e-3; pooling 89.6, 91.4, 83.5 at 1.6e-2, 3.2e-2, 6.4e-2. With more epochs the
# two come close: after eight, 98.7 (4e-3) and 97.9 (3.2e-2); after ten, 99.1 (4e-3) and 98.8 (3.2e-2).
PEAK_LR = {"ssgrl": 2e-3, "pooling": 3.2e-2}
SSGRL_SHARE = 0.62  # of the time for training; the baseline has the rest
_PROBE = 40  # steps after which the duration of the whole training is estimated
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


class OneCycle(Callback):
    """The learning rate of each step: up by a half cosine over the first 15 % of the steps, down to zero after it.

    After a few steps the whole duration is estimated; where it would pass the limit, the steps that remain are as many
    as fit, and the schedule is drawn out over those.

    Args:
        peak: highest learning rate.
        steps: of the whole training.
        seconds: limit of its duration; None: no limit.
        progress, bar: the bar that is moved on.
    """

    def __init__(self, peak: float, steps: int, seconds: float | None, progress: Progress, bar: TaskID) -> None:
        self.peak, self.steps, self.seconds = peak, steps, seconds
        self.progress, self.bar = progress, bar
        self.began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the learning rate, and settle the number of steps once their speed is known."""
        step = trainer.global_step
        if step == 2:  # the first steps are slower than the others
            self.began = time.perf_counter()
        elif step == 2 + _PROBE and self.seconds is not None:
            each = (time.perf_counter() - self.began) / _PROBE
            self.steps = max(step + 1, min(self.steps, int(self.seconds / each)))
            self.progress.update(self.bar, total=self.steps)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = one_cycle(step, self.steps, self.peak)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar on, and stop where the steps are done."""
        self.progress.update(self.bar, completed=trainer.global_step, loss=f"loss {outputs['loss'].item():.3f}")
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


def one_cycle(step: int, steps: int, peak: float, warmup: float = 0.15) -> float:
    """Learning rate of step 0 … steps - 1: peak/25 → peak over the share ``warmup``, then → 0, half cosines both."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        low = peak / 25
        return low + (peak - low) * _half_cosine(step / rise)
    return peak * (1 - _half_cosine(min(1.0, (step - rise) / max(1.0, steps - rise))))


def _half_cosine(share: float) -> float:
    return float(0.5 - 0.5 * torch.cos(torch.tensor(share * torch.pi, dtype=torch.float64)))


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
    planned = epochs * -(-canvases // BATCH)
    tasks, seconds, steps = {}, {}, planned
    columns = [TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as progress:
        for kind, said in (("ssgrl", "training SSGRL"), ("pooling", "training global pooling")):
            bar = progress.add_task(said, total=steps, loss="")
            limit = 60 * minutes * SSGRL_SHARE if kind == "ssgrl" else None
            cycle = OneCycle(PEAK_LR[kind], steps, limit, progress, bar)
            began = time.perf_counter()
            tasks[kind] = _fit(kind, data, cycle, epochs, seed, backend)
            seconds[kind] = time.perf_counter() - began
            steps = cycle.steps
        reports = {}
        bar = progress.add_task("testing both", total=2, loss="")
        for kind, task in tasks.items():
            quiet_trainer().test(task, datamodule=data, verbose=False)
            assert task.report is not None
            reports[kind] = task.report
            progress.advance(bar)
    return Pair(tasks["ssgrl"], tasks["pooling"], reports, seconds, steps, planned, data)


def _fit(kind: Any, data: MultiLabelDataModule, cycle: OneCycle, epochs: int, seed: int, backend: str) -> SSGRLTask:
    task = SSGRLTask(
        kind=kind,
        backbone="small-cnn",
        words="glove-6b-50d" if kind == "ssgrl" else None,
        joint_dim=128,
        freeze="none",
        loss="mean",
        schedule="constant",
        lr=cycle.peak,
        backend=backend if kind == "ssgrl" else None,
        seed=seed,
    )
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[cycle], limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    task.model.preprocessing = data.preprocessing
    task.model.eval()
    return task
