"""Your own DataModule, transform and logger: any LightningDataModule with class_names and train_labels can train.

python examples/own_data.py --epochs 2 --out runs/own
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ssgrl_fast.training.task import SSGRLTask

NAMES = ["red", "green", "blue"]


class Squares(Dataset):
    """Grey images with a square of each colour that is present."""

    def __init__(self, count: int, seed: int, transform=None) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = (torch.rand(count, len(NAMES), generator=draw) < 0.5).to(
            torch.int8
        ) * 2 - 1  # 1 present, -1 absent
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = torch.full((3, 64, 64), 0.5)
        for channel in (self.labels[index] == 1).nonzero().flatten().tolist():
            image[channel, :, 20 * channel : 20 * channel + 20] = 1
        image = image if self.transform is None else self.transform(image)
        return {"image": (image - 0.5) / 0.25, "target": self.labels[index]}  # the network wants normalised images


class SquaresModule(LightningDataModule):
    """What SSGRLTask asks for: two names and the loaders."""

    def __init__(self) -> None:
        super().__init__()
        flip = v2.RandomVerticalFlip()  # your own transform
        self.train, self.val = Squares(160, 0, flip), Squares(80, 1)
        self.class_names = NAMES  # C names in the order of the target's columns
        self.train_labels = self.train.labels  # int8 [M, C], which the graph is counted on
        self.preprocessing = {"image_size": 64, "resize": 64}  # optional: goes into the bundle

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=16)


def main(argv: Sequence[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--words", default="glove-6b-50d", help="word vectors of the class names")
    parser.add_argument("--out", default="runs/own", help="folder of the logs and the bundle")
    options = parser.parse_args(argv)
    task = SSGRLTask(
        backbone="small-cnn", freeze="none", joint_dim=32, lr=1e-3, schedule="onecycle", words=options.words
    )
    logger = CSVLogger(options.out)  # any of Lightning's loggers: the task logs train/loss, val/loss, val/mAP and more
    trainer = Trainer(max_epochs=options.epochs, logger=logger, accelerator="cpu", num_sanity_val_steps=0)
    trainer.fit(task, datamodule=SquaresModule())
    task.model.save_pretrained(f"{options.out}/bundle")
    return float(trainer.callback_metrics["val/mAP"])


if __name__ == "__main__":
    print(f"validation mAP {main():.3f}")
