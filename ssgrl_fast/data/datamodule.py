"""Every kind of data set behind one LightningDataModule: splits, folds, transforms and loaders."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import need

need("lightning.pytorch", "train", "ssgrl_fast.data.datamodule")
from lightning.pytorch import LightningDataModule  # noqa: E402

from ssgrl_fast.data.base import FileDataset, MultiLabelDataset  # noqa: E402
from ssgrl_fast.data.kinds import kind_of, preprocessing_of  # noqa: E402
from ssgrl_fast.data.options import DataOptions  # noqa: E402
from ssgrl_fast.data.sampler import LazyLoader, epoch_loader  # noqa: E402
from ssgrl_fast.data.splits import draw_rows  # noqa: E402

PARTS = ("train_dataset", "val_dataset", "test_dataset")


class MultiLabelDataModule(LightningDataModule):
    """Training, validation and test images of one set, with their loaders.

    Data sets are read at their first use and kept, unchanged. Each is an attribute: ``train_dataset``,
    ``val_dataset`` (None without validation images) and ``test_dataset`` (None without a test split). What is random
    in training depends on (seed, epoch, index) alone.

    In a run the loaders give what the trainer's network asks for, if it has a method ``data_for``
    (:meth:`ssgrl_fast.training.task.SSGRLTask.data_for`): the same images under the normalisation of its backbone, or
    features in their place. The data sets themselves stay as they are.

    Args:
        options: keyword arguments, the fields of :class:`~ssgrl_fast.data.options.DataOptions`; ``kind`` and ``root``
            may come first without their names. They stay in the attribute ``options``.

    Raises:
        ValueError: options that contradict each other or the kind; an unknown kind; see also the data sets.
        TypeError: an option of another type, or an unknown option.
        FileNotFoundError, BrokenAnnotation: when the data sets are read.
    """

    def __init__(self, *place: Any, **options: Any) -> None:
        super().__init__()
        self.options = DataOptions(*place, **options)
        self._kind = kind_of(self.options)
        self._images = preprocessing_of(self.options, self._kind)

    # ---- data sets ------------------------------------------------------------------------------------------------

    @cached_property
    def train_dataset(self) -> MultiLabelDataset:
        """The training images, under the training transform."""
        training, _ = self._kind.transforms(self._images)
        return self._pool.select(self._rows["train"], transform=training)

    @cached_property
    def val_dataset(self) -> MultiLabelDataset | None:
        """The validation images, under the evaluation transform, or None."""
        if not self.has_val:
            return None
        if self._rows["val"]:
            return self._pool.select(self._rows["val"])
        if self.options.val_split == "test_split":
            if self.test_dataset is None:
                raise ValueError(
                    f"{self.options.root}: val_split 'test_split' needs a test split; none was found or named"
                )
            return self.test_dataset
        return self._read(self._kind.own_val_split or self.options.val_split, self.class_names)

    @cached_property
    def test_dataset(self) -> MultiLabelDataset | None:
        """The test images, under the evaluation transform, or None where the set has no test split."""
        if self.options.folds:
            return self._pool.select(self._rows["test"])
        name = self._splits[1]
        return None if name is None else self._read(name, self.class_names)

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; reads no file."""
        named = (self._kind.own_val_split, self.options.val_fraction, self.options.val_split)
        return any(each is not None for each in named)

    @property
    def class_names(self) -> list[str]:
        """C names in column order."""
        known = self._kind.class_names if self.options.classes is None else self.options.classes
        return self._pool.class_names if known is None else list(known)

    @property
    def train_labels(self) -> Tensor:
        """int8 [M, C] of the training images, without validation and test images: what the graph is counted on."""
        return self.train_dataset.labels

    @property
    def train_source(self) -> str:
        """A description of the training images for records."""
        options = self.options
        fold = f", all but fold {options.fold} of {options.folds}" if options.folds else ""
        less = f", less {options.val_fraction:g} held out" if options.val_fraction is not None else ""
        split = f"split {self._splits[0]}{fold}{less}, split seed {options.split_seed}"
        return f"{options.kind} {options.root or 'embedded'}, {split}"

    @property
    def skipped(self) -> list[str]:
        """Messages about files left out so far, in the data sets that were read (``on_error="skip"``)."""
        read = [vars(self).get(name) for name in ("_pool", "val_dataset", "test_dataset")]
        return list(dict.fromkeys(message for dataset in read if dataset is not None for message in dataset.skipped))

    @cached_property
    def _splits(self) -> tuple[str | None, str | None]:
        """The names of the training and test split: those of the options, else the set's own."""
        return self._kind.splits()

    @cached_property
    def _pool(self) -> MultiLabelDataset:
        """The images that training is drawn from: the training split, or with folds all."""
        train, test = self._splits
        pool = self._read(train, self.options.classes)
        if self.options.folds and test is not None:
            other = self._read(test, pool.class_names)
            assert isinstance(pool, FileDataset) and isinstance(other, FileDataset)  # folds are refused for digits
            return pool.joined(other)
        return pool

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """Which images of the pool are for training, validation and test."""
        options = self.options
        folds: dict[str, int] = {"folds": options.folds, "fold": options.fold, "seed": options.split_seed}
        return draw_rows(len(self._pool), val_fraction=options.val_fraction, **folds)

    def _read(self, split: str | None, classes: list[str] | None) -> MultiLabelDataset:
        """A split under the evaluation transform."""
        return self._kind.read(split, self._images, classes=classes, seed=self.options.seed)

    @property
    def preprocessing(self) -> dict[str, int]:
        """What an image goes through before normalisation, {"image_size": pixels, "resize": pixels}: for bundles."""
        return {"image_size": self._images.image_size, "resize": self._kind.resize(self._images)}

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read the data sets of a stage: fit (training and validation), validate, test; None reads all."""
        needed = {"fit": PARTS[:2], "validate": PARTS[1:2], "test": PARTS[2:]}.get(stage or "", PARTS)
        for name in needed:
            getattr(self, name)

    def train_dataloader(self) -> LazyLoader:
        """Batches in an order drawn from (seed, epoch): {"image": float32 [B, 3, H, W], "target": int8 [B, C], "index":
        int64 [B]}; of several processes each one's share."""
        options, images = self.options, data_for(self.trainer, "train_dataset", self.train_dataset)
        more = {**self._workers(), "drop_last": options.drop_last, "trainer": self.trainer}
        return epoch_loader(images, options.batch_size, options.seed, shuffle=True, **more)

    def val_dataloader(self) -> LazyLoader | list[dict[str, Any]]:
        """Validation batches in order; nothing without validation images."""
        return [] if self.val_dataset is None else self._eval_loader("val_dataset", self.val_dataset)

    def test_dataloader(self) -> LazyLoader:
        """Test batches in order.

        Raises:
            ValueError: the set has no test split.
        """
        if self.test_dataset is None:
            raise ValueError(f"{self.options.root}: no test split was found or named; give test_split, or folds")
        return self._eval_loader("test_dataset", self.test_dataset)

    def _eval_loader(self, part: str, dataset: MultiLabelDataset) -> LazyLoader:
        size = self.options.eval_batch_size or self.options.batch_size
        images = data_for(self.trainer, part, dataset)
        return epoch_loader(images, size, shuffle=False, trainer=self.trainer, **self._workers())

    def _workers(self) -> dict[str, Any]:
        """Loader options that do not change a sample. The generator keeps PyTorch's own draw of a worker seed off the
        global state."""
        several = self.options.num_workers > 0
        return {
            "num_workers": self.options.num_workers,
            "persistent_workers": several,
            "multiprocessing_context": self.options.multiprocessing_context if several else None,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.options.seed),
        }

    # ---- report -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Facts about the data for a report: kind, place, splits, classes, images, positives and difficult-only
        pairs of each part, transforms, normalisation, seeds, files left out. Reads all data sets; plain values, fit for
        JSON."""
        # what each part holds
        parts = {}
        for name in PARTS:
            dataset = getattr(self, name)
            if dataset is not None:
                parts[name.removesuffix("_dataset")] = {
                    "images": len(dataset),
                    "positives": dict(zip(dataset.class_names, (dataset.labels == 1).sum(0).tolist(), strict=True)),
                    "difficult_only": int((dataset.labels == 0).sum()),
                }
        # how images are prepared; a kind without transforms draws them in their final size
        options, canvas = self.options, f"canvas of {self._images.image_size}"
        training, evaluation = (
            canvas if transform is None else str(transform) for transform in self._kind.transforms(self._images)
        )
        return {
            "kind": options.kind,
            "root": None if options.root is None else str(options.root),
            "splits": {"train": self._splits[0], "val": options.val_split, "test": self._splits[1]},
            "folds": {"folds": options.folds, "fold": options.fold} if options.folds else None,
            "val_fraction": options.val_fraction,
            "class_names": self.class_names,
            "class_source": getattr(self._pool, "class_source", "the digits' names"),
            "parts": parts,
            "train_transform": training,
            "eval_transform": evaluation,
            "normalisation": {"mean": list(self._images.mean), "std": list(self._images.std)},
            "seed": options.seed,
            "split_seed": options.split_seed,
            "on_error": options.on_error,
            "skipped": self.skipped,
        }


def data_for(trainer: Any, part: str, dataset: MultiLabelDataset) -> Any:
    """What the network that a trainer runs is fed with in the place of a data set.

    Args:
        trainer: a Lightning trainer, or None.
        part: "train_dataset", "val_dataset" or "test_dataset".
        dataset: the part of the data module.

    Returns:
        What the method ``data_for`` of the trainer's module gives; the data set itself without such a method.
    """
    ask = getattr(getattr(trainer, "lightning_module", None), "data_for", None)
    return dataset if ask is None else ask(part, dataset)
