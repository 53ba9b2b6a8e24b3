"""Data do not change under their user: not by a run, not by cached features, not by another normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")

from small_runs import make_task, make_trainer, write_words
from small_sets import NAMES, make_table

from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.feature_module import FeatureDataModule
from ssgrl_fast.data.features import CachedFeatures, cache_features
from ssgrl_fast.models.backbones import build_backbone, freeze_backbone

SIZE = 32


@pytest.fixture
def data(tmp_path: Path) -> MultiLabelDataModule:
    """A table of small images, mirrored in training, which allows cached features."""
    make_table(tmp_path / "table")
    shape: dict[str, Any] = {"image_size": SIZE, "resize": SIZE, "crops": [SIZE], "flip": True, "batch_size": 4}
    return MultiLabelDataModule("csv", str(tmp_path / "table"), val_fraction=0.25, **shape)


@pytest.fixture
def words(tmp_path: Path) -> str:
    return write_words(tmp_path / "words.txt", NAMES)


def parts(data: MultiLabelDataModule) -> list[Any]:
    """The three data sets."""
    return [data.train_dataset, data.val_dataset, data.test_dataset]


def snapshot(data: MultiLabelDataModule) -> list[dict[str, Any]]:
    """What a user sees of each data set: names, labels, epoch, transform and every image."""
    return [
        {
            "type": type(part),
            "ids": list(part.ids),
            "labels": part.labels.tolist(),
            "epoch": part.epoch,
            "transform": dict(vars(part.transform)),
            "images": torch.stack([part[index]["image"] for index in range(len(part))]).tolist(),
        }
        for part in parts(data)
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_leaves_the_data_sets_as_they_were(
    data: MultiLabelDataModule, words: str, tmp_path: Path, cached: bool
) -> None:
    before, made = snapshot(data), parts(data)
    folder = str(tmp_path / "store") if cached else None
    task = make_task(words, freeze="all", schedule="constant", cache_features=folder)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(task, datamodule=data)

    # the network was fed with features, or with images under its backbone's normalisation, which is not the data's
    fed, body = trainer.train_dataloader.dataset, task.model.backbone
    assert isinstance(fed, CachedFeatures) == cached
    if not cached:
        assert (fed.transform.mean, fed.transform.std) == (body.mean, body.std)
    assert data.train_dataset.transform.mean != body.mean

    trainer.test(task, datamodule=data, verbose=False)
    assert all(one is other for one, other in zip(made, parts(data), strict=True))
    assert snapshot(data) == before


def features_of(data: MultiLabelDataModule, folder: Path) -> CachedFeatures:
    backbone = freeze_backbone(build_backbone("small-cnn", pretrained=False), "all")
    return cache_features(data.train_dataset, backbone, folder, name="small-cnn", progress=False)


def test_features_leave_the_epoch_of_the_images(data: MultiLabelDataModule, tmp_path: Path) -> None:
    before = snapshot(data)
    features = features_of(data, tmp_path / "store")
    features.set_epoch(4)
    assert features.epoch == 4 and snapshot(data) == before


def test_cached_features_need_images(data: MultiLabelDataModule, words: str, tmp_path: Path) -> None:
    features = FeatureDataModule(features_of(data, tmp_path / "store"))
    task = make_task(words, freeze="all", cache_features=str(tmp_path / "store"))
    with pytest.raises(ValueError, match="cache_features needs a MultiLabelDataModule, got a FeatureDataModule"):
        make_trainer(max_epochs=1).fit(task, datamodule=features)
