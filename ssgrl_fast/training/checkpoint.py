"""Checkpoints of training: the entry beside the weights from which the network is built again, without word vectors,
labels or configuration at hand; reading without running code; and writing in one step."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from ssgrl_fast._utils.files import replacing
from ssgrl_fast.models.weight_files import load_whole
from ssgrl_fast.training.network import Ingredients
from ssgrl_fast.training.options import ARCHITECTURE, MODE_DEFAULTS, TaskOptions

TRAINING_ENTRY = "ssgrl_fast"
"""Under which key a checkpoint of `fit` keeps class names, words, graph and architecture beside its state_dict."""

_LATER = ("preprocessing", "recipe")  # entries that version 0.1.0 did not write


@dataclass(frozen=True)
class TrainingEntry:
    """What the network of a checkpoint was built from.

    Attributes:
        architecture: the options that decide its shape, by name (``ssgrl_fast.training.options.ARCHITECTURE``).
        class_names: C names.
        ingredients: word vectors, adjacency and how they were made.
        transfer: the record of the transfer that training started from, or None.
        preprocessing: of the images of its training, as ``BundleMixin.preprocessing``; None where unknown.
        recipe: the facts of its training, as ``BundleMixin.recipe``; None in files of earlier versions.
    """

    architecture: dict[str, Any]
    class_names: list[str]
    ingredients: Ingredients
    transfer: dict[str, Any] | None
    preprocessing: dict[str, int] | None = None
    recipe: dict[str, str] | None = None

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any], where: str) -> TrainingEntry:
        """The entry of a checkpoint.

        Args:
            checkpoint: as torch.load gives it.
            where: its path, for the message.

        Raises:
            ValueError: it has none, or a damaged one.
        """
        if TRAINING_ENTRY not in checkpoint:
            raise ValueError(f"{where}: not a checkpoint of SSGRLTask (it has no {TRAINING_ENTRY!r} entry)")
        facts = checkpoint[TRAINING_ENTRY]
        try:
            built = {"decoupling": "semantic", **facts["architecture"]}  # earlier checkpoints do not name it
            ingredients = Ingredients(facts["words"], facts["adjacency"], facts.get("origin"))
            class_names = facts["class_names"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: its {TRAINING_ENTRY!r} entry is damaged ({error!r})") from error
        later = {name: facts.get(name) for name in ("transfer", *_LATER)}
        return cls(built, class_names, ingredients, **later)

    def write(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Put the entry into a checkpoint."""
        checkpoint[TRAINING_ENTRY] = {
            "architecture": self.architecture,
            "class_names": self.class_names,
            "words": self.ingredients.vectors,
            "adjacency": self.ingredients.adjacency,
            "origin": self.ingredients.origin,
            "transfer": self.transfer,
            **{name: getattr(self, name) for name in _LATER},
        }

    def settle(self, options: TaskOptions, where: str, *, resuming: bool) -> TaskOptions:
        """The options with those that the checkpoint decides set; a message says which were others.

        Args:
            options: of the task.
            where: the checkpoint's path, for the message.
            resuming: whether its training goes on, which cannot be with another architecture.

        Raises:
            ValueError: it is resumed with another architecture.
        """
        built = {name: self.architecture[name] for name in ARCHITECTURE}
        differing = {name: value for name, value in built.items() if getattr(options, name) != value}
        if not differing:
            return options
        listed = ", ".join(
            f"{name}={getattr(options, name)!r} (checkpoint: {value!r})" for name, value in differing.items()
        )
        if resuming:
            raise ValueError(f"{where}: cannot resume with another architecture: {listed}")
        rank_zero_info(f"{where} decides the architecture, not the configuration: {listed}")
        # What followed the configuration's mode follows the checkpoint's.
        of_mode = MODE_DEFAULTS[options.mode].items() if "mode" in differing else ()
        follow: dict[str, Any] = {name: None for name, value in of_mode if getattr(options, name) == value}
        return replace(options, **follow, **differing)


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint without running code from it (torch.load with weights_only=True).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated file, or one that is no checkpoint of this project's `fit`; the message names the file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        checkpoint = load_whole(path, map_location=map_location)
    except PermissionError:
        raise
    except Exception as error:  # torch.load has no fixed set of errors for damaged files
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path}: not a readable checkpoint (damaged, truncated, or not a torch file): {reason}"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path}: a torch file, but no training checkpoint (it has no 'state_dict')")
    counts, state = [checkpoint.get(name) for name in ("epoch", "global_step")], checkpoint["state_dict"]
    tensors = isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
    if not tensors or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(
            f"{path}: a damaged checkpoint: 'state_dict' must hold tensors, 'epoch' and 'global_step' counts"
        )
    return checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disc and renames it: a kill leaves the last good file.

    Lightning's own, as of 2.6.6, writes to the folder for temporary files and moves from there. Where that is another
    file system, as it often is, the move is a copy: a full disc or a kill in it destroys the earlier checkpoint. It
    also holds the checkpoint in memory twice more, and does not flush it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save `checkpoint` at `path`, replacing what is there in one step.

        Raises:
            TypeError: storage_options were given; local files take none.
            OSError: the disc refused, for example because it is full; the earlier file is untouched.
        """
        if storage_options is not None:
            raise TypeError(f"AtomicCheckpointIO takes no storage_options, got {storage_options!r}")
        with replacing(path, alone=True) as part, open(part, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch.save hides the disc's refusal behind an error about its own archive, whose context it is
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; see :func:`read_checkpoint` for the errors. It is always read with weights_only=True."""
        return read_checkpoint(path, map_location)
