"""What every data set here shares: labels, epochs, randomness by (seed, epoch, index), subsets, and what to do about
broken files.

| letter | meaning |
|---|---|
| M | images |
| C | classes |
| H, W | height and width of the transformed image |
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssgrl_fast._utils.checks import check_choice
from ssgrl_fast.data.boxes import ImageBoxes
from ssgrl_fast.data.errors import BrokenAnnotation, BrokenImage
from ssgrl_fast.data.options import ImageOptions
from ssgrl_fast.labels.matrix import PRESENT, UNKNOWN, alike_names

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[["Image", "torch.Generator | None"], Tensor]
"""(RGB image, generator or None) -> float32 [3, H, W]; every random choice is drawn from the generator."""

OnError = Literal["raise", "skip"]

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """A CPU generator whose stream depends on (seed, epoch, index) and on nothing else: not on workers, order or
    earlier draws."""
    (state,) = np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state))


class MultiLabelDataset(Dataset[dict[str, Any]], ABC):
    """Images with several labels each.

    Args:
        class_names: C distinct names, in the order of the label columns.
        labels: int8 [M, C]; 1 present, 0 only difficult objects, -1 absent, -2 unknown.
        ids: M names for reports: files or image ids.
        transform: image and generator to float32 [3, H, W].
        seed: of the transforms' randomness, at least 0.

    Raises:
        TypeError: labels are not int8.
        ValueError: shapes that disagree, label values outside {1, 0, -1, -2}, repeated class names, no image, negative
            seed.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        labels: Tensor,
        ids: Sequence[str],
        *,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        if labels.dtype != torch.int8:
            raise TypeError(f"labels must be int8 [M, C], got {labels.dtype}")
        if labels.shape != (len(ids), len(class_names)):
            raise ValueError(f"labels must be [{len(ids)} ids, {len(class_names)} classes], got {list(labels.shape)}")
        if not len(ids):
            raise ValueError("a data set must hold at least one image, got none")
        if labels.min() < UNKNOWN or labels.max() > PRESENT:
            raise ValueError(f"labels must be 1, 0, -1 or -2, got values from {labels.min()} to {labels.max()}")
        check_distinct("class_names", class_names)
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.class_names = list(class_names)
        self.labels = labels
        self.ids = list(ids)
        self.transform = transform
        self.seed = seed
        self.skipped: list[str] = []
        self._epoch = shared_zero()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def epoch(self) -> int:
        """The epoch that random transforms are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, at least 0. It lies in shared memory, so that worker processes already running follow."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    @abstractmethod
    def load_image(self, index: int) -> Image:
        """The untransformed RGB image.

        Raises:
            BrokenImage: the file cannot be decoded.
            FileNotFoundError: it is gone.
        """

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """These images under another normalisation, with their own epoch; this data set stays as it is.

        Args:
            mean, std: three numbers each, one per channel, for pixel values in 0 .. 1.

        Raises:
            TypeError: the transform is none of ``ssgrl_fast.data.transforms``.
            ValueError: not three numbers each, or std not positive.
        """
        replaced = getattr(self.transform, "with_normalisation", None)
        if replaced is None:
            raise TypeError(f"with_normalisation needs a train_transform or an eval_transform, got {self.transform!r}")
        other = self._copy()
        other.transform = replaced(mean, std)
        return other

    def _copy(self) -> Self:
        """A shallow copy with its own epoch."""
        other = copy.copy(self)
        other._epoch = shared_zero()
        return other

    def load_tensor(self, index: int) -> Tensor:
        """The transformed image, float32 [3, H, W], with this epoch's random choices."""
        transform = self.default_transform() if self.transform is None else self.transform
        return transform(self.image_for(index, transform), sample_generator(self.seed, self.epoch, index))

    def image_for(self, index: int, transform: Transform) -> Image:
        """The image that a transform gets: :meth:`load_image`, or what a reader decoded at a reduced size because the
        transform resizes it to far less. Errors as for :meth:`load_image`."""
        return self.load_image(index)

    def boxes(self) -> list[ImageBoxes]:
        """M: the objects of each image and their boxes, read from the annotations now.

        Raises:
            ValueError: the data have no boxes: they are not in the format of Pascal VOC or COCO.
            BrokenAnnotation, FileNotFoundError: naming the annotation.
        """
        raise ValueError(f"boxes: data in the format of Pascal VOC or COCO have boxes, got a {type(self).__name__}")

    def default_transform(self) -> Transform:
        """The transform of a data set that was given none."""
        raise ValueError(f"{type(self).__name__} needs a transform to give tensors")

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample: image float32 [3, H, W], target int8 [C], index int.

        Raises:
            IndexError: index outside 0 .. M-1.
            BrokenImage, FileNotFoundError: see load_image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        return {"image": self.load_tensor(index), "target": self.labels[index], "index": index}

    def select(self, indices: Iterable[int], *, transform: Transform | None = None) -> Self:
        """A data set of these images, in this order, with its own epoch and, if given, another transform. Pixels are
        not copied twice.

        Raises:
            ValueError: no index.
            IndexError: an index outside 0 .. M-1.
        """
        chosen = [int(index) for index in indices]
        if not chosen:
            raise ValueError("select: at least one index is needed, got none")
        if min(chosen) < 0 or max(chosen) >= len(self):
            raise IndexError(f"select: indices must be in 0 .. {len(self) - 1}, got {min(chosen)} .. {max(chosen)}")
        subset = self._copy()
        subset.labels = self.labels[chosen]
        subset.ids = [self.ids[index] for index in chosen]
        subset.transform = self.transform if transform is None else transform
        subset._select(chosen)
        return subset

    @abstractmethod
    def _select(self, indices: list[int]) -> None:
        """Keep the pixels, or the paths to them, of these images only; called on a shallow copy."""


