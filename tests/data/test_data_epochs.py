"""Order and randomness are functions of (seed, epoch, index): base, sampler, workers, and resumption under
Lightning."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pictures import Colours
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ssgrl_fast.data.base import MultiLabelDataset, sample_generator
from ssgrl_fast.data.errors import BrokenImage
from ssgrl_fast.data.sampler import EpochSampler, LazyLoader
from ssgrl_fast.data.voc import PascalVOC


def _epoch(loader: DataLoader[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    """(index, random numbers) of every sample of an epoch, in order."""
    return [
        (int(index), image[:, 0, 1].tolist())
        for batch in loader
        for index, image in zip(batch["index"], batch["image"], strict=True)
    ]


# ---- base --------------------------------------------------------------------------------------------------------


def test_a_sample_depends_on_seed_epoch_and_index() -> None:
    dataset = Colours(seed=5)
    dataset.set_epoch(2)
    expected = torch.rand(3, generator=sample_generator(5, 2, 7))
    torch.manual_seed(0)
    first = dataset[7]
    assert torch.equal(first["image"][:, 0, 1], expected)
    assert torch.equal(dataset[7]["image"], first["image"])
    assert first["index"] == 7 and first["target"].tolist() == [-1, 1] and first["target"].dtype == torch.int8
    values = {float(torch.rand((), generator=sample_generator(*key))) for key in np.ndindex(4, 4, 4)}
    assert len(values) == 64


def test_select_keeps_rows_together_and_epochs_apart() -> None:
    dataset = Colours()
    part = dataset.select([7, 2], transform=lambda image, _: torch.tensor(image.getpixel((0, 0))))
    assert part.ids == ["c7", "c2"] and len(part) == 2 and len(dataset) == 10
    assert part.labels.tolist() == dataset.labels[[7, 2]].tolist()
    assert part[0]["image"].tolist() == [7, 0, 0] and part[1]["index"] == 1
    part.set_epoch(3)
    assert (part.epoch, dataset.epoch) == (3, 0)
    with pytest.raises(ValueError, match="at least one index"):
        dataset.select([])
    with pytest.raises(IndexError, match=r"0 .. 9, got -1 .. 4"):
        dataset.select([4, -1])


def test_copies_and_pickles_give_the_same_samples() -> None:
    dataset = Colours(seed=1)
    dataset.set_epoch(4)
    for twin in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert twin.epoch == 4 and torch.equal(twin[3]["image"], dataset[3]["image"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.zeros(2, 2)}, TypeError, "labels must be int8"),
        ({"labels": torch.zeros(2, 3, dtype=torch.int8)}, ValueError, r"\[2 ids, 2 classes\], got \[2, 3\]"),
        ({"labels": torch.full((2, 2), 2, dtype=torch.int8)}, ValueError, "labels must be 1, 0, -1 or -2"),
        ({"class_names": ["a", "a"]}, ValueError, r"\['a'\] repeated"),
        ({"class_names": ["a", ""]}, ValueError, "non-empty"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"ids": [], "labels": torch.zeros(0, 2, dtype=torch.int8)}, ValueError, "at least one image"),
    ],
)
def test_what_makes_no_data_set(change: dict[str, Any], error: type[Exception], message: str) -> None:
    class Bare(Colours):
        __init__ = MultiLabelDataset.__init__  # type: ignore[assignment]

    fine = {"class_names": ["a", "b"], "labels": torch.zeros(2, 2, dtype=torch.int8), "ids": ["x", "y"]}
    assert len(Bare(**fine)) == 2
    with pytest.raises(error, match=message):
        Bare(**(fine | change))


def test_wrong_use() -> None:
    dataset = Colours(transform=None)
    with pytest.raises(ValueError, match="Colours needs a transform"):
        dataset[0]
    with pytest.raises(TypeError, match="with_normalisation needs"):
        dataset.with_normalisation((0, 0, 0), (1, 1, 1))
    for index in (-1, 10):
        with pytest.raises(IndexError, match=f"0 .. 9, got {index}"):
            dataset[index]
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        dataset.set_epoch(-1)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        EpochSampler(dataset, -1)


# ---- sampler and loader ----------------------------------------------------------------------------------------------


def test_sampler_order_is_a_function_of_seed_and_epoch() -> None:
    dataset = Colours(50)
    orders = {}
    for seed in (0, 1):
        sampler = EpochSampler(dataset, seed)
        for epoch in (0, 1, 2):
            sampler.set_epoch(epoch)
            torch.manual_seed(epoch)
            state = torch.get_rng_state()
            orders[seed, epoch] = tuple(sampler)
            assert torch.equal(torch.get_rng_state(), state)
            assert sorted(orders[seed, epoch]) == list(range(50)) and dataset.epoch == epoch
    assert len(set(orders.values())) == 6
    late = EpochSampler(Colours(50), 1)
    late.set_epoch(2)
    assert tuple(late) == orders[1, 2]
    assert list(EpochSampler(dataset, shuffle=False)) == list(range(50)) and len(late) == 50


@pytest.mark.parametrize(("context", "several"), [("fork", 2), ("spawn", 1)])
def test_samples_do_not_depend_on_workers(context: str, several: int) -> None:
    epochs = {}
    for workers in (0, several):
        dataset = Colours(seed=3)
        sampler = EpochSampler(dataset, 3)
        loader = LazyLoader(
            dataset,
            batch_size=4,
            sampler=sampler,
            num_workers=workers,
            multiprocessing_context=context if workers else None,
            persistent_workers=workers > 0,
        )
        for epoch in (0, 1, 5):
            sampler.set_epoch(epoch)
            epochs[workers, epoch] = _epoch(loader)
        del loader
    for epoch in (0, 1, 5):
        assert epochs[0, epoch] == epochs[several, epoch] and len(epochs[0, epoch]) == 10
    assert epochs[0, 0] != epochs[0, 1]


def test_loader_starts_at_the_first_batch_asked_for() -> None:
    dataset = Colours()
    sampler = EpochSampler(dataset)
    loader = LazyLoader(dataset, batch_size=5, sampler=sampler, num_workers=1)
    early = iter(loader)
    sampler.set_epoch(6)
    seen = [index for batch in early for index in batch["index"].tolist()]
    assert seen == list(sampler)


def test_a_broken_image_keeps_its_name_through_a_worker(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 no picture")
    loader = DataLoader(PascalVOC(tmp_path), batch_size=1, num_workers=1)
    with pytest.raises(BrokenImage, match="a.jpg"):
        next(iter(loader))


# ---- resumption ------------------------------------------------------------------------------------------------------


class _Recorder(LightningModule):
    """A model whose loss depends on order and augmentation; keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.seen: list[tuple[int, list[int], float]] = []

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        logits = self.layer(batch["image"][:, :, 0, 1])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, (batch["target"] == 1).float())
        self.seen.append((self.current_epoch, batch["index"].tolist(), loss.item()))
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.log("val", self.layer(batch["image"][:, :, 0, 1]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.05)


class _Kill(Callback):
    """Ends a run in the middle of an epoch, as an interrupt would."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2 and trainer.global_step % 3 == 2:
            raise RuntimeError("killed")


def _run(folder: Path, workers: int, *, kill: bool = False, resume: Path | None = None) -> list[Any]:
    dataset = Colours(seed=9)
    train = LazyLoader(
        dataset,
        batch_size=4,
        sampler=EpochSampler(dataset, 9),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(9),
    )
    checkpoints = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[checkpoints, *([_Kill()] if kill else [])],
    )
    model = _Recorder()
    if kill:
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(model, train, DataLoader(Colours(), batch_size=5))
    else:
        trainer.fit(model, train, DataLoader(Colours(), batch_size=5), ckpt_path=resume)
    return model.seen


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
        yield


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path, workers: int) -> None:
    whole = _run(tmp_path / "whole", workers)
    killed = _run(tmp_path / "killed", workers, kill=True)
    assert len(whole) == 12 and len(killed) == 8 and whole[:8] == killed
    resumed = _run(tmp_path / "resumed", workers, resume=tmp_path / "killed" / "epoch=1.ckpt")
    assert resumed == whole[6:]
    assert len({tuple(index for _, batch, _ in whole[3 * e : 3 * e + 3] for index in batch) for e in range(4)}) == 4
