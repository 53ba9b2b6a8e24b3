"""Prediction on many machines by Ray Data (extra ``ray``).

Each actor loads the model once and predicts blocks: the names of some images, or of one tar shard. The rows of a block
are written as shards of predictions, under names made of their images' names. Where an actor or a machine dies, Ray
runs the block again, which replaces what it had written. Blocks are counted from the first name, whether it has a row
or not, and shards end where a batch ends: a resumed run therefore has the batches of a run without a kill. The package,
the bundle and the images must be reachable under the same names on every machine.
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ssgrl_fast._utils.checks import need
from ssgrl_fast._utils.escape import for_table
from ssgrl_fast.data.sources import ImageSource, is_shard, open_images
from ssgrl_fast.inference.predict import RowOptions, run_facts, score_files
from ssgrl_fast.inference.processes import Job
from ssgrl_fast.inference.shards import Shards, of_the_run, table_of

__all__ = ["Labeler", "label", "predict_by_ray"]

_WHAT = "predict --engine ray"


class Labeler:
    """A callable class for ``Dataset.map_batches(…, batch_format="pyarrow")``: the model is loaded once per actor.

    Args:
        job: bundle, settings and options; its output is not used.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.predictor = job, job.predictor()
        self.facts = run_facts(self.predictor, job.options)

    def __call__(self, batch: Any) -> Any:
        """Rows of images as a table with the columns of :mod:`ssgrl_fast.inference.shards`.

        Args:
            batch: ``pyarrow.Table`` with a column "file", names of files or addresses as text or bytes, and where the
                images are no files a column "bytes" with their content (null: the name is opened).

        Raises:
            BrokenImage, FileNotFoundError: an image that cannot be read, unless skip_broken.
        """
        return table_of(self.facts, list(score_files(self.predictor, _sources(batch), self.job.options)))


class _Writer(Labeler):
    """Writes the rows of a block of names as shards, which do not depend on the time; gives the counts of its rows, or
    the message of an error."""

    def __init__(self, job: Job, facts: dict[str, Any], done: Container[str]) -> None:
        super().__init__(job)
        self.expected, self.done = of_the_run(facts), done

    def __call__(self, batch: Any) -> Any:
        size, counts, message = self.job.options.batch_size, Counter[str](), None
        try:
            for name, value in self.expected.items():
                if self.facts[name] != value:
                    raise ValueError(f"its machine computes with {name} = {self.facts[name]!r}, the run has {value!r}")
            for block in batch["files"].to_pylist():
                names = os.fsdecode(block).split("\0")
                scored = score_files(self.predictor, open_images(names, self.done), self.job.options)
                rows = self.job.rows if is_shard(names[0]) else len(names) + size  # of a block one shard
                parts = Shards(self.job.output).write_all(
                    self.facts, scored, batch_size=size, rows=rows, seconds=math.inf
                )
                counts += sum(parts, Counter[str]())
        except (ValueError, OSError, ImportError) as error:  # Ray keeps no message of a user's error
            message = str(error)
        row = {"images": counts["images"], "broken": counts["broken"], "message": message}
        return need("pyarrow", "ray", _WHAT).table({name: [value] for name, value in row.items()})


