"""What training and testing ask of a data module: any LightningDataModule with these names will do.

:class:`~ssgrl_fast.data.datamodule.MultiLabelDataModule` and
:class:`~ssgrl_fast.data.feature_module.FeatureDataModule` are two; ``examples/own_data.py`` shows one by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from torch import Tensor


class Batch(TypedDict):
    """What a loader gives: ``image``, or ``features`` in its place, and ``target``.

    Attributes:
        image: float32 [B, 3, H, W], normalised as the backbone wants (``model.backbone.mean`` and ``std``).
        features: float [B, D, H', W'], what the backbone would give for the images.
        target: int8 [B, C]; 1 present, 0 only difficult objects, -1 absent, -2 unknown.
    """

    image: NotRequired[Tensor]
    features: NotRequired[Tensor]
    target: Tensor


@runtime_checkable
class MultiLabelData(Protocol):
    """The names that a data module must have beside Lightning's loaders, whose batches are :class:`Batch`.

    Three more are used where they are there: ``preprocessing``, ``{"image_size": pixels, "resize": pixels}``, goes into
    bundles; ``val_dataset``, None where there are no validation images, and ``test_dataset`` with ``ids`` and
    ``labels`` let reports name images.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """C names in the order of the columns of ``target``."""

    @property
    def train_labels(self) -> Tensor:
        """int8 [M, C] of the training images, as ``target``: what the graph is counted on."""


def check_data(data: object) -> None:
    """Check that a data module has the names of :class:`MultiLabelData`.

    Raises:
        ValueError: there is none, or it lacks one.
    """
    if data is None:
        raise ValueError("SSGRLTask needs a datamodule (class_names, train_labels): trainer.fit(task, datamodule=…)")
    missing = [name for name in ("class_names", "train_labels") if not hasattr(type(data), name)]
    missing = [name for name in missing if name not in vars(data)]
    if missing:
        raise ValueError(
            f"SSGRLTask: the data module {type(data).__name__} has no {' and no '.join(missing)}; it needs "
            "class_names, C names, and train_labels, int8 [M, C] (ssgrl_fast.data.contract.MultiLabelData)"
        )


def check_batch(batch: Any, classes: int) -> None:
    """Check that a batch is a :class:`Batch` with a target of C columns.

    Raises:
        ValueError: otherwise.
    """
    keys = sorted(map(str, batch)) if isinstance(batch, Mapping) else None
    if keys is None or "target" not in batch or not ("image" in batch or "features" in batch):
        got = f"a {type(batch).__name__}" if keys is None else f"a dictionary with {', '.join(keys) or 'nothing'}"
        raise ValueError(
            f"SSGRLTask: a batch must be a dictionary with 'image' [B, 3, H, W] and 'target' [B, {classes}], got {got}"
        )
    if (shape := list(batch["target"].shape))[1:] != [classes]:
        raise ValueError(f"SSGRLTask: the target of a batch must be [B, {classes}], one column per class, got {shape}")
