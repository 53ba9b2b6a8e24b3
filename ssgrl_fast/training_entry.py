"""The entry of a training checkpoint beside its weights: what the network was built from, so that it is built again
without word vectors, labels or the recipe at hand."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from .assembly import ARCHITECTURE, Ingredients
from .models.weight_files import TRAINING_ENTRY


@dataclass(frozen=True)
class TrainingEntry:
    """What the network of a checkpoint was built from.

    Attributes:
        architecture: the options that decide its shape, by name (``ssgrl_fast.assembly.ARCHITECTURE``).
        class_names: C names.
        ingredients: word vectors, adjacency and how they were made.
        transfer: what training started from, as its record says; None where from nothing.
    """

    architecture: dict[str, Any]
    class_names: list[str]
    ingredients: Ingredients
    transfer: dict[str, Any] | None

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any], where: str) -> TrainingEntry:
        """The entry of a checkpoint.

        Args:
            checkpoint: as torch.load gives it.
            where: its path, for the message.

        Raises:
            ValueError: it has none.
        """
        if TRAINING_ENTRY not in checkpoint:
            raise ValueError(f"{where}: not a checkpoint of SSGRLTask (it has no {TRAINING_ENTRY!r} entry)")
        facts = checkpoint[TRAINING_ENTRY]
        built = {"decoupling": "semantic", **facts["architecture"]}  # earlier checkpoints do not name it
        ingredients = Ingredients(facts["words"], facts["adjacency"], facts.get("origin"))
        return cls(built, facts["class_names"], ingredients, facts.get("transfer"))

    def write(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Put the entry into a checkpoint."""
        checkpoint[TRAINING_ENTRY] = {
            "architecture": self.architecture,
            "class_names": self.class_names,
            "words": self.ingredients.vectors,
            "adjacency": self.ingredients.adjacency,
            "origin": self.ingredients.origin,
            "transfer": self.transfer,
        }

    def settle(self, options: MutableMapping[str, Any], where: str, *, resuming: bool) -> None:
        """Set the options that the checkpoint decides, and say which were others.

        Args:
            options: of :class:`~ssgrl_fast.training.SSGRLTask`.
            where: the checkpoint's path, for the message.
            resuming: whether its training goes on, which cannot be with another architecture.

        Raises:
            ValueError: it is resumed with another architecture.
        """
        built = self.architecture
        differs = [name for name in ARCHITECTURE if options[name] != built[name]]
        if not differs:
            return
        said = ", ".join(f"{name}={options[name]!r} (checkpoint: {built[name]!r})" for name in differs)
        if resuming:
            raise ValueError(f"{where}: cannot resume with another architecture: {said}")
        rank_zero_info(f"{where} decides the architecture, not the configuration: {said}")
        for name in differs:
            options[name] = built[name]
