"""Run folders: where `fit` puts its checkpoints and logs, and where `test`, `predict` and a resumed `fit` find them.

runs/photos/version_3/
    config.yaml              what was run
    metrics.csv              one row a logged step or epoch (losses in full precision)
    events.out.tfevents...   the same for TensorBoard
    checkpoints/last.ckpt    after every epoch
    checkpoints/best.ckpt    after the best epoch by the monitored metric
    bundle/                  the exported model (model.save_pretrained)
    origin.json              how word vectors and graph were made (ssgrl_fast.labels.origin)
    transfer.json            what was carried over from another model, where one was started from
    report_test.json, .md    written by `test`
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from ssgrl_fast._utils.files import write_json
from ssgrl_fast.training.checkpoint import read_checkpoint
from ssgrl_fast.training.distributed import whole_task
from ssgrl_fast.training.facts import LAST_EPOCH

_VERSION = re.compile(r"version_(\d+)$")


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV log, continued by a resumed run: rows from `resume_step` on are dropped, earlier rows kept.

    Args:
        run: the run folder; the log is `metrics.csv` in it.
        resume_step: optimizer steps the checkpoint has seen, or None for a new run.
    """

    def __init__(self, run: Path, *, resume_step: int | None = None) -> None:
        super().__init__(save_dir=run.parent, name="", version=_number(run), flush_logs_every_n_steps=1)
        self._kept: list[dict[str, Any]] = []
        if resume_step is not None and getattr(rank_zero_only, "rank", 0) == 0:  # the other processes write no log
            self._kept = _rows_before(run / "metrics.csv", resume_step)
            (run / "metrics.csv").unlink(missing_ok=True)

    @property
    def experiment(self) -> Any:
        """The writer, which on the first call receives the rows kept from the interrupted run."""
        writer = super().experiment
        if self._kept:
            kept, self._kept = self._kept, []
            writer.metrics = kept + writer.metrics
            writer.save()
        return writer

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Nothing of an epoch that has a checkpoint may be missing from the log."""
        self.save()


def _rows_before(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = [{key: value for key, value in row.items() if value not in ("", None)} for row in csv.DictReader(file)]
    return [row for row in rows if "step" in row and int(row["step"]) < step]


def new_run(parent: str | Path) -> Path:
    """A new folder `version_N` under `parent`, N one above the highest there is; no other run gets the same.

    Of several processes of one run the first one makes it, and the others, which write nothing, get some path.

    Raises:
        OSError: it cannot be made.
    """
    if getattr(rank_zero_only, "rank", 0) != 0:
        return Path(parent) / "version_0"
    Path(parent).mkdir(parents=True, exist_ok=True)
    while True:
        run = Path(parent) / f"version_{max((number for number, _ in _versions(Path(parent))), default=-1) + 1}"
        try:
            run.mkdir()
        except FileExistsError:  # another run was faster
            if not run.is_dir():
                raise
        else:
            return run


def newest_run(parent: str | Path) -> Path:
    """The folder `version_N` under `parent` with the highest N.

    Raises:
        FileNotFoundError: there is none.
    """
    runs = _versions(Path(parent))
    if not runs:
        raise FileNotFoundError(f"{parent}: no run folder version_N in it")
    return max(runs)[1]


def find_checkpoint(parent: str | Path, which: str | None = None) -> Path:
    """The checkpoint that `which` names.

    Args:
        parent: folder of a recipe's runs (`runs/photos`).
        which: "best" or "last" of the newest run under `parent` that has one; the path of a checkpoint file; or None:
            the best of the newest run with a checkpoint, or its last where it has no best (no validation images).

    Raises:
        FileNotFoundError: there is none.
    """
    if which not in ("best", "last", None):
        if not Path(which).is_file():
            raise FileNotFoundError(f"{which}: no such checkpoint (ckpt_path is 'best', 'last' or a file)")
        return Path(which)
    for _, run in sorted(_versions(Path(parent)), reverse=True):
        for name in ("best", "last") if which is None else (which,):
            path = run / "checkpoints" / f"{name}.ckpt"
            if path.is_file():
                return path
    wanted = "checkpoint" if which is None else f"checkpoints/{which}.ckpt"
    raise FileNotFoundError(f"no {wanted} in a run under {parent}: run fit first, or give ckpt_path a file")


def run_of(checkpoint: Path) -> Path | None:
    """The run folder a checkpoint lies in, or None for a file that lies elsewhere."""
    run = checkpoint.resolve().parent.parent
    return run if checkpoint.parent.name == "checkpoints" and _VERSION.match(run.name) else None


def _number(run: Path) -> int:
    match = _VERSION.match(run.name)
    if match is None:
        raise ValueError(f"a run folder is called version_N, got {run}")
    return int(match.group(1))


def _versions(parent: Path) -> list[tuple[int, Path]]:
    if not parent.is_dir():
        return []
    folders = [path for path in parent.iterdir() if path.is_dir() and _VERSION.match(path.name)]
    return [(_number(path), path) for path in folders]


def loggers(run: Path, *, resume_step: int | None = None) -> list[Logger]:
    """The CSV and the TensorBoard log of a run; a resumed one drops what comes after its checkpoint from both."""
    board = TensorBoardLogger(save_dir=run.parent, name="", version=_number(run), purge_step=resume_step)
    return [ResumableCSVLogger(run, resume_step=resume_step), board]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, but an epoch whose metric is undefined (NaN) is never the best; Lightning takes the first one."""

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint, as Lightning's own class has it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether the epoch is to be saved."""
        defined = current is not None and not bool(torch.isnan(torch.as_tensor(current)))
        return defined and super().check_monitor_top_k(trainer, current)


