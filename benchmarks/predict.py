"""``python -m benchmarks.predict``: photographs to labels, the whole job, each rival in a process of its own.

Generated JPEG files and a bundle with random weights (the backbone's own where it has some without a download) go to:

- ``loop``: what a first script does: Pillow, a tensor, the published network in PyTorch, one file after another.
- ``onnxruntime``: the published network converted for ONNX Runtime, images read by the workers of a DataLoader.
- ``ours-torch``, ``ours-auto``: ``ssgrl-fast predict`` with ``--runtime torch`` and ``auto``.

Each round runs every rival once, from start to the written file, start of the process included; conversions are made
before the rounds and kept. Printed: medians of wall time, CPU time, its share in the kernel, and the peak resident size
of the largest process, then the worst relative error of the logits to those of ``loop``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import timing
from benchmarks.harness.cases import SHAPES, Case, Shape
from benchmarks.rivals.network_models import Backbone, Network, Published, make_backbone
from ssgrl_fast._utils.ahead import usable_cores
from ssgrl_fast.data.transforms import eval_transform
from ssgrl_fast.inference.conversion import Run, convert, open_converted
from ssgrl_fast.models.ssgrl import SSGRL
from ssgrl_fast.testing import relative_error

RIVALS = ("loop", "onnxruntime", "ours-torch", "ours-auto")
BATCH = 8
TOLERANCE = 1e-3  # relative L2 of all logits to those of the loop; above, a rival's times are not printed


@dataclass(frozen=True)
class Job:
    """One measured job."""

    rival: str
    images: int
    wall_s: float
    cpu_s: float
    system_s: float
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Returns:
        0; 1 if a rival failed or computed other logits.
    """
    arguments = _parser().parse_args(argv)
    if arguments.rival:
        _run_rival(arguments.rival, arguments.folder)
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_images(folder / "photographs", arguments.images)
        _write_bundle(folder / "bundle", arguments.net, arguments.image, SHAPES[arguments.shape])
        wanted = [name for name in RIVALS if name in (arguments.only or RIVALS)]
        failed = [name for name in wanted if not _warmed(name, folder, console)]
        errors = {name: _error(folder, name, wanted[0]) for name in wanted if name not in failed}
        failed += [name for name, error in errors.items() if not error <= TOLERANCE]
        for name in failed:
            console.print(f"{name} is not timed: it failed, or its logits are {errors.get(name)} off", markup=False)
        timed = [name for name in wanted if name not in failed]
        jobs = [_measure(name, folder, arguments.images) for _ in range(arguments.rounds) for name in timed]
    load = timing.load_average()
    console.print(f"{arguments.net}, {arguments.image} px, {SHAPES[arguments.shape].classes} classes, load {load}")
    console.print(_table(jobs, timed, errors))
    if arguments.output is not None:
        _append(arguments.output, jobs)
    return 1 if failed else 0