class FileDataset(MultiLabelDataset):
    """Labelled image files.

    Attributes: ``paths``, ``max_pixels``, ``skipped``, and ``annotations``: the annotation with an image's boxes by the
    image's path, in formats that have boxes.

    Args:
        paths: M image files.
        skipped: messages about entries that the reader of the annotations left out already.
        max_pixels: width times height that an image may have (:func:`~ssgrl_fast.data.images.read_image`).
        on_error: ``"raise"``: a broken image raises when it is read. ``"skip"``: every image is decoded once, here, and
            the broken ones are left out of ids, labels and length, so that batches stay full and graph, features and
            metrics see the same images; each is listed in ``skipped`` and one warning gives their number. Costs one
            decoding of the whole set.

    Raises:
        ValueError: see MultiLabelDataset; or every image was left out.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        labels: Tensor,
        ids: Sequence[str],
        paths: Sequence[str | Path],
        *,
        skipped: Sequence[str] = (),
        on_error: OnError = "raise",
        transform: Transform | None = None,
        seed: int = 0,
        max_pixels: int = ImageOptions.max_pixels,
    ) -> None:
        check_choice(type(self).__name__, "on_error", on_error, ("raise", "skip"))
        if len(paths) != len(ids):
            raise ValueError(f"paths must be as many as ids, {len(ids)}, got {len(paths)}")
        left_out = list(skipped)
        listed = len(paths) + len(left_out)
        self.paths, self.max_pixels = list(paths), max_pixels
        if on_error == "skip":
            broken = self._find_unreadable(getattr(transform, "resize", None))
            left_out += broken.values()
            kept = [index for index in range(len(paths)) if index not in broken]
            labels, ids = labels[kept], [ids[index] for index in kept]
            self._select(kept)
        if left_out and not self.paths:
            raise ValueError(f"all {listed} images were left out (on_error='skip'), the first because of {left_out[0]}")
        super().__init__(class_names, labels, ids, transform=transform, seed=seed)
        self.annotations: dict[str | Path, Path] = {}
        self.skipped = left_out
        if left_out:
            shown = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
            warnings.warn(f"{len(left_out)} of {listed} images left out (on_error='skip'): {shown}", stacklevel=3)

    def load_image(self, index: int) -> Image:
        return self._read(index, None)

    def image_for(self, index: int, transform: Transform) -> Image:
        return self._read(index, getattr(transform, "resize", None))

    def identity(self, index: int) -> tuple[object, ...]:
        """What tells this image from others: its path, size, time of change and inode."""
        facts = os.stat(self.paths[index])
        return Path(self.paths[index]).resolve(), facts.st_size, facts.st_mtime_ns, facts.st_ino

    def ends(self, index: int, count: int) -> tuple[int, bytes]:
        """As :func:`file_ends`, of an image."""
        return file_ends(self.paths[index], count)

    def _read(self, index: int, side: int | None) -> Image:
        """An image for a square of ``side`` pixels, see :func:`~ssgrl_fast.data.images.read_image`."""
        from ssgrl_fast.data.images import read_image

        return read_image(self.paths[index], side=side, max_pixels=self.max_pixels)

    def default_transform(self) -> Transform:
        from ssgrl_fast.data.transforms import eval_transform  # which needs Pillow

        return eval_transform()

    def _select(self, indices: list[int]) -> None:
        self.paths = [self.paths[index] for index in indices]

    def _find_unreadable(self, side: int | None) -> dict[int, str]:
        """Decode every image, on all cores; the messages of those that cannot be decoded, by position."""

        def problem(index: int) -> str | None:
            try:
                self._read(index, side)
            except (BrokenImage, FileNotFoundError) as error:
                return str(error)
            return None

        broken, count = {}, len(self.paths)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for index, message in enumerate(pool.map(problem, range(count))):
                if message is not None:
                    broken[index] = message
                if (index + 1) % 5000 == 0:
                    _log.info("checked %d of %d images, %d broken", index + 1, count, len(broken))
        return broken

    def joined(self, other: FileDataset) -> Self:
        """This data set's images followed by the other's, with this one's transform and seed.

        Raises:
            ValueError: other class names, or the same names in another order.
        """
        if other.class_names != self.class_names:
            raise ValueError(f"joined: class names must agree, got {self.class_names} and {other.class_names}")
        union = self._copy()
        union.labels = torch.cat([self.labels, other.labels])
        union.ids = self.ids + other.ids
        union.paths, union.annotations = self.paths + other.paths, self.annotations | other.annotations
        union.skipped = self.skipped + other.skipped
        return union


def file_ends(path: str | Path, count: int) -> tuple[int, bytes]:
    """The size of a file in bytes, and its first and last ``count`` bytes, no byte twice."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(count)
        file.seek(max(len(first), size - count))
        return size, first + file.read(count)


