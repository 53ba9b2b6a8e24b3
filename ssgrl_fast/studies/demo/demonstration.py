"""The whole demonstration: train two models, measure the head on this machine, write and print the results.

SSGRL and global pooling + linear are trained on the same backbone, canvases, epochs and kind of schedule, and tested
once. The fused kernels are compared with the float64 reference, and timed beside the head as published. The results are
one table, a chart of the AP of every class, an attention sheet and both models. No download, no GPU.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ssgrl_fast.backends import extension
from ssgrl_fast.studies.demo import measure, pictures, results, training


def run(
    out: Path, *, minutes: float = 8.0, epochs: int = 7, canvases: int = 6000, seed: int = 0, head_images: int = 1
) -> results.Results:
    """Run the demonstration; its progress and its table go to standard output.

    Args:
        out: folder for pictures, report and models; made if it does not exist.
        minutes: limit for training both models together; fewer epochs are trained if needed.
        epochs: of each model.
        canvases: number of training canvases.
        seed: of the initial weights and of the order of the canvases.
        head_images: batch size B of the measured head.

    Returns:
        Everything that was measured.

    Raises:
        RuntimeError: the fused head and the head as published disagree, or a measuring process failed.
        OSError: a file could not be written.
    """
    began = time.perf_counter()
    console = results.console()
    missing = extension.library()
    backend = "reference" if missing else "cpu"
    console.print(f"SSGRL demonstration, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if missing:
        console.print(f"[bold]The fused CPU kernels are absent, everything runs on the reference:[/] {missing}")
    out.mkdir(parents=True, exist_ok=True)
    # train and test both models
    pair = training.train_pair(
        epochs=epochs, minutes=minutes, canvases=canvases, seed=seed, backend=backend, console=console
    )
    # measure the head: errors, times, memory
    with console.status("comparing fused and reference on the trained model's features"):
        parity = measure.parity(pair.ssgrl.model, pair.test_images(16))
    size = measure.HeadSize(images=head_images)
    with console.status("timing the head, fused and as published"):
        speed = measure.speed(size, backend)
    with console.status("measuring the memory of the head, fused and as published"):
        memory = measure.memory(size, backend)
    # print and write; the pictures last, so that one that fails loses nothing
    outcome = results.Results(pair, parity, speed, memory, size, backend, missing, time.perf_counter() - began)
    console.print(outcome.table())
    written = results.save(outcome, out)
    figures = pictures.draw(pair, out)
    for title, path in {**figures, **written}.items():
        console.print(f"{title:<22} {path}", highlight=False, soft_wrap=True, markup=False)
    return outcome
