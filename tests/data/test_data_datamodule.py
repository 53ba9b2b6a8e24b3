"""ssgrl_fast.data.datamodule: splits, folds, loaders and reports over all kinds of sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.errors import BrokenAnnotation
from ssgrl_fast.data.transforms import EvalTransform, TrainTransform

NAMES = ("cat", "dog", "owl")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """30 training and 12 test images; picture k holds class k mod 3, and every fifth all."""
    for split, count in (("train", 30), ("test", 12)):
        (tmp_path / split).mkdir()
        for k in range(count):
            Image.new("RGB", (20, 16), (8 * k, 0, 0)).save(tmp_path / split / f"{split}{k:02d}.png")
            names = NAMES if k % 5 == 0 else (NAMES[k % 3],)
            objects = "".join(f"<object><name>{name}</name></object>" for name in names)
            (tmp_path / split / f"{split}{k:02d}.xml").write_text(f"<annotation>{objects}</annotation>")
    return tmp_path


def _voc(root: Path, **options: Any) -> MultiLabelDataModule:
    return MultiLabelDataModule("voc", str(root), **({"image_size": 16, "batch_size": 4} | options))


def _indices(loader: Any) -> list[int]:
    return [index for batch in loader for index in batch["index"].tolist()]


def test_digits_out_of_the_box() -> None:
    data = MultiLabelDataModule(counts=(40, 10, 20), batch_size=8)
    data.setup("fit")
    assert data.has_val and data.class_names[0] == "zero" and data.train_labels.shape == (40, 10)
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (40, 10, 20)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 64, 64) and batch["target"].dtype == torch.int8
    assert _indices(data.test_dataloader()) == list(range(20))
    report = json.loads(json.dumps(data.describe()))
    assert report["parts"]["test"]["images"] == 20 and report["kind"] == "digits" and report["skipped"] == []
    held_back = MultiLabelDataModule(counts=(40, 10, 20), val_fraction=0.25)
    assert (len(held_back.train_dataset), len(held_back.val_dataset)) == (30, 10)
    assert all(name.startswith("digits-train") for name in held_back.val_dataset.ids)


def test_flat_folder_with_validation_images(flat: Path) -> None:
    data = _voc(flat, val_fraction=0.2, split_seed=3)
    parts = (data.train_dataset, data.val_dataset, data.test_dataset)
    assert [len(part) for part in parts] == [24, 6, 12]
    assert set(parts[0].ids) | set(parts[1].ids) == {f"train{k:02d}.png" for k in range(30)}
    assert not set(parts[0].ids) & set(parts[1].ids)
    assert all(part.class_names == list(NAMES) for part in parts)
    assert isinstance(parts[0].transform, TrainTransform)
    assert all(isinstance(part.transform, EvalTransform) for part in parts[1:])
    again, other = _voc(flat, val_fraction=0.2, split_seed=3, seed=9), _voc(flat, val_fraction=0.2, split_seed=4)
    assert again.val_dataset.ids == parts[1].ids and other.val_dataset.ids != parts[1].ids
    for part in parts:
        for row, name in enumerate(part.ids):
            k = int(name.removesuffix(".png")[-2:])
            assert part.labels[row].tolist() == [1 if k % 5 == 0 or k % 3 == c else -1 for c in range(3)]
    assert torch.equal(data.train_labels, parts[0].labels)


def test_without_validation_images(flat: Path) -> None:
    data = _voc(flat)
    assert not data.has_val and data.val_dataset is None and data.val_dataloader() == []
    assert len(data.train_dataset) == 30
    named = _voc(flat, val_split="test")
    assert named.has_val and named.val_dataset.ids == named.test_dataset.ids
    data.setup("validate")


def test_folds_cover_every_image_once(flat: Path) -> None:
    tests, everything = [], {f"train{k:02d}.png" for k in range(30)} | {f"test{k:02d}.png" for k in range(12)}
    for fold in range(5):
        data = _voc(flat, folds=5, fold=fold, val_fraction=0.2)
        train, val, test = (set(part.ids) for part in (data.train_dataset, data.val_dataset, data.test_dataset))
        assert len(train) + len(val) + len(test) == 42 and train | val | test == everything
        assert len(test) in (8, 9) and len(val) == round(0.2 * (42 - len(test)))
        tests += data.test_dataset.ids
        pixel = {
            name: data.test_dataset.load_image(row).getpixel((0, 0)) for row, name in enumerate(data.test_dataset.ids)
        }
        assert all(pixel[name] == (8 * int(name.removesuffix(".png")[-2:]), 0, 0) for name in pixel)
    assert sorted(tests) == sorted(everything)
    assert _voc(flat, folds=5, split_seed=1).test_dataset.ids != _voc(flat, folds=5).test_dataset.ids


def test_loaders(flat: Path) -> None:
    data = _voc(flat, batch_size=8, eval_batch_size=5, seed=2)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    first = _indices(loader)
    assert sorted(first) == list(range(30)) and [len(batch["index"]) for batch in loader] == [8, 8, 8, 6]
    twin = _voc(flat, batch_size=8, seed=2).train_dataloader()
    twin.sampler.set_epoch(1)
    assert _indices(twin) == first
    dropping = _voc(flat, batch_size=8, drop_last=True).train_dataloader()
    assert [len(batch["index"]) for batch in dropping] == [8, 8, 8]
    assert [len(batch["index"]) for batch in data.test_dataloader()] == [5, 5, 2]
    assert data.test_dataset[0]["image"].shape == (3, 16, 16)


def test_workers_change_nothing(flat: Path) -> None:
    images = {}
    for workers in (0, 2):
        data = _voc(flat, num_workers=workers, seed=4)
        loader = data.train_dataloader()
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            images[workers, epoch] = torch.cat([batch["image"] for batch in loader])
    for epoch in (0, 1):
        assert torch.equal(images[0, epoch], images[2, epoch])
    assert not torch.equal(images[0, 0], images[0, 1])


def test_another_normalisation_is_another_data_set(flat: Path) -> None:
    mean, std = (0.25,) * 3, (0.5,) * 3
    data, given = _voc(flat), _voc(flat, mean=mean, std=std)
    for part, index in (("train_dataset", 0), ("test_dataset", 3)):
        own, wanted = getattr(data, part), getattr(given, part)
        before = own[index]["image"]
        other = own.with_normalisation(mean, std)
        assert torch.equal(other[index]["image"], wanted[index]["image"])
        assert torch.equal(before, own[index]["image"]) and not torch.equal(before, other[index]["image"])
        other.set_epoch(3)
        assert own.epoch == 0
    assert given.describe()["normalisation"] == {"mean": [0.25] * 3, "std": [0.5] * 3}


def test_transform_options(flat: Path) -> None:
    plain = _voc(flat, augment=False)
    assert isinstance(plain.train_dataset.transform, EvalTransform)
    mirrored = _voc(flat, resize=16, crops=[16], flip=True).train_dataset.transform
    assert (mirrored.resize, mirrored.crops, mirrored.flip) == (16, (16,), True)
    assert MultiLabelDataModule("voc", str(flat)).train_dataset.transform.crops == (640, 576, 512, 384, 320)


def test_classes_come_from_the_training_images(flat: Path) -> None:
    (flat / "test" / "test00.xml").write_text("<annotation><object><name>emu</name></object></annotation>")
    data = _voc(flat)
    assert data.class_names == list(NAMES)
    with pytest.raises(BrokenAnnotation, match="test00.xml: unknown class emu"):
        data.setup("test")
    assert _voc(flat, classes=["emu", *NAMES]).test_dataset.labels[0].tolist() == [1, -1, -1, -1]


def test_skipped_files_are_reported(flat: Path) -> None:
    (flat / "train" / "train03.png").write_bytes(b"broken")
    (flat / "test" / "test02.xml").write_text("<broken")
    data = _voc(flat, on_error="skip", val_fraction=0.2)
    with pytest.warns(UserWarning, match="left out"):
        report = data.describe()
    assert len(report["skipped"]) == 2
    assert {"train03.png" in m or "test02.xml" in m for m in report["skipped"]} == {True}
    assert len(data.train_dataset) + len(data.val_dataset) == 29 and len(data.test_dataset) == 11
    assert len(_indices(data.train_dataloader())) == len(data.train_dataset)


def test_devkit(shared_data: Path) -> None:
    data = MultiLabelDataModule("voc", str(shared_data / "voc2007_mini"), train_split="train", image_size=32)
    assert len(data.class_names) == 20 and len(data.test_dataset) == 5
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32) and torch.isfinite(batch["image"]).all()


def test_coco128(shared_data: Path) -> None:
    data = MultiLabelDataModule(
        "coco", str(shared_data / "coco128"), image_size=32, val_fraction=0.25, unlabelled="drop"
    )
    data.setup("fit")
    assert (len(data.train_dataset), len(data.val_dataset)) == (94, 32) and len(data.class_names) == 80
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["target"].shape == (4, 80)
    assert data.test_dataset is None
    with pytest.raises(ValueError, match="coco128: no test split was found or named"):
        data.test_dataloader()


def test_playing_cards_folds(shared_data: Path) -> None:
    data = MultiLabelDataModule("voc", str(shared_data / "playing_cards"), image_size=64, folds=5, fold=2)
    assert len(data.train_dataset) + len(data.test_dataset) == 363 and len(data.test_dataset) == 73
    assert data.test_dataset[0]["image"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "imagenet"},
            "kind must be one of 'digits', 'voc', 'coco', 'csv', 'openimages', 'shards', got 'imagenet'",
        ),
        ({"root": "x"}, "embedded and takes no root"),
        ({"folds": 5}, "embedded and takes no folds"),
        ({"classes": ["a"]}, "embedded and takes no classes"),
        ({"kind": "voc"}, "needs root"),
        ({"kind": "coco", "root": "x", "counts": (1, 1, 1)}, "counts is for kind 'digits'"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1, got 1.0"),
        ({"kind": "voc", "root": "x", "val_split": "val", "val_fraction": 0.1}, "val_split cannot be combined"),
        ({"kind": "voc", "root": "x", "folds": 1}, "folds must be at least 2"),
        ({"kind": "voc", "root": "x", "folds": 5, "fold": 5}, "fold in 0 .. folds - 1, got folds=5, fold=5"),
        ({"batch_size": 0}, "batch sizes of at least 1"),
        ({"seed": -1}, "seed and split_seed"),
    ],
)
def test_contradictions_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiLabelDataModule(**options)


def test_splits_too_small(flat: Path) -> None:
    with pytest.raises(ValueError, match="42 images are too few for 43 folds"):
        _voc(flat, folds=43).setup("test")
    with pytest.raises(ValueError, match="leaves no training image"):
        _voc(flat, val_fraction=0.99).setup("fit")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _voc(flat / "nowhere").setup()


def test_the_label_cache_of_earlier_configurations_is_taken_and_not_used(flat: Path, tmp_path: Path) -> None:
    with pytest.warns(FutureWarning, match="label_cache has no effect any more"):
        data = _voc(flat, label_cache=str(tmp_path / "cache"))
        labels = data.train_labels
    assert torch.equal(labels, _voc(flat).train_labels) and not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="'digits' is embedded and takes no label_cache"):
        MultiLabelDataModule("digits", label_cache=str(tmp_path))
