"""The kinds of data sets: each holds the options that it uses, names the splits and reads one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

from ssgrl_fast._utils.options import part_of
from ssgrl_fast.data import coco, coco_layout, digits, open_images, table, tar_shards, voc
from ssgrl_fast.data.base import MultiLabelDataset, Transform
from ssgrl_fast.data.options import (
    CocoOptions,
    DataOptions,
    DigitsOptions,
    FileOptions,
    FolderOptions,
    ImageOptions,
    ShardOptions,
    TableOptions,
    VocOptions,
)
from ssgrl_fast.data.own_transform import OwnTransform
from ssgrl_fast.data.splits import split_names
from ssgrl_fast.data.table_format import TableFormat
from ssgrl_fast.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, eval_transform, train_transform

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Preprocessing(ImageOptions):
    """The image options with the defaults of a kind filled in."""

    image_size: int
    mean: Triple
    std: Triple

    def training(self) -> Transform:
        """The transform of the training images."""
        normalisation = {"mean": self.mean, "std": self.std}
        if self.train_transform is not None:
            return OwnTransform(self.train_transform, self.image_size, **normalisation)
        if not self.augment:
            return self.evaluation()
        return train_transform(self.image_size, resize=self.resize, crops=self.crops, flip=self.flip, **normalisation)

    def evaluation(self) -> EvalTransform:
        """The transform of validation and test images."""
        return eval_transform(self.image_size, resize=self.resize, mean=self.mean, std=self.std)


class DataKind(ABC):
    """What the data module asks of a kind of data set."""

    image_size: ClassVar[int] = 576
    """Default side of the network's input, pixels."""
    mean: ClassVar[Triple] = IMAGENET_MEAN
    std: ClassVar[Triple] = IMAGENET_STD
    own_val_split: ClassVar[str | None] = None
    """The split that every set of this kind keeps for validation."""
    class_names: ClassVar[tuple[str, ...] | None] = None
    """Names that are known without reading anything."""

    @abstractmethod
    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        """The names of the training and the test split, see :func:`~ssgrl_fast.data.splits.split_names`; ``val`` is the
        name of the split to validate on, or None."""

    @abstractmethod
    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        """A split under the evaluation transform.

        Args:
            split: its name; None where the set has one split.
            images: the transforms.
            classes: C names in column order; None: those of the set.
            seed: of random transforms.

        Raises:
            FileNotFoundError, BrokenAnnotation, ValueError: see the data sets.
        """

    def transforms(self, images: Preprocessing) -> tuple[Transform | None, Transform | None]:
        """Those of training and evaluation; None: the data set's own."""
        return images.training(), images.evaluation()

    def resize(self, images: Preprocessing) -> int:
        """The side that images are resized to before the centre crop, pixels."""
        return images.evaluation().resize


@dataclass(frozen=True, kw_only=True)
class Digits(DataKind, DigitsOptions):
    """Embedded canvases of handwritten digits, never augmented."""

    image_size: ClassVar[int] = 64
    mean: ClassVar[Triple] = digits.MEAN
    std: ClassVar[Triple] = digits.STD
    own_val_split: ClassVar[str | None] = "val"
    class_names: ClassVar[tuple[str, ...] | None] = tuple(digits.CLASS_NAMES)

    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        return split_names("digits", None)

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        assert split is not None
        count = None if self.counts is None else self.counts[list(digits.SPLITS).index(split)]
        shape: dict[str, Any] = {"size": images.image_size, "mean": images.mean, "std": images.std}
        drawn: dict[str, Any] = {"canvas_seed": self.canvas_seed, "occlusion": self.occlusion}
        return digits.DigitCanvases(cast(Any, split), count, **drawn, seed=seed, **shape)

    def transforms(self, images: Preprocessing) -> tuple[Transform | None, Transform | None]:
        return None, None

    def resize(self, images: Preprocessing) -> int:
        return images.image_size


