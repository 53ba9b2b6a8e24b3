"""The options of :class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule`, by group.

Each group is a dataclass, the only place where the defaults and the help text of its options are written; ``--help``
shows the groups in the order of :data:`DATA_GROUPS`. What one kind of data set needs is a group of its own:
:class:`VocOptions`, :class:`CocoOptions`, :class:`TableOptions`, :class:`FolderOptions`, :class:`ShardOptions` and
:class:`DigitsOptions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from ssgrl_fast._utils.ahead import usable_cores
from ssgrl_fast._utils.options import check_fields


@dataclass(frozen=True)
class KindOptions:
    """Data set.

    Args:
        kind: "digits" (embedded), "voc" (Pascal VOC format), "coco" (COCO format), "csv" (table of files and labels),
            "openimages" (Open Images' tables of verified image-level labels) or "shards" (tar archives of images).
    """

    kind: Literal["digits", "voc", "coco", "csv", "openimages", "shards"] = "digits"


@dataclass(frozen=True)
class FileOptions:
    """Data sets of image files: voc, coco, csv, openimages and shards.

    Args:
        root: folder of the data set, or the table itself; required.
        train_split: name of the training split; unset: voc "trainval" or the folder train, coco the split named
            train..., csv the rows whose word means training or all of a table without splits, shards likewise, or the
            shards whose names mean training. Of a csv any of its words, in any letters, several separated by commas.
        test_split: name of the test split, likewise; unset: voc "test", csv the rows whose word means testing, coco the
            split named val..., if there is one.
        classes: class names in column order; unset: voc the lists of the devkit or the sorted names found, coco by
            category id. YAML takes yes, no, on and off for truth values: quote them, '["yes", "no"]'.
        on_error: "raise" at a broken file, or "skip" it, with a warning.
        allow_outside: read images and annotations outside the root too, where a list, table or symbolic link names
            them; otherwise they are refused.
    """

    root: str | None = None
    _: KW_ONLY
    train_split: str | None = None
    test_split: str | None = None
    classes: list[str] | None = None
    on_error: Literal["raise", "skip"] = "raise"
    allow_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class AnnotationOptions(FileOptions):
    """Data sets with annotation files: voc and coco.

    Args:
        label_cache: deprecated, without effect.
    """

    label_cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class CodingOptions(FileOptions):
    """Signs for labels: tables with one column per class (csv) and per-class lists without annotations (voc).

    Args:
        coding: meaning of 1, 0, -1 and empty cells: "zero-one", "voc", "chexpert", "openimages", "partial", or like
            "1=present,0=absent,-1=unknown,empty=absent"; unset: lists "voc"; tables present and absent, and -1 is
            refused.
    """

    coding: str | None = None


@dataclass(frozen=True, kw_only=True)
class VocOptions(AnnotationOptions, CodingOptions):
    """Pascal VOC format (voc).

    Args:
        year: which VOC<year> of a devkit that holds several.
    """

    year: str | None = None


@dataclass(frozen=True, kw_only=True)
class CocoOptions(AnnotationOptions):
    """COCO format (coco).

    Args:
        crowd: label of a class that an image shows only in crowd regions: "positive", "ignore" or "negative" (D26).
        unlabelled: "keep" or "drop" images without any label (D24).
        repeated_files: one image file under several image ids: "refuse" it, or "merge" their annotations.
    """

    crowd: Literal["positive", "ignore", "negative"] = "positive"
    unlabelled: Literal["keep", "drop"] = "keep"
    repeated_files: Literal["refuse", "merge"] = "refuse"


@dataclass(frozen=True, kw_only=True)
class FolderOptions(FileOptions):
    """Tables of files: csv and openimages.

    Args:
        image_folder: folder of the images; unset: that of the table, openimages the sub-folder named like the split.
    """

    image_folder: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableOptions(FolderOptions, CodingOptions):
    """Tables of files and labels, CSV or Parquet (csv, shards).

    Args:
        separator: what separates the labels of an image, " " for blanks; unset: ; | or , by the table (full
            width too), or list literals.
        image_column: the column of the image files; unset: file, filename, image_id … in any letters.
        label_column: the column of the labels; unset: labels, tags, class … in any letters, or one column per class.
        split_column: the column of the splits, "" for none; unset: split, set, subset, fold … in any letters.
        negative_word: the label, or class column, that says that an image has no label ("No Finding").
    """

    separator: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    negative_word: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShardOptions(FileOptions):
    """Tar archives of images in the layout of WebDataset (shards).

    Args:
        label_table: table of the labels, CSV or Parquet; unset: labels.parquet or labels.csv in the root, or else the
            labels are read beside each image.
        label_member: extension of the labels beside each image, json, txt or cls; unset: the only one there.
    """

    label_table: str | None = None
    label_member: Literal["json", "txt", "cls"] | None = None


@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Embedded canvases of handwritten digits (digits).

    Args:
        counts: numbers of training, validation and test canvases; unset: 6000, 1000 and 2000.
        canvas_seed: seed that the canvases are drawn with, at least 0.
        occlusion: probability, 0 to 1, that the left half of a rare digit (1 3 5 8 9) is hidden; 0: all digits whole.
    """

    counts: tuple[int, int, int] | None = None
    canvas_seed: int = 0
    occlusion: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Validation images and folds.

    Args:
        val_split: split to validate on; "test_split": the test images, as the published code selects its model (D19).
        val_fraction: fraction of the training images that is held out for validation instead.
        split_seed: seed that draws the validation images and the folds, separate from the seed of training.
        folds: number of folds that training and test images are united and cut into; 0: the splits of the set.
        fold: which fold is the test set, 0 to folds - 1.
    """

    val_split: str | None = None
    val_fraction: float | None = None
    split_seed: int = 0
    folds: int = 0
    fold: int = 0


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Image transforms.

    Args:
        image_size: side of the network's input, pixels; unset: 64 for digits, else 576.
        resize: side that images are resized to before cropping, pixels; unset: by the paper (640 for 576).
        crops: crop sides of the training transform, pixels; unset: by the paper (640, 576, 512, 384, 320 for 576).
        flip: mirror half of the training images (not in the paper).
        augment: false: train on the evaluation transform, without randomness.
        mean: mean of each channel, pixel values in 0..1; unset: of the set. A backbone's own takes its place in a run.
        std: standard deviation of each channel, as mean.
        train_transform: a transform of your own in training, by its import path, RGB PIL image to image_size x
            image_size without normalisation (:class:`~ssgrl_fast.data.own_transform.OwnTransform`); unset: the paper's.
        max_pixels: width times height that an image file may have; a JPEG file of more than 2^25 pixels that is far
            larger than resize is decoded at a reduced size and may have twice as many.
    """

    image_size: int | None = None
    resize: int | None = None
    crops: list[int] | None = None
    flip: bool = False
    augment: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    train_transform: Callable | None = None  # type: ignore[type-arg]  # jsonargparse takes any callable of this type
    max_pixels: int = 100_000_000


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """Batches.

    Args:
        batch_size: training images per batch and process.
        eval_batch_size: validation and test images per batch and process; unset: batch_size.
        drop_last: leave out a last training batch that is not full.
        num_workers: worker processes per loader, at most one for each core; samples do not depend on it.
        multiprocessing_context: how workers start, "fork", "spawn" or "forkserver"; unset: Python's default.
        seed: seed of the order and of the random transforms in training, at least 0.
    """

    batch_size: int = 4
    eval_batch_size: int | None = None
    drop_last: bool = False
    num_workers: int = 0
    multiprocessing_context: str | None = None
    seed: int = 0

    @property
    def workers(self) -> int:
        """``num_workers``, or the number of cores that this process may use where that is smaller."""
        return min(self.num_workers, usable_cores())


DATA_GROUPS = (
    KindOptions,
    FileOptions,
    AnnotationOptions,
    CodingOptions,
    VocOptions,
    CocoOptions,
    FolderOptions,
    TableOptions,
    ShardOptions,
    DigitsOptions,
    SplitOptions,
    ImageOptions,
    LoaderOptions,
)
"""The groups in the order that ``--help`` shows them."""


@dataclass(frozen=True)
class DataOptions(
    LoaderOptions,
    ImageOptions,
    SplitOptions,
    DigitsOptions,
    ShardOptions,
    TableOptions,
    CocoOptions,
    VocOptions,
    KindOptions,
):
    """All options of a data module. Options of another kind than the chosen one have no effect, but ``counts`` and,
    for digits, those that name files or transforms are refused.

    Raises:
        ValueError: an option that is none of its choices, or options that contradict each other or the kind.
        TypeError: an option of another type.
    """

    def __post_init__(self) -> None:
        check_fields("MultiLabelDataModule", self)
        self._check_kind()
        self._check_splits()
        if self.train_transform is not None and (self.crops is not None or self.flip or not self.augment):
            raise ValueError(
                "MultiLabelDataModule: train_transform takes the place of crops, flip and augment; give one"
            )
        if self.max_pixels < 1:
            raise ValueError(f"MultiLabelDataModule: max_pixels must be at least 1, got {self.max_pixels}")
        numbers = (self.batch_size, self.eval_batch_size or self.batch_size, self.num_workers, self.seed)
        if min(numbers[:2]) < 1 or self.eval_batch_size == 0 or min(*numbers[2:], self.split_seed) < 0:
            raise ValueError(
                "MultiLabelDataModule: batch sizes of at least 1, num_workers, seed and split_seed of at least 0 are "
                f"needed, got {', '.join(map(str, (*numbers, self.split_seed)))}"
            )

    def _check_kind(self) -> None:
        """Refuse options that the kind cannot follow."""
        if self.kind == "digits":
            named = ("root", "train_split", "test_split", "val_split", "year", "resize", "crops", "label_cache")
            given = [name for name in (*named, "classes", "train_transform") if getattr(self, name) is not None]
            given += [name for name in ("folds", "flip") if getattr(self, name)]
            if given:
                raise ValueError(f"MultiLabelDataModule: kind 'digits' is embedded and takes no {', '.join(given)}")
        elif self.root is None:
            raise ValueError(f"MultiLabelDataModule: kind {self.kind!r} needs root, the folder of the set")
        elif self.counts is not None:
            raise ValueError(f"MultiLabelDataModule: counts is for kind 'digits' alone, got kind {self.kind!r}")

    def _check_splits(self) -> None:
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"MultiLabelDataModule: val_fraction must lie between 0 and 1, got {self.val_fraction}")
        if self.val_split is not None and (self.val_fraction is not None or self.folds):
            raise ValueError("MultiLabelDataModule: val_split cannot be combined with val_fraction or folds")
        if self.folds and (self.folds < 2 or not 0 <= self.fold < self.folds):
            raise ValueError(
                "MultiLabelDataModule: folds must be at least 2 and fold in 0 .. folds - 1, "
                f"got folds={self.folds}, fold={self.fold}"
            )
