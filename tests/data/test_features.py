"""Cached features of a frozen backbone: the same results as images, whole or not there at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lightning", reason="the training extra is not installed")

from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from ssgrl_fast.data import features
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.digits import DigitCanvases
from ssgrl_fast.data.feature_module import FeatureDataModule
from ssgrl_fast.data.features import CachedFeatures, cache_features
from ssgrl_fast.data.transforms import eval_transform, train_transform
from ssgrl_fast.data.voc import PascalVOC
from ssgrl_fast.models.backbones import Backbone, build_backbone, freeze_backbone
from ssgrl_fast.testing import relative_error
from ssgrl_fast.training.task import SSGRLTask

NAMES = ["ace", "king", "queen"]
SIZE = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A flat VOC folder of random images: 12 to train, 5 to test."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (30, 20 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
            chosen = [name for name in NAMES if random.random() < 0.6] or [NAMES[index % 3]]
            objects = "".join(f"<object><name>{name}</name></object>" for name in chosen)
            (folder / f"{index}.xml").write_text(f"<annotation>{objects}</annotation>")
    return tmp_path / "images"


@pytest.fixture
def words(tmp_path: Path) -> str:
    values = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{name} {' '.join(map(str, row))}\n" for name, row in zip(NAMES, values, strict=True)))
    return str(path)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    return freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")


def training_images(root: Path, **options: Any) -> PascalVOC:
    transform = train_transform(SIZE, resize=SIZE, crops=[SIZE], **{"flip": True, **options})
    return PascalVOC(root, "train", classes=NAMES, transform=transform, seed=5)


def evaluation_images(root: Path, **options: Any) -> PascalVOC:
    return PascalVOC(root, "test", classes=NAMES, transform=eval_transform(SIZE, **options))


def cache(images: Any, backbone: nn.Module, folder: Path, **options: Any) -> CachedFeatures:
    return cache_features(images, backbone, folder, name="small-cnn", progress=False, **options)


class Counting(nn.Module):
    """A backbone that counts its images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return self.inner(images)

    def __deepcopy__(self, memo: object) -> Counting:
        return self  # the images of a copy count too


