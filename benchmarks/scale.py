"""``python -m benchmarks.scale``: the terms of docs/scale.md's throughput model, its predictions beside measurements.

Terms, in seconds of one core for each image: ``read`` a generated JPEG file (640x480, in the page cache), ``decode`` it
to the network's input, ``network``, and ``write`` its row in a shard. A process computes the network and writes in one
thread while others read and decode, so P processes with R reading threads each on N cores label at most

    min(P / (network + write), P R / (read + decode), N / (read + decode + network + write))   images per second.

Measured is ``ssgrl-fast predict`` into a folder of eight shards a process, with one thread of torch for each process:
the images of the shards after each process's first, divided by the time between, so that the start of the processes
(and of Ray) does not count. The engines take turns; the ratio of two is the median over the rounds.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import timing
from benchmarks.harness.cases import SHAPES
from benchmarks.predict import BATCH, _write_bundle, _write_images, add_job_options
from ssgrl_fast._utils.ahead import usable_cores
from ssgrl_fast.inference.predict import RowOptions, Scored, run_facts
from ssgrl_fast.inference.predictor import Predictor
from ssgrl_fast.inference.shards import SHARD_ROWS, Shards, table_of

TERMS = ("read", "decode", "network", "write")
TIMED = 128  # images that the terms are measured on
SHARDS = 8  # of a process


def predicted(terms: dict[str, float], processes: int, cores: int) -> float:
    """Images per second by the module's model; terms in seconds."""
    readers = max(1, min(8, cores) // processes)
    one = terms["network"] + terms["write"], terms["read"] + terms["decode"]
    return min(processes / one[0], processes * readers / one[1], cores / sum(one))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if a measured job failed."""
    arguments = _parser().parse_args(argv)
    console, cores = Console(width=None if sys.stdout.isatty() else 120, highlight=False), usable_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_images(folder / "images", arguments.images)
        _write_bundle(folder / "bundle", arguments.net, arguments.image, SHAPES[arguments.shape])
        with timing.fixed_threads(1):
            terms = _terms(folder, arguments.rounds)
        listed = ", ".join(f"{name} {1e3 * terms[name]:.2f}" for name in TERMS)
        console.print(f"{arguments.net}, {arguments.image} px, {cores} cores, load {timing.load_average()}")
        console.print(f"milliseconds of a core for each image: {listed}; sum {1e3 * sum(terms.values()):.2f}")
        engines = arguments.engine or ["local"]
        jobs = [(engine, processes) for processes in arguments.processes for engine in engines]
        rounds = [{job: _rate(folder, *job, arguments.images) for job in jobs} for _ in range(arguments.rounds)]
        first = f"to {engines[0]}"
        out = Table("engine", "processes", "predicted images/s", "measured images/s", "measured / predicted", first)
        for engine, processes in jobs:
            expected, found = predicted(terms, processes, cores), max(rates[engine, processes] for rates in rounds)
            ratio = statistics.median(rates[engine, processes] / rates[engines[0], processes] for rates in rounds)
            figures = f"{expected:.1f}", f"{found:.1f}", f"{found / expected:.2f}", f"{ratio:.2f}"
            out.add_row(engine, str(processes), *figures)
        console.print(out)
    return 0


def _terms(folder: Path, rounds: int) -> dict[str, float]:
    """The shortest of some rounds, seconds for each image."""
    predictor, files = Predictor.load(folder / "bundle"), sorted((folder / "images").iterdir())[:TIMED]
    facts, shards = run_facts(predictor, RowOptions()), Shards(str(folder / "shards"))
    contents = [path.read_bytes() for path in files]
    images = torch.stack([predictor.read(path) for path in files])
    logits = predictor.scores(images[:BATCH])[0]
    scored = [Scored(f"{number}.jpg", logits[number % len(logits)]) for number in range(SHARD_ROWS)]  # one fsync

    def decode() -> None:
        for path, content in zip(files, contents, strict=True):
            predictor.read(path, partial(io.BytesIO, content))

    steps: dict[str, Callable[[], object]] = {
        "read": lambda: [path.read_bytes() for path in files],
        "decode": decode,
        "network": lambda: [predictor.scores(batch) for batch in images.split(BATCH)],
        "write": lambda: shards.write(table_of(facts, scored)),
    }
    counts = dict.fromkeys(TERMS, len(files)) | {"write": len(scored)}
    return {name: min(_seconds(step) for _ in range(rounds)) / counts[name] for name, step in steps.items()}


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _rate(folder: Path, engine: str, processes: int, images: int) -> float:
    """Measured images per second."""
    divided = {"local": "--devices", "ray": "--actors"}[engine]
    command = [sys.executable, "-m", "ssgrl_fast", "predict", str(folder / "images"), "--model", str(folder / "bundle")]
    command += ["--engine", engine, divided, str(processes), "--no-progress", "--batch-size", str(BATCH)]
    command += ["--shard-rows", str(max(BATCH, images // (SHARDS * processes)))]
    with tempfile.TemporaryDirectory(dir=folder) as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--output", output], check=True, capture_output=True, env=environment)
        paths = sorted(Shards(output).paths(), key=os.path.getmtime)
        times = [os.path.getmtime(path) for path in paths]
        if len(paths) <= processes:
            raise ValueError(f"{images} images are too few for {processes} processes: give more by --images")
        rows = [Shards(output).open(path)[0].metadata.num_rows for path in paths]
    return sum(rows[processes:]) / (times[-1] - times[processes - 1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    add = parser.add_argument
    add_job_options(parser, images=256)
    add("--processes", type=int, nargs="+", default=[1, 2, 4], metavar="P", help="processes (1 2 4)")
    add("--engine", action="append", choices=("local", "ray"), help="repeatable; default: local")
    add("--rounds", type=int, default=2, help="repetitions, of which the fastest counts (2)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
