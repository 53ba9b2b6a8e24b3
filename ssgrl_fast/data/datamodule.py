"""Every kind of data set behind one LightningDataModule: splits, folds, transforms and loaders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ssgrl_fast._utils.checks import check_choice, need

need("lightning.pytorch", "train", "ssgrl_fast.data.datamodule")
from lightning.pytorch import LightningDataModule  # noqa: E402

from ssgrl_fast.data import coco, digits, table, voc  # noqa: E402
from ssgrl_fast.data.base import FileDataset, MultiLabelDataset, OnError, Transform  # noqa: E402
from ssgrl_fast.data.sampler import LazyLoader, epoch_loader  # noqa: E402
from ssgrl_fast.data.splits import draw_rows, split_names  # noqa: E402
from ssgrl_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, train_transform  # noqa: E402

KINDS = ("digits", "voc", "coco", "csv")
_PARTS = ("train_dataset", "val_dataset", "test_dataset")


class MultiLabelDataModule(LightningDataModule):
    """Training, validation and test images of one set, with their loaders.

    Data sets are made when first asked for and kept. Each is an attribute: ``train_dataset``, ``val_dataset`` (None
    without validation images) and ``test_dataset`` (None without a test split). What is random in training depends on
    (seed, epoch, index) alone.

    Args:
        kind: ``"digits"`` (embedded), ``"voc"`` (Pascal VOC format), ``"coco"`` (COCO format) or ``"csv"`` (a table of
            files and labels).
        root: the folder of the set, or the table itself; none for digits.
        train_split: name of the training split. None: voc ``trainval``, or the folder ``train``; coco the one split
            named train...; csv ``train``, or all of a table without splits.
        test_split: name of the test split. None: voc and csv ``test``; coco the one split named val...; none where
            there is no such split.
        val_split: name of a split to validate on; ``"test_split"``: the test images themselves, as the published code
            selects its model (D19).
        val_fraction: share of the training images to validate on instead; they leave the training set. With neither,
            digits validate on their own split and other sets have no validation images.
        split_seed: draws the validation images and the folds; apart from ``seed``, so that several runs share them.
        folds: 0, or a number of folds: training and test split are united, shuffled by ``split_seed`` and cut; not for
            digits.
        fold: which fold is the test set, 0 .. folds-1; all others are the training images.
        classes: class names in column order. None: digits their own; voc the devkit's lists or the sorted names found;
            coco by category id.
        year: voc: which ``VOC<year>`` of a devkit.
        crowd: coco: see CocoDetection (D26).
        unlabelled: coco: see CocoDetection (D24).
        repeated_files: coco: one file under several image ids, see CocoDetection.
        on_error: ``"raise"`` or ``"skip"`` broken files, reported in ``skipped`` and by a warning.
        label_cache: voc and coco: deprecated, without effect.
        counts: digits: numbers of training, validation and test canvases. None: 6000, 1000, 2000.
        canvas_seed: digits: which set of canvases.
        image_size: side of the network's input, pixels. None: 64 for digits (the canvas itself), 576 else.
        resize: side that whole images are resized to before the crop. None: by the paper's table (transforms.py); not
            for digits.
        crops: crop sides of the training transform. None: by the paper's table; not for digits.
        flip: mirror half of the training images (not in the paper); not for digits.
        augment: False trains on the evaluation transform, without any randomness; digits are never augmented.
        mean, std: of each channel on the 0 .. 1 scale. None: digits' own, or ImageNet's. See ``set_normalisation``.
        batch_size: of training, in each process.
        eval_batch_size: of validation and test, in each process. None: ``batch_size``.
        drop_last: leave out a last training batch that is not full.
        num_workers: worker processes of each loader; the samples do not depend on it.
        multiprocessing_context: how workers start, ``"fork"``, ``"spawn"`` or ``"forkserver"``. None: Python's default.
        seed: of order and transforms in training, at least 0.

    Raises:
        ValueError: options that contradict each other or the kind; an unknown kind; see also the data sets.
        FileNotFoundError, BrokenAnnotation: when the data sets are made.
    """

    def __init__(
        self,
        kind: Literal["digits", "voc", "coco", "csv"] = "digits",
        root: str | None = None,
        train_split: str | None = None,
        test_split: str | None = None,
        val_split: str | None = None,
        val_fraction: float | None = None,
        split_seed: int = 0,
        folds: int = 0,
        fold: int = 0,
        classes: list[str] | None = None,
        year: str | None = None,
        crowd: Literal["positive", "ignore", "negative"] = "positive",
        unlabelled: Literal["keep", "drop"] = "keep",
        on_error: Literal["raise", "skip"] = "raise",
        label_cache: str | None = None,
        repeated_files: Literal["refuse", "merge"] = "refuse",
        counts: tuple[int, int, int] | None = None,
        canvas_seed: int = 0,
        image_size: int | None = None,
        resize: int | None = None,
        crops: list[int] | None = None,
        flip: bool = False,
        augment: bool = True,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("MultiLabelDataModule", "kind", kind, KINDS)
        self.kind, self.root = kind, root
        self.train_split, self.test_split, self.val_split = train_split, test_split, val_split
        self.val_fraction, self.split_seed, self.folds, self.fold = val_fraction, split_seed, folds, fold
        self.year, self.crowd, self.unlabelled = year, crowd, unlabelled
        self.on_error: OnError = on_error
        self.label_cache, self.repeated_files = label_cache, repeated_files
        self.counts, self.canvas_seed = counts, canvas_seed
        self.image_size = image_size if image_size is not None else 64 if kind == "digits" else 576
        self.resize, self.crops, self.flip, self.augment = resize, crops, flip, augment
        default = (digits.MEAN, digits.STD) if kind == "digits" else (IMAGENET_MEAN, IMAGENET_STD)
        self.mean: Sequence[float] = default[0] if mean is None else mean
        self.std: Sequence[float] = default[1] if std is None else std
        self.batch_size, self.drop_last = batch_size, drop_last
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers, self.multiprocessing_context, self.seed = num_workers, multiprocessing_context, seed
        self._classes = classes
        self._check_options()

    def _check_options(self) -> None:
        """Raise ValueError for options that contradict each other or the kind."""
        embedded = self.kind == "digits"
        given = {
            name: getattr(self, name)
            for name in ("root", "train_split", "test_split", "val_split", "year", "resize", "crops", "label_cache")
            if getattr(self, name) is not None
        }
        given |= {name: getattr(self, name) for name in ("folds", "flip") if getattr(self, name)}
        if embedded and (given or self._classes is not None):
            raise ValueError(f"kind 'digits' is embedded and takes no {', '.join(given) or 'classes'}")
        if not embedded and self.root is None:
            raise ValueError(f"kind {self.kind!r} needs root, the folder of the set")
        if not embedded and self.counts is not None:
            raise ValueError("counts is for kind 'digits' alone")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie between 0 and 1, got {self.val_fraction}")
        if self.val_split is not None and (self.val_fraction is not None or self.folds):
            raise ValueError("val_split cannot be combined with val_fraction or folds")
        if self.folds and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise ValueError(
                f"folds must be at least 2 and fold in 0 .. folds - 1, got folds={self.folds}, fold={self.fold}"
            )
        if (
            min(self.batch_size, self.eval_batch_size) < 1
            or self.num_workers < 0
            or min(self.seed, self.split_seed) < 0
        ):
            raise ValueError(
                "batch sizes of at least 1, num_workers, seed and split_seed of at least 0 are needed, got "
                f"{self.batch_size}, {self.eval_batch_size}, {self.num_workers}, {self.seed}, {self.split_seed}"
            )

    # ---- data sets ------------------------------------------------------------------------------------------------

    @cached_property
    def train_dataset(self) -> MultiLabelDataset:
        """The training images, under the training transform."""
        whole, rows = self._pool, self._rows["train"]
        transform = self._transform(training=True)
        return whole.select(rows, transform=transform)

    @cached_property
    def val_dataset(self) -> MultiLabelDataset | None:
        """The validation images, under the evaluation transform, or None."""
        if not self.has_val:
            return None
        if self._rows["val"]:
            return self._pool.select(self._rows["val"])
        if self.val_split == "test_split":
            if self.test_dataset is None:
                raise ValueError(f"{self.root}: val_split 'test_split' needs a test split; none was found or named")
            return self.test_dataset
        return self._make("val" if self.kind == "digits" else self.val_split, self.class_names)

    @cached_property
    def test_dataset(self) -> MultiLabelDataset | None:
        """The test images, under the evaluation transform, or None where the set has no test split."""
        if self.folds:
            return self._pool.select(self._rows["test"])
        name = self._splits[1]
        return None if name is None else self._make(name, self.class_names)

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; reads no file."""
        return self.kind == "digits" or self.val_fraction is not None or self.val_split is not None

    @property
    def class_names(self) -> list[str]:
        """C names in column order."""
        if self._classes is not None:
            return list(self._classes)
        return list(digits.CLASS_NAMES) if self.kind == "digits" else self._pool.class_names

    @property
    def train_labels(self) -> Tensor:
        """int8 [M, C] of the training images, without validation and test images: what the graph is counted on."""
        return self.train_dataset.labels

    @property
    def train_source(self) -> str:
        """Which images those are, in words, for records."""
        fold = f", all but fold {self.fold} of {self.folds}" if self.folds else ""
        held = f", less {self.val_fraction:g} held out" if self.val_fraction is not None else ""
        return (
            f"{self.kind} {self.root or 'embedded'}, split {self._splits[0]}{fold}{held}, split seed {self.split_seed}"
        )

    @property
    def skipped(self) -> list[str]:
        """Messages about files left out so far, in the data sets that were made (``on_error="skip"``)."""
        made = [vars(self).get(name) for name in ("_pool", "val_dataset", "test_dataset")]
        return list(dict.fromkeys(message for dataset in made if dataset is not None for message in dataset.skipped))

    @cached_property
    def _splits(self) -> tuple[str | None, str | None]:
        """The names of the training and test split: those given, else the set's own."""
        given = {"train": self.train_split, "test": self.test_split}
        return split_names(self.kind, self.root, year=self.year, **given)

    @cached_property
    def _pool(self) -> MultiLabelDataset:
        """The images that training is drawn from: the training split, or with folds all."""
        train, test = self._splits
        pool = self._make(train, self._classes)
        if self.folds and test is not None:
            other = self._make(test, pool.class_names)
            assert isinstance(pool, FileDataset) and isinstance(other, FileDataset)  # folds are refused for digits
            return pool.joined(other)
        return pool

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """Which images of the pool are for training, validation and test."""
        count, folds = len(self._pool), self.folds
        return draw_rows(count, val_fraction=self.val_fraction, folds=folds, fold=self.fold, seed=self.split_seed)

    def _make(self, split: str | None, classes: Sequence[str] | None) -> MultiLabelDataset:
        """A split under the evaluation transform."""
        if self.kind == "digits":
            assert split is not None
            count = None if self.counts is None else self.counts[list(digits.SPLITS).index(split)]
            options: dict[str, Any] = {
                "size": self.image_size,
                "canvas_seed": self.canvas_seed,
                "mean": self.mean,
                "std": self.std,
                "seed": self.seed,
            }
            return digits.DigitCanvases(split, count, **options)  # type: ignore[arg-type]  # one of digits.SPLITS
        shared: dict[str, Any] = {
            "classes": classes,
            "transform": self._transform(training=False),
            "seed": self.seed,
            "on_error": self.on_error,
        }
        assert self.root is not None
        if self.kind == "voc":
            return voc.PascalVOC(self.root, split, year=self.year, label_cache=self.label_cache, **shared)
        if self.kind == "csv":
            return table.LabelTable(self.root, split, **shared)
        images, annotations = coco.find_split(self.root, split)
        shared |= {
            "crowd": self.crowd,
            "unlabelled": self.unlabelled,
            "label_cache": self.label_cache,
            "repeated_files": self.repeated_files,
        }
        return coco.CocoDetection(images, annotations, **shared)

    def _transform(self, *, training: bool) -> Transform | None:
        if self.kind == "digits":
            return None
        normalisation = {"mean": self.mean, "std": self.std}
        if training and self.augment:
            return train_transform(
                self.image_size, resize=self.resize, crops=self.crops, flip=self.flip, **normalisation
            )
        return eval_transform(self.image_size, resize=self.resize, **normalisation)

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Normalise images as a backbone wants it (``backbone.mean``, ``backbone.std``), in data sets made already and
        later.

        Raises:
            ValueError: not three numbers each, or std not positive.
        """
        self.mean, self.std = tuple(mean), tuple(std)
        for name in ("_pool", *_PARTS):
            if (dataset := vars(self).get(name)) is not None:
                dataset.set_normalisation(mean, std)

    @property
    def preprocessing(self) -> dict[str, int]:
        """What an image goes through before normalisation, {"image_size": pixels, "resize": pixels}: for bundles."""
        if self.kind == "digits":
            return {"image_size": self.image_size, "resize": self.image_size}
        return {"image_size": self.image_size, "resize": eval_transform(self.image_size, resize=self.resize).resize}

    # ---- Lightning's hooks ------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Make the data sets a stage needs: fit (training and validation), validate, test; None makes all."""
        needed = {"fit": _PARTS[:2], "validate": _PARTS[1:2], "test": _PARTS[2:]}.get(stage or "", _PARTS)
        for name in needed:
            getattr(self, name)

    def train_dataloader(self) -> LazyLoader:
        """Batches in an order drawn from (seed, epoch): {"image": float32 [B, 3, H, W], "target": int8 [B, C], "index":
        int64 [B]}; of several processes each one's share."""
        options = {**self._workers(), "drop_last": self.drop_last, "trainer": self.trainer}
        return epoch_loader(self.train_dataset, self.batch_size, self.seed, shuffle=True, **options)

    def val_dataloader(self) -> LazyLoader | list[dict[str, Any]]:
        """Validation batches in order; nothing without validation images."""
        return [] if self.val_dataset is None else self._eval_loader(self.val_dataset)

    def test_dataloader(self) -> LazyLoader:
        """Test batches in order.

        Raises:
            ValueError: the set has no test split.
        """
        if self.test_dataset is None:
            raise ValueError(f"{self.root}: no test split was found or named; give test_split, or folds")
        return self._eval_loader(self.test_dataset)

    def _eval_loader(self, dataset: MultiLabelDataset) -> LazyLoader:
        return epoch_loader(dataset, self.eval_batch_size, shuffle=False, trainer=self.trainer, **self._workers())

    def _workers(self) -> dict[str, Any]:
        """Loader options that do not change a sample. The generator keeps PyTorch's own draw of a worker seed off the
        global state."""
        several = self.num_workers > 0
        return {
            "num_workers": self.num_workers,
            "persistent_workers": several,
            "multiprocessing_context": self.multiprocessing_context if several else None,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),
        }

    # ---- report -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What a report must say about the data: kind, place, splits, classes, images, positives and difficult-only
        pairs of each part, transforms, normalisation, seeds, files left out. Makes all data sets; plain values, fit for
        JSON."""
        parts = {}
        for name in _PARTS:
            dataset = getattr(self, name)
            if dataset is not None:
                parts[name.removesuffix("_dataset")] = {
                    "images": len(dataset),
                    "positives": dict(zip(dataset.class_names, (dataset.labels == 1).sum(0).tolist(), strict=True)),
                    "difficult_only": int((dataset.labels == 0).sum()),
                }
        pool = self._pool
        return {
            "kind": self.kind,
            "root": None if self.root is None else str(self.root),
            "splits": {"train": self._splits[0], "val": self.val_split, "test": self._splits[1]},
            "folds": {"folds": self.folds, "fold": self.fold} if self.folds else None,
            "val_fraction": self.val_fraction,
            "class_names": self.class_names,
            "class_source": getattr(pool, "class_source", "the digits' names"),
            "parts": parts,
            "train_transform": str(self._transform(training=True))
            if self.kind != "digits"
            else f"canvas of {self.image_size}",
            "eval_transform": str(self._transform(training=False))
            if self.kind != "digits"
            else f"canvas of {self.image_size}",
            "normalisation": {"mean": list(self.mean), "std": list(self.std)},
            "seed": self.seed,
            "split_seed": self.split_seed,
            "on_error": self.on_error,
            "skipped": self.skipped,
        }
