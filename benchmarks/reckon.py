"""``python -m benchmarks.reckon``: how long the head takes at least on an H100, H200 and A100, reckoned without a GPU.

For bfloat16 inference and training every kernel that a call starts is recorded, compiled and counted: memory traffic,
instructions by pipe, programs that a multiprocessor holds, waves (benchmarks/harness/reckoned.py says how). All times
are reckoned, not measured: lower bounds with the assumptions stated there. With ``--measured`` what the first contact
with a GPU measured is laid beside them: its archive (gpu.tgz), a results file, or the log of a backend.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import triton

from benchmarks.harness import cases, reckoned
from benchmarks.harness.cases import Case
from benchmarks.harness.occupancy import GPUS
from benchmarks.harness.reckoned import Bound
from ssgrl_fast._utils.files import replacing

RECORD = Path(__file__).resolve().parent / "reckoned.csv"
GROWTH = 1.03
"""A bound may grow by this factor before the test that compares it with the record fails."""
SHAPES = (("coco", 1, "infer"), ("coco", 16, "infer"), ("coco", 64, "infer"), ("vg500", 16, "infer"))
SHAPES += (("coco", 16, "train"), ("coco", 64, "train"))
Reckoned = Mapping[Case, Mapping[str, Sequence[Bound]]]
"""For each case and GPU the bounds of the kernels in the order of the call."""
Rows = dict[tuple[str, str], list[float]]
"""By case and kernel: launches, and microseconds of all of them on each GPU."""


def case(shape: str, batch: int, mode: str) -> Case:
    """The head in bfloat16 on a GPU."""
    return next(cases.select(("head",), (shape,), (batch,), (mode,), "cuda", ("bfloat16",)))


def reckon(shapes: Iterable[tuple[str, int, str]] = SHAPES) -> Reckoned:
    """The bounds of all kernels of some shapes: name of the shape, images, mode."""
    return {one: reckoned.head(one, list(GPUS.values())) for one in (case(*shape) for shape in shapes)}


def rows(found: Reckoned) -> Rows:
    """Launches and microseconds by case and kernel; cuBLAS's products are one kernel, as is what only moves memory."""
    table: Rows = {}
    for one, by_gpu in found.items():
        for place, bounds in enumerate(by_gpu.values()):
            for bound in bounds:
                row = table.setdefault((str(one), group(bound)), [0.0] * (1 + len(by_gpu)))
                row[0] += place == 0
                row[1 + place] += bound.us
    return table


def group(bound: Bound) -> str:
    """The row of a kernel in the record: a Triton kernel's name, or which kind of PyTorch's it is."""
    return bound.name if bound.kernel else "products of cuBLAS" if bound.flop else "other operators of PyTorch"


