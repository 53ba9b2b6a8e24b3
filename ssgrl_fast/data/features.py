"""Features of a frozen backbone, computed once and kept on disk: a head then trains without touching an image.

A store is one folder, named by what its content depends on: the backbone (its name, structure and weights), the
transform, the images (files with path, size, time of change and inode, or pixels), the views, the precision and
torch's version. Each view, the images as they are and mirrored, is one .npy file [M, D, H, W]. A store is written
beside its place and renamed when it is whole, so a part of one is never taken for the whole. Each row has a CRC-32,
checked when it is read.

Letters: M images, C classes, D channels and H x W cells of the feature map.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ssgrl_fast._utils.ahead import read_batches
from ssgrl_fast._utils.arrays import read_array
from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.files import is_locked, locked, new_array, new_folder, write_json
from ssgrl_fast._utils.memory import return_memory
from ssgrl_fast._utils.text import parse_json

need("lightning", "train", "ssgrl_fast.data.features")
from lightning.pytorch import Trainer  # noqa: E402

from ssgrl_fast.data.base import FileDataset, MultiLabelDataset, sample_generator, shared_zero  # noqa: E402
from ssgrl_fast.data.datamodule import MultiLabelDataModule  # noqa: E402
from ssgrl_fast.data.transforms import EvalTransform, TrainTransform, eval_transform  # noqa: E402

VIEWS = ("plain", "flipped")
_STAGES = {"fit": ("train_dataset", "val_dataset"), "validate": ("val_dataset",), "test": ("test_dataset",)}
_META = "meta.json"
_FORMAT = 2
_NEW = 60  # seconds in which a folder that a process has just made may not be locked yet


class CachedFeatures(Dataset[dict[str, Any]]):
    """A data set whose items hold the backbone's features in place of the image.

    Items are {"features": [D, H, W] in the store's dtype, "target": int8 [C], "index": int}. With ``flip`` an item is
    the mirrored view for the same (seed, epoch, index) for which the data set's own training transform mirrors.

    Args:
        images: the data set that the features were computed from; its labels, names and epochs are passed on.
        store: a folder that :func:`cache_features` has written.
        flip: take the mirrored view for half of the images, newly drawn each epoch.

    Raises:
        ValueError: the store is damaged or of another size; the message names the file.
    """

    def __init__(self, images: MultiLabelDataset, store: Path, *, flip: bool = False) -> None:
        self._adopt(images)
        self.store = store
        self.flip = flip
        self.rows = list(range(len(images)))
        self._meta = _read_meta(store)
        self._views: dict[str, np.ndarray] = {}
        if flip and "flipped" not in self._meta["views"]:
            raise ValueError(f"{store}: holds no mirrored view")
        for view in self._meta["views"]:
            if len(self._open(view)) != len(images):
                raise ValueError(f"{store / view}.npy: holds {len(self._open(view))} images, expected {len(images)}")

    def _adopt(self, images: MultiLabelDataset) -> None:
        """Take over labels, names and seed of the images."""
        self.images, self.class_names, self.labels = images, images.class_names, images.labels
        self.ids, self.skipped, self.seed = images.ids, images.skipped, images.seed
        self._epoch = shared_zero()

    @property
    def epoch(self) -> int:
        """The epoch that the mirroring is drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the mirroring, at least 0; that of the images stays."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One item; see the class. Raises IndexError outside 0 .. M-1."""
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        mirrored = self.flip and _mirrored(self.seed, self.epoch, index)
        row = self.rows[index]
        view = "flipped" if mirrored else "plain"
        values = np.array(self._open(view)[row])
        if zlib.crc32(values.data) != self._meta["crc32"][view][row]:
            raise self._damaged(view, f"the features of image {row} do not have their checksum")
        features = torch.from_numpy(values)
        features = features.view(torch.bfloat16) if self._meta["dtype"] == "bfloat16" else features
        return {"features": features, "target": self.labels[index], "index": index}

    def select(self, indices: Iterable[int], *, flip: bool | None = None) -> CachedFeatures:
        """These images only, in this order, with their own epoch; nothing is computed or copied.

        Args:
            indices: rows of this data set.
            flip: whether the part mirrors; None: as this one does.

        Raises:
            ValueError: no index, or mirroring where there is no mirrored view.
            IndexError: an index outside 0 .. M-1.
        """
        chosen = list(indices)
        part = copy.copy(self)
        part._adopt(self.images.select(chosen))
        part.rows = [self.rows[index] for index in chosen]
        part.flip = self.flip if flip is None else flip
        if part.flip and "flipped" not in self._meta["views"]:
            raise ValueError(f"{self.store}: holds no mirrored view")
        return part

    def _open(self, view: str) -> np.ndarray:
        if view not in self._views:
            path = self.store / f"{view}.npy"
            try:
                self._views[view] = read_array(path, mapped=True)
            except (OSError, ValueError) as error:
                raise self._damaged(view, error) from error
            form = [self._views[view].dtype.str, list(self._views[view].shape)]
            if form != self._meta["arrays"][view] or not self._views[view].flags.c_contiguous:
                raise self._damaged(view, f"an array {form}, written was {self._meta['arrays'][view]}")
        return self._views[view]

    def _damaged(self, view: str, what: object) -> ValueError:
        return ValueError(f"{self.store / view}.npy: damaged ({what}); delete {self.store} and it will be made again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": {}}  # a worker maps the files itself


def _read_meta(store: Path) -> dict[str, Any]:
    path = store / _META
    try:
        meta = parse_json(path.read_text(encoding="utf-8"))
        found = {name: meta[name] for name in ("views", "dtype", "description", "arrays", "crc32")}
        if meta["sha256"] != _sha256(json.dumps(found, sort_keys=True).encode()):
            raise ValueError("it does not have its checksum")
        return found
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); delete {store} and it will be made again") from error