def label(
    dataset: Any,
    bundle: str | Path,
    *,
    actors: int = 1,
    rows: int | None = 512,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Label the images of a Ray data set.

    Args:
        dataset: ``ray.data.Dataset`` with the columns that :class:`Labeler` takes; as ``ray.data.read_binary_files``
            gives them, once its "path" is renamed "file".
        bundle: folder of a bundle on every machine, or a Hub repository.
        actors: processes that hold the model, each with one GPU where the device is "cuda", otherwise one CPU.
        rows: images that an actor is given at a time; None: a whole block of the data set.
        settings: further arguments of :meth:`~ssgrl_fast.inference.predictor.Predictor.load`: device, image_size, …
        options: of :class:`~ssgrl_fast.inference.predict.RowOptions`.

    Returns:
        ``ray.data.Dataset`` of rows; its columns are those of :mod:`ssgrl_fast.inference.shards`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: an option out of range; dtype "auto".
    """
    return _mapped(dataset, Labeler, (Job(str(bundle), settings or {}, RowOptions(**options), "-"),), actors, rows)


def predict_by_ray(job: Job, names: Sequence[str], *, actors: int = 1, address: str | None = None) -> Counter[str]:
    """Run a job on a cluster; the counts of its rows. What has a row already is left out.

    Args:
        job: its output must be a folder that all machines share, or an address.
        names: images and shards (:func:`~ssgrl_fast.data.sources.open_images`).
        actors: see :func:`label`.
        address: of the cluster, "auto" for that of this machine; None: a cluster of this machine alone is started, and
            ended at the end, unless the process has one.

    Raises:
        ImportError: Ray is not installed.
        ValueError: dtype "auto"; see also :meth:`~ssgrl_fast.inference.shards.Shards.finished`.
        ConnectionError: there is no cluster at the address.
        ChildProcessError: an actor failed, with its message. What is written stays, and ``--resume`` goes on.
    """
    ray = need("ray", "ray", _WHAT)
    _check_dtype(job)
    here = replace(job, settings={**job.settings, "device": "cpu"}).predictor()
    facts = run_facts(here, job.options)
    done = Shards(job.output).finished(facts)
    del here
    own, counts = not ray.is_initialized(), Counter[str]()
    if own:
        dashboard = {"include_dashboard": False} if address is None else {}
        ray.init(address=address, logging_level="info" if job.options.progress else "warning", **dashboard)
    try:
        need("ray.data", "ray", _WHAT).DataContext.get_current().enable_progress_bars = job.options.progress
        if not (blocks := _blocks(names, job.rows, done)):
            return counts
        dataset = need("ray.data", "ray", _WHAT).from_items(blocks, override_num_blocks=len(blocks))
        written = _mapped(dataset, _Writer, (job, facts, done), actors, None)
        for batch in written.iter_batches(batch_format="pyarrow", batch_size=None):
            for row in batch.to_pylist():
                if row["message"] is not None:
                    raise ChildProcessError(f"predict: an actor: {row['message']}")
                counts.update(images=row["images"], broken=row["broken"])
        return counts
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"predict: an actor failed: {error}") from error
    finally:
        if own:
            ray.shutdown()


def _check_dtype(job: Job) -> None:
    if job.settings.get("dtype") == "auto":
        raise ValueError(
            "predict: --dtype auto is what a machine is fast in, and the machines of a cluster may differ, so that "
            "rows of one run would be of two precisions: name one, as --dtype bfloat16"
        )


def _mapped(dataset: Any, kind: type[Labeler], arguments: tuple[Any, ...], actors: int, rows: int | None) -> Any:
    """A data set as a callable class maps it; the first of its arguments is the job."""
    data, (job, *rest) = need("ray.data", "ray", _WHAT), arguments
    _check_dtype(job)
    if actors < 1:
        raise ValueError(f"predict: actors must be at least 1, got {actors}")
    gpu = str(job.settings.get("device", "cpu")).startswith("cuda")
    silent = replace(job, options=replace(job.options, progress=False))
    return dataset.map_batches(
        kind,
        fn_constructor_args=(silent, *rest),
        batch_format="pyarrow",
        batch_size=rows,
        compute=data.ActorPoolStrategy(size=actors),
        num_cpus=None if gpu else 1,
        num_gpus=1 if gpu else None,
    )


def _blocks(names: Sequence[str], rows: int, done: Container[str]) -> list[dict[str, bytes]]:
    """The names of ``rows`` images each, or of one shard, joined by zero bytes; blocks without work are left out."""
    images = [name for name in names if not is_shard(name)]
    blocks = [images[start : start + rows] for start in range(0, len(images), rows)]
    blocks += [[name] for name in names if is_shard(name)]
    left = [block for block in blocks if any(for_table(name) not in done for name in block)]
    return [{"files": os.fsencode("\0".join(block))} for block in left]


def _sources(batch: Any) -> Iterator[ImageSource]:
    contents = batch["bytes"].to_pylist() if "bytes" in batch.column_names else [None] * len(batch)
    for name, content in zip(map(os.fsdecode, batch["file"].to_pylist()), contents, strict=True):
        if content is None:
            yield from open_images([name])
        else:
            yield ImageSource(name, partial(io.BytesIO, content))