@dataclass(frozen=True, kw_only=True)
class ImageFiles(DataKind, FileOptions):
    """What the kinds with image files share: their splits by name, and the arguments of their data sets."""

    name: ClassVar[str]

    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        return split_names(self.name, self.root, train=self.train_split, test=self.test_split)

    def _place(self) -> str:
        assert self.root is not None  # DataOptions has refused that
        return self.root

    def _shared(self, images: Preprocessing, classes: Sequence[str] | None, seed: int) -> dict[str, Any]:
        reading = {"on_error": self.on_error, "allow_outside": self.allow_outside, "max_pixels": images.max_pixels}
        return {"classes": classes, "transform": images.evaluation(), "seed": seed, **reading}


@dataclass(frozen=True, kw_only=True)
class Voc(ImageFiles, VocOptions):
    """Pascal VOC format."""

    name: ClassVar[str] = "voc"

    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        return split_names("voc", self.root, year=self.year, train=self.train_split, test=self.test_split)

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        shared = self._shared(images, classes, seed)
        given: dict[str, Any] = {"year": self.year, "coding": self.coding, "label_cache": self.label_cache}
        return voc.PascalVOC(self._place(), split, **given, **shared)


@dataclass(frozen=True, kw_only=True)
class Coco(ImageFiles, CocoOptions):
    """COCO format."""

    name: ClassVar[str] = "coco"

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        folder, annotations = coco.find_split(self._place(), split)
        rules: dict[str, Any] = {
            "roots": coco_layout.roots_of(self._place(), annotations),
            "crowd": self.crowd,
            "unlabelled": self.unlabelled,
            "repeated_files": self.repeated_files,
            "label_cache": self.label_cache,
        }
        return coco.CocoDetection(folder, annotations, **rules, **self._shared(images, classes, seed))


@dataclass(frozen=True, kw_only=True)
class Table(ImageFiles, TableOptions):
    """A table of files and labels."""

    name: ClassVar[str] = "csv"

    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        given = {"train": self.train_split, "val": val, "test": self.test_split}
        return split_names("csv", self.root, classes=self.classes, form=self._form(), **given)

    def _form(self) -> TableFormat:
        return TableFormat(**{field.name: getattr(self, field.name) for field in fields(TableFormat)})

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        shared = self._shared(images, classes, seed)
        return table.LabelTable(self._place(), split, form=self._form(), image_folder=self.image_folder, **shared)


@dataclass(frozen=True, kw_only=True)
class OpenImagesTables(ImageFiles, FolderOptions):
    """Open Images by its own tables."""

    name: ClassVar[str] = "openimages"

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        assert split is not None  # split_names gives one
        shared = self._shared(images, classes, seed)
        return open_images.OpenImages(self._place(), split, image_folder=self.image_folder, **shared)


@dataclass(frozen=True, kw_only=True)
class Shards(Table, ShardOptions):
    """Tar archives of images."""

    name: ClassVar[str] = "shards"

    def splits(self, val: str | None = None) -> tuple[str | None, str | None]:
        given = {"train": self.train_split, "val": val, "test": self.test_split, "label_table": self.label_table}
        return tar_shards.default_splits(self._place(), classes=self.classes, form=self._form(), **given)

    def read(
        self, split: str | None, images: Preprocessing, *, classes: Sequence[str] | None, seed: int
    ) -> MultiLabelDataset:
        labels: dict[str, Any] = {"label_table": self.label_table, "label_member": self.label_member}
        shared = self._shared(images, classes, seed)
        return tar_shards.TarShards(self._place(), split, form=self._form(), **labels, **shared)


_KINDS: dict[str, type[DataKind]] = {
    "digits": Digits,
    "voc": Voc,
    "coco": Coco,
    "csv": Table,
    "openimages": OpenImagesTables,
    "shards": Shards,
}


def kind_of(options: DataOptions) -> DataKind:
    """The chosen kind of data set, with the options that it uses."""
    return part_of(_KINDS[options.kind], options)


def preprocessing_of(options: DataOptions, kind: DataKind) -> Preprocessing:
    """The image options with the defaults of the kind filled in."""
    given: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(ImageOptions)}
    for name in ("image_size", "mean", "std"):
        if given[name] is None:
            given[name] = getattr(kind, name)
    return Preprocessing(**given)
