"""Prediction by several processes of one machine, each with a device of its own, into one folder of shards.

The processes exchange nothing, so they need no process group: each takes every N-th name. One that is killed is started
again for what it has left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from ssgrl_fast._utils.ahead import default_readers, usable_cores
from ssgrl_fast.data.sources import is_shard, open_images
from ssgrl_fast.inference.predict import RowOptions, progress_bar, run_facts, score_files
from ssgrl_fast.inference.shards import SHARD_ROWS, Shards

__all__ = ["Job", "known_total", "predict_by_processes"]

_ATTEMPTS = 3  # starts of a process that ends without a new shard


@dataclass(frozen=True)
class Job:
    """A run that writes shards; a process can be given it.

    Attributes:
        bundle: of the model.
        settings: further arguments of :meth:`~ssgrl_fast.inference.predictor.Predictor.load`.
        options: see :class:`~ssgrl_fast.inference.predict.RowOptions`.
        output: folder of the shards.
        rows: of a shard at most.
    """

    bundle: str
    settings: dict[str, Any]
    options: RowOptions
    output: str
    rows: int = SHARD_ROWS

    def predictor(self) -> Any:
        """The model, a :class:`~ssgrl_fast.inference.predictor.Predictor`."""
        from ssgrl_fast.inference.predictor import Predictor

        return Predictor.load(self.bundle, **self.settings)

    def run(self, names: Sequence[str], predictor: Any = None) -> Iterator[Counter[str]]:
        """Predict what of these names (:func:`~ssgrl_fast.data.sources.open_images`) has no row yet; yields the counts
        of each shard when it is there."""
        predictor = self.predictor() if predictor is None else predictor
        facts, shards = run_facts(predictor, self.options), Shards(self.output)
        done = shards.finished(facts)
        total = known_total(names)
        scored = score_files(
            predictor,
            open_images(names, done),
            self.options,
            total=None if total is None else max(0, total - len(done)),
        )
        yield from shards.write_all(facts, scored, batch_size=self.options.batch_size, rows=self.rows)


def known_total(names: Sequence[str]) -> int | None:
    """How many images these names are; None: shards are among them, which are not counted before they are read."""
    return None if any(map(is_shard, names)) else len(names)


def predict_by_processes(job: Job, names: Sequence[str], devices: int) -> Counter[str]:
    """Run a job in several processes; the counts of their rows.

    Args:
        job: on "cuda" the processes use cuda:0, cuda:1, …; on "cpu" they share the cores.
        names: images and shards; process r takes the names r, r + N, …
        devices: processes, N.

    Raises:
        ChildProcessError: a process failed, with its message; or was killed three times without a new shard. What is
            written stays, and ``--resume`` goes on.
    """
    context: Any = multiprocessing.get_context("spawn")
    counts = Counter[str]()
    running: dict[Any, tuple[Any, int, int]] = {}  # by pipe: process, rank, starts without a new shard
    silent = replace(job, options=replace(job.options, progress=False))

    def start(rank: int, attempts: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        parts = (silent, names[rank::devices], rank, devices, theirs)
        process = context.Process(target=_work, args=parts, daemon=True, name=f"ssgrl_fast-predict-{rank}")
        process.start()
        theirs.close()
        running[ours] = (process, rank, attempts)

    with progress_bar() if job.options.progress else nullcontext() as bar:
        task = bar and bar.add_task("predict", total=known_total(names))
        try:
            for rank in range(devices):
                start(rank, 1)
            while running:
                pipe: Any
                for pipe in wait(list(running)):
                    process, rank, attempts = running.pop(pipe)
                    try:
                        message = pipe.recv()
                    except EOFError:  # its end; a killed process has left no word of it
                        process.join()
                        if process.exitcode == 0:
                            continue
                        if process.exitcode > 0 or attempts == _ATTEMPTS:
                            raise ChildProcessError(f"{process.name} ended with status {process.exitcode}") from None
                        start(rank, attempts + 1)
                        continue
                    if isinstance(message, str):
                        raise ChildProcessError(f"{process.name}: {message}")
                    counts += message
                    if bar:
                        bar.advance(task, message.total())
                    running[pipe] = (process, rank, 1)
        finally:
            for process, *_ in running.values():
                process.terminate()
    return counts


def _work(job: Job, names: Sequence[str], rank: int, devices: int, pipe: Connection) -> None:
    """A process: counts of its shards, or the message of an error, go into the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings, options = dict(job.settings), job.options
    if settings.get("device") == "cuda":
        settings["device"] = f"cuda:{rank}"
    else:
        torch.set_num_threads(max(1, usable_cores() // devices))
    if options.readers is None:
        options = replace(options, readers=max(1, default_readers() // devices))
    try:
        for counts in replace(job, settings=settings, options=options).run(names):
            pipe.send(counts)
    except (ValueError, OSError, ImportError) as error:
        pipe.send(str(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
