"""A data module and a training transform of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training extra is not installed")

from lightning.pytorch import LightningDataModule
from small_runs import fit_command, make_data, make_task, make_trainer, write_words
from small_sets import NAMES, make_coco, make_voc
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ssgrl_fast import cli
from ssgrl_fast.data.contract import MultiLabelData
from ssgrl_fast.data.datamodule import MultiLabelDataModule
from ssgrl_fast.data.own_transform import OwnTransform

LABELS = torch.tensor([[1, -1], [-1, 1], [1, 1], [-1, -1]], dtype=torch.int8)


class Plain(LightningDataModule):
    """Two classes in batches as the test wants them."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        vars(self).update(given)

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=2)


def rows(labels: torch.Tensor = LABELS) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [{"image": torch.randn(3, 32, 32, generator=draw), "target": row} for row in labels]


@pytest.fixture
def words(tmp_path: Path) -> str:
    return write_words(tmp_path / "words.txt", ["a", "b"])


def test_a_data_module_with_two_names_and_a_loader_trains(words: str) -> None:
    data = Plain(class_names=["a", "b"], train_labels=LABELS, rows=rows())
    assert isinstance(data, MultiLabelData) and isinstance(make_data(), MultiLabelData)
    task, trainer = make_task(words, schedule="constant"), make_trainer()
    trainer.fit(task, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["train/loss"]) and task.model.class_names == ["a", "b"]


def test_what_a_data_module_lacks_is_a_sentence(words: str) -> None:
    task = make_task(words, schedule="constant")
    with pytest.raises(ValueError, match="the data module Plain has no train_labels; it needs class_names"):
        make_trainer().fit(task, datamodule=Plain(class_names=["a", "b"], rows=rows()))
    whole = {"class_names": ["a", "b"], "train_labels": LABELS}
    pairs = [(row["image"], row["target"]) for row in rows()]
    with pytest.raises(ValueError, match=r"a batch must be a dictionary with 'image' .* got a list"):
        make_trainer().fit(make_task(words, schedule="constant"), datamodule=Plain(**whole, rows=pairs))
    wide = rows(torch.cat([LABELS, LABELS], 1))
    with pytest.raises(ValueError, match=r"target of a batch must be \[B, 2\], .* got \[2, 4\]"):
        make_trainer().fit(make_task(words, schedule="constant"), datamodule=Plain(**whole, rows=wide))


def brighter(image: Any, generator: torch.Generator) -> torch.Tensor:
    """With the generator that data sets give."""
    return (v2.functional.pil_to_tensor(image.resize((16, 16))) / 255 + torch.rand((), generator=generator)).clamp(0, 1)


AUGMENT = v2.Compose([v2.RandomResizedCrop(16), v2.ColorJitter(0.5)])


@pytest.mark.parametrize("transform", [brighter, AUGMENT])
def test_transforms_of_ones_own_repeat_by_seed_epoch_and_index(tmp_path: Path, transform: Any) -> None:
    make_voc(tmp_path, "2007", ("trainval", "test"))
    options = {"root": str(tmp_path / "VOC2007"), "image_size": 16, "resize": 16, "train_transform": transform}
    sets = [MultiLabelDataModule(kind="voc", seed=seed, **options).train_dataset for seed in (0, 0, 1)]
    state = torch.random.get_rng_state()
    first, again, other = (each[0]["image"] for each in sets)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody else's random numbers are changed
    assert torch.equal(first, again) and not torch.equal(first, other)
    sets[0].set_epoch(1)
    assert not torch.equal(first, sets[0][0]["image"])
    plain = sets[1].with_normalisation((0, 0, 0), (1, 1, 1))[0]["image"]  # the normalisation stays the library's
    assert plain.min() >= 0 and plain.max() <= 1 and first.min() < 0
    test = MultiLabelDataModule(kind="voc", **options).test_dataset
    assert "eval_transform" in repr(test.transform)


def test_transforms_that_give_something_else_are_refused() -> None:
    from PIL import Image

    image, scale = Image.new("RGB", (16, 16), (255, 0, 0)), ((0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match=r"must give \[3, 16, 16\] \(image_size\), got \[3, 8, 8\]"):
        OwnTransform(v2.Resize((8, 8)), 16, *scale)(image, None)
    normalised = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*map(list, scale))])
    with pytest.raises(ValueError, match=r"pixel values in 0 .. 1 or uint8, .* got -2.5 to 2.5"):
        OwnTransform(normalised, 16, *scale)(image, None)
    with pytest.raises(ValueError, match="train_transform takes the place of crops, flip and augment"):
        MultiLabelDataModule("voc", "somewhere", train_transform=normalised, flip=True)
    with pytest.raises(TypeError, match="train_transform must be Callable or None, got 3"):
        MultiLabelDataModule("voc", "somewhere", train_transform=3)


def test_the_command_line_takes_a_transform_by_class_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_coco(tmp_path, ("train2014", "val2014"))
    path = "torchvision.transforms.v2.RandomResizedCrop"
    more = {"model.words": write_words(tmp_path / "w.txt", NAMES), "data.train_transform": path}
    command = fit_command(tmp_path, tmp_path / "runs", **more, **{"data.train_transform.size": 32})
    assert cli.main(command) == 0, capfd.readouterr().err
    config = (tmp_path / "runs" / "version_0" / "config.yaml").read_text()
    assert f"class_path: {path}" in config and "size: 32" in config