def read_all(
    items: Iterable[_Item], read: Callable[[_Item], _Read], on_error: OnError
) -> tuple[list[_Read], list[str]]:
    """Read every entry of a data set: what was read, and the messages of the broken ones left out under
    ``on_error="skip"``.

    Raises:
        BrokenAnnotation, FileNotFoundError: the first broken entry, under ``on_error="raise"``.
    """
    kept: list[_Read] = []
    skipped: list[str] = []
    for item in items:
        try:
            kept.append(read(item))
        except (BrokenAnnotation, FileNotFoundError) as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
    return kept, skipped


def check_distinct(name: str, names: Sequence[str]) -> None:
    """Check that there are names and that none is repeated or empty. A warning names two that differ in case or in
    Unicode's normalisation alone: they stay two.

    Raises:
        ValueError: otherwise.
    """
    repeated = sorted(entry for entry, times in Counter(names).items() if times > 1)
    if not names or repeated or not all(names):
        raise ValueError(
            f"{name} must be distinct, non-empty names, got {list(names)}"
            + (f": {repeated} repeated" if repeated else "")
        )
    if alike := alike_names(names):
        warnings.warn(f"{name}{alike}; they are kept as two classes", stacklevel=2)


def shared_zero() -> Tensor:
    """An int64 scalar in shared memory, which worker processes that already run can see change."""
    zero = torch.zeros((), dtype=torch.int64)
    zero.share_memory_()
    return zero
