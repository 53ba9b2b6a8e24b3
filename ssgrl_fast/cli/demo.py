"""``python -m ssgrl_fast demo``: SSGRL and its baseline trained on the embedded digits, and this machine measured.

Trains SSGRL and global pooling + linear on the same backbone, canvases, epochs and kind of schedule, reads the test
canvases once, holds the fused kernels to the reference, times them beside the head as published, and leaves one table,
a chart of the AP of every class, an attention sheet and both models. No download, no GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ssgrl_fast._utils.checks import need
from ssgrl_fast.backends import extension

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration.

    Args:
        argv: the arguments after ``demo``; None takes none.

    Returns:
        0; whatever fails raises.

    Raises:
        ValueError: an option out of range.
        ImportError: the extra "train" is not installed.
    """
    options = _parser().parse_args(list(argv or []))
    for name in ("minutes", "epochs", "canvases"):
        if getattr(options, name) <= 0:
            raise ValueError(f"demo: --{name} must be positive, got {getattr(options, name)}")
    need("lightning", "train", "the demonstration")
    from ssgrl_fast.studies.demo import measure, pictures, results, training

    console = results.console()
    missing = extension.library()
    backend = "reference" if missing else "cpu"
    console.print(f"SSGRL demonstration, PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if missing:
        console.print(f"[bold]The fused CPU kernels are absent, everything runs on the reference:[/] {missing}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    pair = training.train_pair(
        epochs=options.epochs,
        minutes=options.minutes,
        canvases=options.canvases,
        seed=options.seed,
        backend=backend,
        console=console,
    )
    with console.status("comparing fused and reference on the trained model's features"):
        parity = measure.parity(pair.ssgrl.model, pair.test_images(16))
    size = measure.HeadSize(images=options.head_images)
    with console.status("timing the head, fused and as published"):
        speed = measure.speed(size, backend)
    with console.status("metering the memory of the head, fused and as published"):
        memory = measure.memory(size, backend)
    figures = pictures.draw(pair, out)
    outcome = results.Results(pair, parity, speed, memory, size, backend, missing, time.perf_counter() - began)
    console.print(outcome.table())
    written = results.save(outcome, out)
    for what, path in {**figures, **written}.items():
        console.print(f"{what:<22} {path}", highlight=False, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssgrl-fast demo", description="Train on the embedded digits beside a baseline, and measure this machine."
    )
    parser.add_argument("--out", default="runs/demo", help="folder for pictures, report and models (runs/demo)")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="most time for training, both models; epochs shrink to fit (8)"
    )
    parser.add_argument("--epochs", type=int, default=7, help="of either model (7)")
    parser.add_argument("--canvases", type=int, default=6000, help="training canvases (6000)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and order (0)")
    parser.add_argument("--head-images", type=int, default=1, help="B of the measured head (1)")
    return parser
