"""Runs that one process and two make alike, for tests/training/test_distributed.py.

As a script, ``distributed_runs.py RANK PROCESSES FOLDER NAMES…``, it is one of several processes: it makes the runs of
these names and leaves what it saw in FOLDER/RANK.pt. They meet through a file, so no port has to be free.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from published_network import published_network
from small_runs import make_data, make_task, write_words
from small_sets import NAMES, make_shards, make_table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import binary_cross_entropy_with_logits

import ssgrl_fast as sf
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.digits import CLASS_NAMES
from ssgrl_fast.data.features import cache_splits
from ssgrl_fast.metrics import AveragePrecision, MeanLoss, PrecisionRecallF1
from ssgrl_fast.models import build_backbone
from ssgrl_fast.published.swapped import Swapped
from ssgrl_fast.training import checkpoint, runs
from ssgrl_fast.training.averaging import AveragedWeights

BATCH, COUNTS = 6, (13, 7, 9)  # a step's images in all; 13 = 2·6 + 1: in the last step all but one process have none
VALIDATED, SIZE = 7, 32  # images of the table's 20 for training; pixels
EPOCHS, STEPS = 2, 6
HANDED_ON: dict[str, Any] = {
    "freeze": "all",
    "optimizer": "adamw",
    "lr": 1e-4,
    "schedule": "constant",
    "averaged": True,
}


class Seen(Callback):
    """The loss and the metrics of a run, and the first step's gradients."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self.epochs: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = {name: whole(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss_step"]))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class Stops(Callback):
    """Ends a run after its first epoch."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 0


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor, put together from the processes where it is spread over them."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def with_difficult(data: MultiLabelDataModule) -> MultiLabelDataModule:
    """Some entries of the training and validation labels become difficult, unevenly over the images."""
    for dataset in (data.train_dataset, data.val_dataset):
        assert dataset is not None
        for row in range(0, len(dataset), 3):
            dataset.labels[row, : 1 + row % 5] = 0
    return data


def images(folder: Path, **batches: int) -> MultiLabelDataModule:
    """Photographs where the folder or its parent has some, mirrored in half of the epochs; else canvases of digits."""
    shape: dict[str, Any] = {"image_size": SIZE, "resize": SIZE, "crops": [SIZE], "flip": True}
    for kind, place in (("csv", folder.parent / "table"), ("shards", folder / "shards")):
        if place.is_dir():
            return MultiLabelDataModule(kind, str(place), val_fraction=VALIDATED / 20, **shape, **batches)
    return make_data(counts=COUNTS, **batches)


def fit(
    folder: Path,
    processes: int,
    strategy: str,
    *,
    averaged: bool = False,
    stops: bool = False,
    precision: Any = "32-true",
    **options: Any,
) -> dict[str, Any]:
    """Train by a strategy on so many processes, in a run folder, and test; go on where it stopped before."""
    words, run = write_words(folder / "words.txt", [*CLASS_NAMES, *NAMES]), folder / "version_0"
    last = run / "checkpoints" / "last.ckpt"
    seen = Seen()
    extra: list[Callback] = [*([AveragedWeights(decay=0.8)] if averaged else []), *([Stops()] if stops else [])]
    resumed = checkpoint.read_checkpoint(last)["global_step"] if last.is_file() else None
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        precision=precision,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        plugins=[checkpoint.AtomicCheckpointIO()],
        logger=runs.loggers(run, resume_step=resumed),
        callbacks=[seen, *extra, *runs.checkpoints(run, "val/mAP"), runs.BundleExport(run)],
        **quiet,
    )
    trainer.ckpt_path = str(last) if last.is_file() else None
    task, batches = make_task(words, **options), {"batch_size": BATCH // processes, "eval_batch_size": 3}
    trainer.fit(task, datamodule=with_difficult(images(folder, **batches)))
    weights = {name: whole(value) for name, value in task.state_dict().items()}
    found = {"losses": seen.losses, "gradients": seen.gradients, "epochs": seen.epochs, "weights": weights}
    if not stops:
        trainer.ckpt_path = None
        trainer.test(task, datamodule=images(folder, **batches), verbose=False)
        assert task.report is not None
        found["report"] = task.report.to_dict()
    return found


def plain(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """The summed loss of the paper, every layer trained; a backbone without BatchNorm."""
    return fit(folder, processes, strategy, backbone="timm:test_convnext", pretrained=False, lr=1e-4)


def exact(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """The same in float64, where rounding cannot hide a wrong share."""
    return fit(folder, processes, strategy, backbone="timm:test_convnext", pretrained=False, precision="64-true")


def averaged(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """The mean loss, cached features, one-cycle and averaged weights; in one go, and stopped and resumed."""
    given = {"freeze": "all", "loss": "mean", "schedule": "onecycle", "averaged": True}
    found = {}
    if not (folder / "table").is_dir() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        make_table(folder / "table")
    if processes > 1:
        torch.distributed.barrier()
    for name, stops in (("whole", (False,)), ("parts", (True, False))):
        place = folder / name
        place.mkdir(exist_ok=True)
        for stop in stops:
            part = fit(place, processes, strategy, stops=stop, cache_features=str(folder / "features"), **given)
            found[f"{name}, stopped" if stop else name] = part
    return found


def cached(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """What each process does for the features of two parts, in order: compute or read them, and meet the others."""
    torch.manual_seed(0)
    body, done = build_backbone("small-cnn").requires_grad_(False).eval(), list[str]()
    body.register_forward_hook(lambda *_: done.append("computed"))

    def meet(name: str) -> None:
        torch.distributed.barrier()
        done.append("met")

    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu"), barrier=meet),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        precision="32-true",
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        local_rank=int(os.environ["LOCAL_RANK"]),
    )
    if trainer.local_rank == 0:
        make_table(folder / "table")
        (folder / "digits").mkdir()
    torch.distributed.barrier()
    data = images(folder / "digits", batch_size=BATCH, eval_batch_size=20)  # each view of a part is one batch
    same = {"prepare": lambda backbone: backbone, "progress": False}
    parts = cache_splits(data, body, folder / "features", trainer=trainer, name="small-cnn", **same)
    return {"done": done, "maps": [item["features"] for part in parts.values() for item in part]}


def sharded(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """Photographs in tar shards, their labels in a table: 13 for training, of three shards."""
    if not (folder / "shards").is_dir() and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        make_shards(folder / "shards")
    if processes > 1:
        torch.distributed.barrier()
    return fit(folder, processes, strategy, backbone="timm:test_convnext", pretrained=False, precision="64-true")


def modern(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """AdamW and the asymmetric loss; the official mode, whose U^r no step trains."""
    options = {"optimizer": "adamw", "weight_decay": 0.1, "loss": "asymmetric", "difficult": "positive"}
    return fit(folder, processes, strategy, freeze="all", mode="official", schedule="cosine", lr=1e-4, **options)


def stopped(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """One epoch of a run that another strategy is to go on with."""
    return fit(folder, processes, strategy, stops=True, **HANDED_ON)


def normalised(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """BatchNorm that trains: the processes normalise apart, and have to validate alike."""
    return fit(folder, processes, strategy, loss="mean", schedule="constant")


def swapped(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """One step of an accelerated network in the published layout, by PyTorch's own wrappers."""
    network = published_network()
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(6, 3, 16, 16, generator=generator, dtype=torch.float64)
    targets = (torch.rand(6, 7, generator=generator) < 0.4).double()
    rank = torch.distributed.get_rank() if processes > 1 else 0
    wrapped: Any = sf.accelerate(network, verbose=False)
    if strategy == "ddp":  # the published reset gate never reads the weights of fc_eq4_u
        wrapped = torch.nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)
    elif strategy == "fsdp2":
        for part in (network.resnet_101, network.word_semantic, network.graph_net, network.classifiers, network):
            fully_shard(part, mesh=init_device_mesh("cpu", (processes,)))
    logits = wrapped(pixels[rank::processes])
    loss = processes * binary_cross_entropy_with_logits(logits, targets[rank::processes], reduction="sum")
    loss.backward()
    gradients = {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None}
    total = loss.detach().clone()
    if processes > 1:
        torch.distributed.all_reduce(total)
    kept = [name for name, module in network.named_modules() if isinstance(module, Swapped)]
    return {"losses": [float(total) / processes], "gradients": gradients, "kept": kept}