def checkpoints(run: Path, monitor: str | None, mode: str = "max") -> list[Callback]:
    """Callbacks that keep `last.ckpt` of every epoch and `best.ckpt` of the best one, both at the end of an epoch.

    Args:
        run: the run folder.
        monitor: name of the logged metric that decides which epoch is best, or None to keep the last only.
        mode: "max" or "min".
    """
    folder = run / "checkpoints"
    common: dict[str, Any] = {
        "dirpath": folder,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    best = [BestCheckpoint(filename="best", monitor=monitor, mode=mode, **common)] if monitor else []
    return [*best, ModelCheckpoint(filename="last", monitor=None, **common)]


class RunRecord(Callback):
    """When a fit starts, writes what is known of the model's origin into the run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write origin.json for a network with words and graph, transfer.json for one that another model started."""
        if pl_module.model.origin is not None:
            write_json(self.run / "origin.json", pl_module.model.origin)
        if pl_module.transfer is not None:
            write_json(self.run / "transfer.json", pl_module.transfer)


class BundleExport(Callback):
    """When a fit ends, writes the model of its best checkpoint (or of its last epoch) to `<run>/bundle`."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Export from the first process; the others hand in their parts of weights that are sharded."""
        recipe, whole = pl_module.recipe(), whole_task(pl_module, trainer)
        if whole is not None:
            self._export(trainer, whole, recipe)

    def _export(self, trainer: Trainer, pl_module: Any, recipe: dict[str, str]) -> None:
        """Load best.ckpt where there is one, export, and put the trained weights back."""
        best = self.run / "checkpoints" / "best.ckpt"
        current = None
        if best.is_file():
            current = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
            pl_module.load_state_dict(read_checkpoint(best)["state_dict"])
        chosen = "best" if current is not None else "last"
        if current is None:
            recipe = {**recipe, "selected on": LAST_EPOCH}
        pl_module.model.recipe = recipe
        pl_module.model.save_pretrained(self.run / "bundle")
        if current is not None:
            pl_module.load_state_dict(current)
        rank_zero_info(f"model of the {chosen} epoch exported to {self.run / 'bundle'}")
        if current is None and (watching := _watching(trainer)) is not None:
            rank_zero_warn(
                f"{watching.monitor} was undefined in every epoch: no class has a positive among the validation "
                "images. It chose no epoch: the exported model is that of the last one, and there is no best.ckpt"
            )


def _watching(trainer: Trainer) -> BestCheckpoint | None:
    """The callback that keeps the best epoch, or None."""
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, BestCheckpoint)), None)