def read(path: Path) -> Rows:
    """The recorded rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            (row["case"], row["kernel"]): [float(row[name]) for name in ("launches", *(f"{gpu}_us" for gpu in GPUS))]
            for row in csv.DictReader(file)
        }


def write(table: Rows, path: Path) -> None:
    """Write rows to a CSV file."""
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("case", "kernel", "launches", *(f"{name}_us" for name in GPUS), "triton"))
        writer.writerows(
            (*key, int(row[0]), *(f"{us:.2f}" for us in row[1:]), triton.__version__) for key, row in table.items()
        )


def grown(new: Rows, recorded: Rows) -> list[str]:
    """What has become slower or more than the record says, one sentence each; also kernels that it does not know."""
    sentences = []
    for key, row in new.items():
        before = recorded.get(key)
        if before is None:
            sentences.append(f"{key[1]} ({key[0]}) is not in the record")
            continue
        if row[0] > before[0]:
            sentences.append(f"{key[1]} ({key[0]}): {row[0]:.0f} launches, recorded {before[0]:.0f}")
        for gpu, us, was in zip(GPUS, row[1:], before[1:], strict=True):
            if us > GROWTH * was + 0.01:  # the record's last digit
                sentences.append(f"{key[1]} ({key[0]}): {us:.2f} us on {gpu}, recorded {was:.2f}")
    return sentences


def table(one: Case, bounds: Sequence[Bound], measured: Mapping[str, float]) -> str:
    """The kernels of a call in Markdown, equal ones in one line; us are those of one launch."""
    columns = (
        "kernel|launches|programs x warps|registers|held|waves|MB read|MB written|GFLOP|fma|imad|alu|xu|lsu|us|set by"
    )
    lines = [f"### {one}", "", f"| {columns.replace('|', ' | ')} | us in all | measured us |", "|---" * 18 + "|"]
    for bound in dict.fromkeys(bounds):
        times, kernel = bounds.count(bound), bound.kernel
        cells = [bound.name, str(times), *[""] * 4]
        if kernel:
            cells[2:] = [
                f"{kernel.programs} x {kernel.warps}",
                str(kernel.registers),
                str(bound.resident),
                str(bound.waves),
            ]
        cells += [f"{bound.read / 1e6:.1f}", f"{bound.written / 1e6:.1f}", f"{bound.flop / 1e9:.1f}"]
        counts = [kernel.count(pipe) if kernel else 0 for pipe in ("fma", "imad", "alu", "xu", "lsu")]
        cells += [f"{count:.0f}" if count else "" for count in counts]
        seen = measured.get(bound.name) if kernel else None
        cells += [f"{bound.us:.2f}", bound.set_by, f"{bound.us * times:.1f}", "" if seen is None else f"{seen:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def totals(found: Reckoned, measured: Mapping[str, Mapping[str, float]]) -> str:
    """A call of the head on every GPU beside the products alone, in Markdown."""
    lines = [
        "| case | GPU | launches | head, us (reckoned) | products alone, us (reckoned) | x products | measured us |"
    ]
    lines.append("|---" * 7 + "|")
    for one, by_gpu in found.items():
        for gpu, bounds in by_gpu.items():
            head, alone = reckoned.total(bounds), reckoned.products_us(one, GPUS[gpu])
            seen = measured.get(str(one), {}).get("head")
            cells = (str(one), gpu, str(len(bounds)), f"{head:.0f}", f"{alone:.0f}", f"{head / alone:.2f}")
            lines.append(f"| {' | '.join(cells)} | {'' if seen is None else f'{seen:.0f}'} |")
    return "\n".join(lines)


def targets(found: Reckoned) -> list[tuple[str, float, float]]:
    """What is aimed at, reckoned and at most, on an H100; only for the shapes that were reckoned."""
    result: list[tuple[str, float, float]] = []

    def add(
        shape: tuple[str, int, str], what: str, most: float, value: Callable[[Case, Sequence[Bound]], float]
    ) -> None:
        if (one := case(*shape)) in found:
            result.append((f"{one}: {what}", value(one, found[one]["H100"]), most))

    def over_products(one: Case, bounds: Sequence[Bound]) -> float:
        return reckoned.total(bounds) / reckoned.products_us(one, GPUS["H100"])

    def scores(one: Case, bounds: Sequence[Bound]) -> float:
        return sum(bound.us for bound in bounds if bound.name.startswith("scores"))

    add(("coco", 16, "infer"), "head, ms", 0.70, lambda one, bounds: reckoned.total(bounds) / 1e3)
    add(("coco", 64, "infer"), "head over products", 1.08, over_products)
    add(("coco", 16, "train"), "head over products", 1.10, over_products)
    add(("coco", 64, "train"), "head over products", 1.10, over_products)
    add(("coco", 1, "infer"), "scores, us", 25, scores)
    add(("coco", 64, "infer"), "scores, us", 60, scores)
    for batch in (1, 16):  # more images keep a GPU busy for longer than Python takes, and larger products are cuBLAS's
        add(("coco", batch, "infer"), "launches", 14, lambda one, bounds: len(bounds))
    return result


def from_gpu(path: Path) -> dict[str, dict[str, float]]:
    """Microseconds that a GPU took, by case and kernel; "head" is the captured call, else the eager one.

    Raises:
        ValueError: the file is none of the first contact's.
    """
    texts: dict[str, str] = {}
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith((".csv", ".log")):
                    texts[member.name] = file.read().decode("utf-8", "replace")
    else:
        texts[path.name] = path.read_text(encoding="utf-8")
    found: dict[str, dict[str, float]] = {}
    for name, text in texts.items():
        if name.endswith(".csv"):
            _rows_of(text, found)
        else:
            _log_of(text, found)
    if not found:
        raise ValueError(f"--measured: {path} has no times of the head with backend triton")
    return found


def _rows_of(text: str, found: dict[str, dict[str, float]]) -> None:
    for row in csv.DictReader(io.StringIO(text)):
        if row.get("operation") == "head" and row.get("rival") in ("triton", "triton-captured") and row.get("p50_ms"):
            one = next(
                cases.select(("head",), (row["shape"],), (int(row["B"]),), (row["mode"],), "cuda", (row["dtype"],))
            )
            times, us = found.setdefault(str(one), {}), float(row["p50_ms"]) * 1e3
            times["head"] = us if row["rival"] == "triton-captured" else times.get("head", us)


def _log_of(text: str, found: dict[str, dict[str, float]]) -> None:
    for line in text.splitlines():
        if line.startswith('{"time"') and "kernels_us" in line:
            facts = json.loads(line)
            kernels = {name: us for name, (us, _) in facts["kernels_us"].items()}
            if any(name.endswith("_kernel") for name in kernels):  # Triton's, whose names are their functions'
                found.setdefault(facts["time"], {}).update(kernels)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; write or compare the record.

    Returns:
        0; 1 if a bound has grown beyond the record (without ``--record``).
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reckon", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--gpu", choices=tuple(GPUS), default="H100", help="whose kernels are listed; default: %(default)s"
    )
    parser.add_argument(
        "--measured", type=Path, help="gpu.tgz, rows.csv or contact-*.log of the first contact with a GPU"
    )
    parser.add_argument("--csv", type=Path, help="write the rows, all GPUs, to this file")
    parser.add_argument("--record", action="store_true", help=f"rewrite {RECORD.name}, the bounds that a test holds")
    arguments = parser.parse_args(argv)
    measured = from_gpu(arguments.measured) if arguments.measured else {}
    found = reckon()
    for one, by_gpu in found.items():
        print(table(one, by_gpu[arguments.gpu], measured.get(str(one), {})), end="\n\n")
    print(totals(found, measured), end="\n\n")
    for what, value, most in targets(found):
        print(f"- {what}: {value:.2f} reckoned, at most {most:g}: {'met' if value <= most else 'NOT met'}")
    new = rows(found)
    if arguments.csv:
        write(new, arguments.csv)
    if arguments.record:
        write(new, RECORD)
        return 0
    if not RECORD.exists():  # an installed package has none
        return 0
    sentences = grown(new, read(RECORD))
    print(*sentences, sep="\n")
    return int(bool(sentences))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"benchmarks.reckon: {error}")