def metrics(folder: Path, processes: int, strategy: str = "auto") -> dict[str, Any]:
    """Metrics of five images, all of them on the first process, by the meters that training uses."""
    generator = torch.Generator().manual_seed(4)
    scores, codes = torch.randn(5, 3, generator=generator), torch.randint(-1, 2, (5, 3), generator=generator)
    mine = 5 if processes == 1 or torch.distributed.get_rank() == 0 else 0
    ap, prf = AveragePrecision(3, difficult="ignore"), PrecisionRecallF1(3, difficult="ignore")
    loss = MeanLoss()
    for meter in (ap, prf):
        meter.update(scores[:mine], codes[:mine].to(torch.int8))
    loss.update(scores[:mine].sum(), mine)
    report = ap.report(["a", "b", "c"]).to_dict()
    return {"values": {**ap.compute(), **prf.compute(), "loss": loss.compute()}, "report": report}


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (plain, exact, averaged, cached, sharded, modern, stopped, normalised, swapped, metrics)
}


def main(rank: int, processes: int, folder: Path, names: list[str]) -> None:
    """Be one of several processes."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=processes)
    found = {}
    for name in names:
        run, strategy = name.split("-")
        place = folder / name
        place.mkdir(exist_ok=True)
        found[name] = RUNS[run](place, processes, strategy)
        print(f"{name} done", flush=True)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("error", message="It is recommended to use `self.log.*sync_dist")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