def cache_features(
    images: MultiLabelDataset,
    backbone: nn.Module,
    folder: str | Path,
    *,
    name: str,
    weights: str | None = None,
    batch_size: int = 16,
    prepare: Callable[[nn.Module], nn.Module] = copy.deepcopy,
    device: torch.device | str = "cpu",
    precision: str = "32-true",
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: bool = True,
) -> CachedFeatures:
    """The data set with features for images: read from the store that fits, or computed now.

    Args:
        images: a data set with an ``eval_transform``, or with a ``train_transform`` that may mirror but does not crop
            (its crops and its ``resize`` are its ``size``): where it mirrors, the set gets both views.
        backbone: maps images [B, 3, H, W] to [B, D, H', W']; evaluated in eval mode, without gradients.
        folder: where stores lie.
        name: the backbone's name, part of the key.
        weights: the :func:`weights_digest` of the backbone, where it is known.
        batch_size: of the computation.
        prepare: gives the form of the backbone that computes, a copy; ``ssgrl_fast.models.prepare.prepare_backbone``.
        device: where the backbone lies.
        precision: what ``context`` does, by name; part of the key.
        context: entered around each forward, an autocast for example.
        progress: show a bar.

    Raises:
        ValueError: the transform cuts random crops, or is none of this project's; the store is damaged.
        BrokenImage, FileNotFoundError: an image cannot be read.
    """
    # what the features depend on; its digest names the store
    plain, flip = _plain_transform(images)
    views = VIEWS if flip else VIEWS[:1]
    structure = _sha256(repr(backbone).encode())
    description = {
        "format": _FORMAT,
        "backbone": {"name": name, "structure": structure, "weights": weights or weights_digest(backbone.state_dict())},
        "transform": {"type": type(plain).__name__, **vars(plain)},
        "images": images_digest(images),
        "views": list(views),
        "precision": f"{precision} on {torch.device(device).type}",
        "torch": torch.__version__,
    }
    description = json.loads(json.dumps(description))
    key = _sha256(json.dumps(description, sort_keys=True).encode())[:20]
    store = Path(folder) / key
    # compute what is not there yet
    if not store.is_dir():
        read = partial(_read, images, plain)
        batches: Iterable[list[Tensor]] = read_batches(read, range(len(images)), batch_size=batch_size)
        if progress:
            bar, count = need("tqdm", "train", "ssgrl_fast.data.features").tqdm, -(-len(images) // batch_size)
            title = f"features of {len(images)} images"
            batches = bar(batches, desc=title, unit="batch", total=count, disable=None)  # no bar off a terminal
        with context():
            prepared = prepare(backbone).eval()
        _write(store, description, views, len(images), _forward(batches, prepared, views, device, context))
        del prepared
        return_memory()
    # open the store, which has to describe itself as expected
    features = CachedFeatures(images, store, flip=flip)
    if features._meta["description"] != description:
        raise ValueError(f"{store / _META}: does not describe this store; delete {store} and it will be made again")
    return features


def cache_splits(
    data: MultiLabelDataModule,
    backbone: nn.Module,
    folder: str | Path,
    *,
    trainer: Trainer,
    **how: Any,
) -> dict[str, CachedFeatures]:
    """Features of a data module's images, computed by the first process of each machine; the module stays as it is.

    Args:
        data: gives the images, which are normalised by ``backbone.mean`` and ``backbone.std``.
        backbone, folder: see :func:`cache_features`; the backbone is moved to the trainer's device.
        trainer: gives device and precision.
        how: ``name``, ``weights`` and ``prepare`` of :func:`cache_features`.

    Returns:
        Features by part ("train_dataset", "val_dataset", "test_dataset"), of the parts that the trainer's verb uses.

    Raises:
        ValueError, BrokenImage, FileNotFoundError: see :func:`cache_features`.
    """
    device = trainer.strategy.root_device
    options: dict[str, Any] = {
        **how,
        "batch_size": data.options.eval_batch_size or data.options.batch_size,
        "device": device,
        "precision": str(trainer.precision),
        "context": trainer.precision_plugin.forward_context,
    }
    backbone.to(device)
    norm: Any = backbone  # one of ssgrl_fast.models, which this room does not import
    assert trainer.state.fn is not None  # it runs
    parts = {}
    for part in _STAGES[trainer.state.fn.value]:
        images = getattr(data, part)
        if images is None:
            continue
        images = images.with_normalisation(norm.mean, norm.std)
        if trainer.local_rank == 0:
            parts[part] = cache_features(images, backbone, folder, **options)
        trainer.strategy.barrier("cache_features")  # the others wait for a store that is whole
        if trainer.local_rank != 0:
            parts[part] = cache_features(images, backbone, folder, **options)
    return parts


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a state_dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def images_digest(images: MultiLabelDataset) -> dict[str, Any]:
    """What tells one list of images from another: files by path, size, time of change and inode, others by pixels."""
    digest = hashlib.sha256()
    if isinstance(images, FileDataset):
        for index in range(len(images)):
            digest.update(f"{images.identity(index)}\n".encode(errors="surrogateescape"))
    else:
        for index in range(len(images)):
            digest.update(np.asarray(images.load_image(index)).tobytes())
    return {"count": len(images), "sha256": digest.hexdigest()}


def _mirrored(seed: int, epoch: int, index: int) -> bool:
    """Whether ``train_transform(flip=True)`` mirrors this image in this epoch: the last of its four draws."""
    draws = torch.rand(4, generator=sample_generator(seed, epoch, index), dtype=torch.float64)
    return bool(draws[3] < 0.5)


def _plain_transform(images: MultiLabelDataset) -> tuple[EvalTransform, bool]:
    """The transform of the plain view, and whether there is a mirrored one."""
    transform = images.transform or images.default_transform()
    if isinstance(transform, EvalTransform):
        return transform, False
    if not isinstance(transform, TrainTransform):
        raise ValueError(f"cached features need a train_transform or an eval_transform, got {transform!r}")
    if transform.resize != transform.size or set(transform.crops) != {transform.size}:
        raise ValueError(
            f"cached features allow mirroring but no random crops: resize and crops must be size = {transform.size}, "
            f"got {transform!r}"
        )
    size = transform.size
    return eval_transform(size, resize=size, mean=transform.mean, std=transform.std), transform.flip


def _read(images: MultiLabelDataset, transform: EvalTransform, index: int) -> Tensor:
    """An image under a transform without chance: float32 [3, H, W]."""
    return transform(images.image_for(index, transform))


def _forward(
    batches: Iterable[list[Tensor]],
    backbone: nn.Module,
    views: Sequence[str],
    device: torch.device | str,
    context: Callable[[], AbstractContextManager[Any]],
) -> Iterator[list[Tensor]]:
    """Yield for each batch one map [B, D, H, W] per view, on the CPU."""
    for images in batches:
        batch = torch.stack(images).to(device)
        with torch.inference_mode(), context():
            yield [backbone(batch if view == "plain" else batch.flip(-1)).cpu() for view in views]


def _write(
    store: Path, description: dict[str, Any], views: Sequence[str], count: int, batches: Iterable[list[Tensor]]
) -> None:
    """Write a store beside its place, flush it, and rename it once it is whole."""
    # remove what killed computations left, and make a folder beside the store, locked as long as this process lives
    store.parent.mkdir(parents=True, exist_ok=True)
    for left in store.parent.glob(".partial-*"):
        with suppress(FileNotFoundError):  # another process has just renamed or removed it
            if time.time() - left.stat().st_mtime > _NEW and not is_locked(left):
                shutil.rmtree(left, ignore_errors=True)
    unfinished = new_folder(store.parent, f".partial-{store.name}-")
    lock = ExitStack()
    lock.enter_context(locked(unfinished))
    try:
        # the maps, batch by batch, into one array per view
        arrays: dict[str, np.memmap] = {}
        sums: dict[str, list[int]] = {view: [] for view in views}
        row, dtype = 0, ""
        for maps in batches:
            for view, features in zip(views, maps, strict=True):
                dtype = str(features.dtype).removeprefix("torch.")
                values = features.contiguous()
                if features.dtype == torch.bfloat16:  # which NumPy does not know
                    values = values.view(torch.int16)
                if view not in arrays:
                    shape = (count, *values.shape[1:])
                    arrays[view] = new_array(unfinished / f"{view}.npy", values.numpy().dtype, shape)
                arrays[view][row : row + len(values)] = values.numpy()
                sums[view] += map(zlib.crc32, values.numpy())
            row += len(maps[0])
        # the description, then everything to the disc, then the name
        for array in arrays.values():
            array.flush()
        forms = {view: [array.dtype.str, list(array.shape)] for view, array in arrays.items()}
        meta: dict[str, Any] = {"views": list(views), "dtype": dtype, "description": description}
        meta |= {"arrays": forms, "crc32": sums}
        write_json(unfinished / _META, {**meta, "sha256": _sha256(json.dumps(meta, sort_keys=True).encode())})
        for path in unfinished.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        try:
            os.rename(unfinished, store)
        except OSError:
            if not store.is_dir():  # another process may have been faster; then its store, of the same content, stays
                raise
    finally:
        lock.close()
        shutil.rmtree(unfinished, ignore_errors=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
