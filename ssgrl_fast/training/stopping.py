"""Stops a fit that gets SIGINT or SIGTERM between two batches, and says how to go on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, Trainer

from ssgrl_fast._utils.signals import Stopped, handling, stop


class StopOnSignal(Callback):
    """While training runs, a signal waits for the end of the batch, and so for checkpoints that are being written; a
    second signal does not wait. Of several processes all stop before the same batch.

    ``last.ckpt`` holds the run as it was after its last finished epoch: a resumed run repeats the numbers of one that
    was never stopped.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._signal: int | None = None
        self._handlers = ExitStack()

    def _note(self, number: int, frame: FrameType | None = None) -> None:
        if self._signal is not None:
            stop(number)
        self._signal = number

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """From here on signals wait; Lightning's own handlers, which end a fit with status 0, are replaced."""
        self._handlers.enter_context(handling(self._note))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """What follows, the export of the bundle, is stopped at once."""
        self._handlers.close()
        self._stop_if_asked(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop if asked to; the epoch before has its checkpoint."""
        self._stop_if_asked(trainer)

    def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Stop if asked to."""
        self._stop_if_asked(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Stop if asked to."""
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            stop(self._signal or 15)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Put the advice into :class:`Stopped`."""
        self._handlers.close()
        if isinstance(exception, Stopped):
            last = self.run / "checkpoints" / "last.ckpt"
            exception.advice = (
                f"{last} holds the run after its last finished epoch: the same command with --ckpt_path {last} goes on "
                "from there"
                if last.is_file()
                else f"no epoch was finished, so {self.run} has no checkpoint: run the same command again"
            )