def test_items_equal_the_backbone_on_the_images_in_every_epoch(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    images = training_images(root)
    cached = cache(training_images(root), backbone, tmp_path / "store", batch_size=1)
    assert (len(cached), cached.class_names, cached.ids) == (12, NAMES, images.ids)
    assert torch.equal(cached.labels, images.labels)
    mirrored = []
    for epoch in range(4):
        images.set_epoch(epoch)
        cached.set_epoch(epoch)
        for index in range(12):
            image, item = images[index], cached[index]
            with torch.no_grad():
                expected = backbone(image["image"][None])[0]
            assert torch.equal(item["features"], expected), (epoch, index)
            assert torch.equal(item["target"], image["target"]) and item["index"] == index
            plain = cached._open("plain")[index]
            mirrored.append(not np.array_equal(item["features"].numpy(), plain))
    assert 10 < sum(mirrored) < 38  # of 48, with probability one half


def test_digit_canvases_without_a_transform_are_cached(backbone: Backbone, tmp_path: Path) -> None:
    canvases = DigitCanvases("val", 3, occlusion=1.0).with_normalisation(backbone.mean, backbone.std)
    cached = cache(canvases, backbone, tmp_path)
    for index in range(3):
        with torch.no_grad():
            expected = backbone(canvases[index]["image"][None])[0]
        torch.testing.assert_close(cached[index]["features"], expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_computed_twice(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    counting = Counting(backbone)
    cache(training_images(root), counting, tmp_path / "store")
    assert counting.seen == 2 * 12
    cache(training_images(root), counting, tmp_path / "store")
    cache(training_images(root), counting, tmp_path / "store", batch_size=3)
    assert counting.seen == 2 * 12
    cache(evaluation_images(root), counting, tmp_path / "store")
    assert counting.seen == 2 * 12 + 5  # an evaluation transform has one view


def test_a_network_in_training_mode_is_evaluated_and_left_in_it(root: Path, tmp_path: Path) -> None:
    network = build_backbone("small-cnn", pretrained=False).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    cache(evaluation_images(root), network, tmp_path)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_every_part_of_the_key_counts(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def folder(images: Any, network: nn.Module = backbone, **options: Any) -> str:
        return cache(images, network, store, **options).store.name

    first = folder(evaluation_images(root))
    assert folder(evaluation_images(root)) == first
    others = {
        folder(evaluation_images(root, resize=SIZE)),
        folder(evaluation_images(root, mean=(0.1, 0.2, 0.3))),
        folder(training_images(root)),
        folder(training_images(root, flip=False)),
        folder(evaluation_images(root).select([0, 1, 2, 3])),
        folder(evaluation_images(root).select([1, 0, 2, 3, 4])),
        folder(evaluation_images(root), precision="bf16-mixed"),
        cache_features(evaluation_images(root), backbone, store, name="another", progress=False).store.name,
    }
    with torch.no_grad():
        next(iter(backbone.parameters())).flatten()[0].add_(1e-3)
    others.add(folder(evaluation_images(root)))
    Image.new("RGB", (9, 9)).save(root / "test" / "3.png")
    others.add(folder(evaluation_images(root)))
    assert len(others) == 10 and first not in others


def test_a_file_changed_in_place_is_computed_anew(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    before = cache(evaluation_images(root), backbone, tmp_path / "store")
    path = root / "test" / "0.png"
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert cache(evaluation_images(root), backbone, tmp_path / "store").store != before.store


def test_embedded_images_are_told_apart_by_their_pixels(backbone: Backbone, tmp_path: Path) -> None:
    def canvases(seed: int) -> DigitCanvases:
        return DigitCanvases("val", 4, size=SIZE, canvas_seed=seed, transform=eval_transform(SIZE, resize=SIZE))

    stores = [cache(canvases(seed), backbone, tmp_path).store for seed in (0, 0, 1)]
    assert stores[0] == stores[1] != stores[2]


def test_random_crops_are_refused(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    images = PascalVOC(root, "train", classes=NAMES, transform=train_transform(SIZE))
    with pytest.raises(ValueError, match=f"resize and crops must be size = {SIZE}, got train_transform"):
        cache(images, backbone, tmp_path)
    images = PascalVOC(root, "train", classes=NAMES, transform=lambda image, generator: torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="cached features need a train_transform or an eval_transform"):
        cache(images, backbone, tmp_path)


def test_a_part_keeps_its_rows_and_has_its_own_epoch(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    cached = cache(training_images(root), backbone, tmp_path)
    part = cached.select([7, 2, 5], flip=False)
    part.set_epoch(3)
    cached.set_epoch(1)
    assert part.epoch == 3
    assert part.ids == [cached.ids[index] for index in (7, 2, 5)]
    assert torch.equal(part.labels, cached.labels[[7, 2, 5]])
    for place, index in enumerate((7, 2, 5)):
        assert np.array_equal(part[place]["features"].numpy(), cached._open("plain")[index])
    inner = part.select([2])
    assert np.array_equal(inner[0]["features"].numpy(), cached._open("plain")[5])
    with pytest.raises(ValueError, match="holds no mirrored view"):
        cache(evaluation_images(root), backbone, tmp_path).select([0], flip=True)
    with pytest.raises(IndexError, match=r"index must be in 0 \.\. 2, got 3"):
        part[3]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_workers_read_the_same(root: Path, backbone: Backbone, tmp_path: Path, context: str) -> None:
    cached = cache(training_images(root), backbone, tmp_path)
    cached.set_epoch(2)
    alone = [batch["features"] for batch in DataLoader(cached, batch_size=5)]
    loader = DataLoader(cached, batch_size=5, num_workers=1, multiprocessing_context=context)
    for one, other in zip(alone, loader, strict=True):
        assert torch.equal(one, other["features"])


# ---- the task ----


def make_task(words: str, folder: Path | None, **options: Any) -> SSGRLTask:
    given: dict[str, Any] = {"backbone": "small-cnn", "freeze": "all", "words": words, "joint_dim": 8, "lr": 1e-3}
    cached = None if folder is None else str(folder)
    return SSGRLTask(**{**given, "cache_features": cached, "schedule": "constant", **options})


def make_data(root: Path) -> MultiLabelDataModule:
    shape: dict[str, Any] = {"image_size": SIZE, "resize": SIZE, "crops": [SIZE], "flip": True, "batch_size": 4}
    return MultiLabelDataModule(kind="voc", root=str(root), val_fraction=0.25, **shape)


class Losses(Trainer):
    """A quiet trainer."""

    def __init__(self, **options: Any) -> None:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        super().__init__(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **options)


class Recorder(SSGRLTask):
    """Keeps every loss and every logit of a test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.losses: list[float] = []
        self.logits: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self.losses.append(loss.item())
        return loss

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        logits = super()._logits(batch)
        self.logits.append(logits.detach())
        return logits


@pytest.mark.parametrize("kind", ["ssgrl", "pooling"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_cached_and_uncached_runs_agree(root: Path, words: str, tmp_path: Path, kind: str, precision: str) -> None:
    runs = []
    for folder in (None, tmp_path / "store"):
        options = make_task(words, folder, kind=kind).hparams
        task = Recorder(**options)
        trainer = Losses(max_epochs=3, precision=precision)
        data = make_data(root)
        trainer.fit(task, datamodule=data)
        assert not isinstance(data.train_dataset, CachedFeatures)
        assert isinstance(trainer.train_dataloader.dataset, CachedFeatures) == (folder is not None)
        task.logits.clear()
        trainer.test(task, datamodule=make_data(root), verbose=False)
        assert task.report is not None
        runs.append((task.losses, torch.cat(task.logits), task.report.to_dict()))
    (losses, logits, report), (cached_losses, cached_logits, cached_report) = runs
    # convolutions round by the batch they are in; training batches differ from those of the cache
    scale = 1e-5 if precision == "32-true" else 2e-2
    assert cached_losses == pytest.approx(losses, rel=scale)
    torch.testing.assert_close(cached_logits, logits, rtol=scale, atol=scale)
    if precision == "32-true":
        assert cached_report["mean_ap"] == report["mean_ap"]


def test_logits_and_metrics_of_the_same_weights_are_identical(root: Path, words: str, tmp_path: Path) -> None:
    reports, logits = [], []
    for folder in (None, tmp_path / "store"):
        task = Recorder(**make_task(words, folder).hparams)
        Losses().test(task, datamodule=make_data(root), verbose=False)
        assert task.report is not None
        reports.append(task.report.to_dict())
        logits.append(torch.cat(task.logits))
    assert relative_error(logits[1], logits[0]) <= 1e-5  # the cached features come from the backbone with folded norms
    assert reports[0] == reports[1]


def test_weights_and_images_are_hashed_once(
    root: Path, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, digest = [], features.images_digest
    monkeypatch.setattr(features, "images_digest", lambda images: counted.append(images) or digest(images))
    monkeypatch.setattr(features, "weights_digest", lambda _: pytest.fail("the task knows it"))
    Losses(max_epochs=1).fit(make_task(words, tmp_path / "store"), datamodule=make_data(root))
    assert len(counted) == 2, "training and validation images"


def test_features_come_from_the_backbone_of_the_checkpoint(root: Path, words: str, tmp_path: Path) -> None:
    task = make_task(words, None)
    trainer = Losses(max_epochs=1)
    trainer.fit(task, datamodule=make_data(root))
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    trainer.test(task, datamodule=make_data(root), verbose=False)
    assert task.report is not None

    again = make_task(words, tmp_path / "store", seed=7)  # another random backbone, were it not for the checkpoint
    trainer = Losses()
    trainer.ckpt_path = str(tmp_path / "mine.ckpt")
    trainer.test(again, datamodule=make_data(root), verbose=False)
    assert again.report is not None
    assert again.report.ap == task.report.ap

    wrong = make_task(words, tmp_path / "store", seed=7)
    with pytest.raises(ValueError, match="the checkpoint's backbone is not the one"):
        Losses().test(
            wrong, datamodule=make_data(root), ckpt_path=tmp_path / "mine.ckpt", weights_only=True, verbose=False
        )


def test_parts_train_without_images(root: Path, words: str, backbone: Backbone, tmp_path: Path) -> None:
    cached = cache(training_images(root), backbone, tmp_path / "store")
    parts = [cached.select(range(8)), cached.select(range(8, 10), flip=False), cached.select(range(10, 12), flip=False)]
    data = FeatureDataModule(*parts, batch_size=4, seed=3)
    assert torch.equal(data.train_labels, cached.labels[:8])
    for path in (root / "train").glob("*.png"):
        path.unlink()
    task = Recorder(**make_task(words, None).hparams)
    trainer = Losses(max_epochs=4)
    trainer.fit(task, datamodule=data)
    assert len(task.losses) == 8 and min(task.losses[-2:]) < min(task.losses[:2])
    trainer.test(task, datamodule=data, verbose=False)
    assert task.report is not None and task.report.images == 2


# ---- whole or not there ----


def test_reduced_features_keep_their_dtype(root: Path, backbone: Backbone, tmp_path: Path) -> None:
    context = lambda: torch.autocast("cpu", torch.bfloat16)  # noqa: E731
    cached = cache(evaluation_images(root), backbone, tmp_path, precision="bf16", context=context, batch_size=1)
    images = evaluation_images(root)
    with torch.no_grad(), context():
        expected = backbone(images[2]["image"][None])[0]
    assert expected.dtype == torch.bfloat16
    assert torch.equal(cached[2]["features"], expected)