def _write_images(folder: Path, count: int) -> None:
    """JPEG files of 640x480 pixels with structure of all sizes, so that they decode as photographs do."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    for number in range(count):
        planes = torch.zeros(3, 480, 640)
        for side in (4, 16, 64, 240):
            noise = torch.randn(1, 3, side * 3 // 4, side, generator=draw)
            planes += torch.nn.functional.interpolate(noise, (480, 640), mode="bilinear")[0] / (1 + side / 16)
        pixels = (planes.sigmoid() * 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def _write_bundle(folder: Path, net: str, side: int, shape: Shape) -> None:
    case = Network(net, side, shape, 1, "infer")
    torch.manual_seed(0)
    words, adjacency = torch.randn(shape.classes, shape.word_dim) / 2, torch.rand(shape.classes, shape.classes)
    model = SSGRL(make_backbone(case), words, adjacency * 2 / shape.classes, joint_dim=shape.joint_dim).eval()
    model.preprocessing = {"image_size": side, "resize": side}
    model.save_pretrained(folder)


def _warmed(name: str, folder: Path, console: Console) -> bool:
    """Run a rival once, uncounted: it converts its network and leaves its result."""
    done = subprocess.run(_command(name, folder), capture_output=True, text=True)
    if done.returncode != 0:
        console.print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", markup=False)
    return done.returncode == 0


def _command(name: str, folder: Path) -> list[str]:
    """The process of a rival; it writes ``<name>.json``."""
    if name.startswith("ours-"):
        model, result = str(folder / "bundle"), str(folder / f"{name}.json")
        files = ["--model", model, "--output", result, str(folder / "photographs")]
        options = ["--batch-size", str(BATCH), "--runtime", name.removeprefix("ours-"), "--no-progress"]
        return [sys.executable, "-m", "ssgrl_fast", "predict", *options, *files]
    return [sys.executable, "-m", "benchmarks.predict", "--rival", name, "--folder", str(folder)]


def _measure(name: str, folder: Path, images: int) -> Job:
    start = time.perf_counter()
    process = subprocess.Popen(_command(name, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{name} ended with status {process.returncode}")
    return Job(name, images, wall, usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_maxrss * 1024)


def _run_rival(name: str, folder: Path) -> None:
    """A rival that is not ours, in this process."""
    model = SSGRL.from_pretrained(folder / "bundle").eval()
    assert model.preprocessing is not None
    side = model.preprocessing["image_size"]
    photographs = Photographs(sorted((folder / "photographs").iterdir()), side, model.backbone)
    network = _published(model)
    run: Run = network
    batches: Iterable[Tensor] = (torch.stack([photographs[i]]) for i in range(len(photographs)))
    if name == "onnxruntime":
        if not (path := folder / "published.onnx").exists():
            convert(network, torch.zeros(2, 3, side, side), name, path)
        run, batches = open_converted(path, name), DataLoader(photographs, BATCH, num_workers=usable_cores())
    with torch.inference_mode():
        logits = torch.cat([run(images) for images in batches])
    rows = []
    for path, row in zip(photographs.files, logits.tolist(), strict=True):
        scores = [{"class": c, "score": score} for c, score in zip(model.class_names, row, strict=True)]
        rows.append({"file": str(path), "scores": scores})
    (folder / f"{name}.json").write_text(json.dumps({"files": rows}), encoding="utf-8")


class Photographs(Dataset[Tensor]):
    """Files as normalised images [3, S, S], by Pillow's resize as ``predict`` has it."""

    def __init__(self, files: Sequence[Path], side: int, backbone: Backbone) -> None:
        self.files = files
        self.transform = eval_transform(side, resize=side, mean=backbone.mean, std=backbone.std)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def _published(model: SSGRL) -> Published:
    """The model's weights in the published form."""
    head = model.head
    tensors = {name.rpartition(".")[2]: value for name, value in head.state_dict().items()}
    tensors |= {"weight_a": tensors["weight_a"].view(-1), "bias_a": tensors["bias_a"].view(())}
    shape = Shape("bundle", head.num_classes, channels=model.backbone.out_channels, steps=head.options["steps"])
    return Published(model.backbone, Case("head", shape, 1, "infer"), tensors).eval()


def _error(folder: Path, name: str, truth: str) -> float:
    return relative_error(*(_logits(folder / f"{one}.json") for one in (name, truth)))


def _logits(path: Path) -> Tensor:
    """[files, classes], both in the order of their names."""
    files = sorted(json.loads(path.read_text(encoding="utf-8"))["files"], key=lambda row: row["file"])
    scores = [sorted(row["scores"], key=lambda entry: entry["class"]) for row in files]
    return torch.tensor([[entry["score"] for entry in row] for row in scores])


def _table(jobs: Sequence[Job], names: Sequence[str], errors: dict[str, float]) -> Table:
    """Medians over the rounds; the ratio is the median of each round's."""
    out = Table()
    columns = ("wall s", "images/s", f"times {names[0]}", "CPU ms/image", "CPU/wall", "system %", "peak MB", "error")
    for column in ("rival", *columns):
        out.add_column(column, justify="left" if column == "rival" else "right")
    first = [job.wall_s for job in jobs if job.rival == names[0]]
    for name in names:
        own = [job for job in jobs if job.rival == name]
        wall, cpu, system = (
            statistics.median(values)
            for values in zip(*((job.wall_s, job.cpu_s, job.system_s) for job in own), strict=True)
        )
        faster = statistics.median(a / job.wall_s for a, job in zip(first, own, strict=True))
        values = [f"{wall:.1f}", f"{own[0].images / wall:.1f}", f"{faster:.2f}", f"{1e3 * cpu / own[0].images:.0f}"]
        values += [f"{cpu / wall:.2f}", f"{100 * system / cpu:.0f}", f"{max(job.peak_bytes for job in own) / 1e6:.0f}"]
        out.add_row(name, *values, f"{errors[name]:.0e}")
    return out


def _append(path: Path, jobs: Sequence[Job]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow([field.name for field in fields(Job)])
        writer.writerows(astuple(job) for job in jobs)


def add_job_options(parser: argparse.ArgumentParser, *, images: int) -> None:
    """The options that name the photographs and the network of a job."""
    parser.add_argument("--images", type=int, default=images, help=f"photographs of 640x480 pixels ({images})")
    parser.add_argument("--net", default="efficientnet-lite0", help="backbone (efficientnet-lite0)")
    parser.add_argument("--image", type=int, default=384, help="side of the network's images, pixels (384)")
    parser.add_argument("--shape", default="coco", choices=tuple(SHAPES), help="classes and sizes of the head (coco)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict", description=__doc__)
    add_job_options(parser, images=364)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each rival (3)")
    parser.add_argument("--only", action="append", choices=RIVALS, help="repeatable; default: all")
    parser.add_argument("--output", type=Path, help="CSV file to append each run to")
    parser.add_argument("--rival", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
