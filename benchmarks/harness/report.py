"""Rows of results: the CSV file of a device, the printed tables, and the comparison with the targets."""

from __future__ import annotations

import csv
import datetime
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch

import ssgrl_fast
from benchmarks.harness import cases, counts
from benchmarks.harness.cases import Case
from benchmarks.harness.ceilings import Ceilings
from benchmarks.harness.peak import Measured
from benchmarks.harness.timing import Timing, device_name, load_average
from benchmarks.rivals import products

if TYPE_CHECKING:
    from rich.table import Table

RESULTS = Path(__file__).resolve().parents[1] / "results"
PRODUCTS = "products"


@dataclass(frozen=True)
class Run:
    """The columns that are equal in all rows of a run."""

    date: str  # ISO 8601, UTC
    commit: str  # with "-changed" where the tree differs from it; "none" outside git
    device: str
    system: str
    threads: int
    python: str
    torch: str
    numpy: str
    ssgrl_fast: str

    @classmethod
    def now(cls, device: str, threads: int, kept: bool = False) -> Run:
        """The run that starts now; ``kept``: whether the allocator keeps freed memory, which ``system`` then says."""
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=_commit(),
            device=device_name(device),
            system=f"{platform.system()} {platform.release()} {platform.machine()}{', freed memory kept' * kept}",
            threads=threads,
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=numpy.__version__,
            ssgrl_fast=ssgrl_fast.__version__,
        )


@dataclass(frozen=True)
class Row:
    """One rival at one case; times in milliseconds, memory in bytes, None if not measured."""

    operation: str
    shape: str
    B: int
    C: int
    L: int
    D: int
    K: int
    T: int
    dtype: str
    mode: str
    rival: str
    letter: str
    status: str  # "ok", "out of memory", "unavailable", "failed"
    reason: str
    load_average: float | None
    rounds: int | None
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    products_flop: int | None
    over_products: float | None
    over_published: float | None
    over_handwritten: float | None
    over_base: float | None  # over the same backend at the commit that --base names
    flop: int | None  # at least, counted from the shape, as the next two (benchmarks.harness.counts)
    bytes: int | None
    tanh: int | None
    copy_bytes_per_s: float | None  # ceilings of this machine, measured in the same run
    product_flop_per_s: float | None
    tanh_per_s: float | None
    share_copy: float | None  # what was counted, over the median time, as a share of its ceiling
    share_product: float | None
    share_tanh: float | None
    images_per_s: float | None
    extra_bytes: int | None
    resident_bytes: int | None
    allocator_bytes: int | None
    memory_note: str


def rows(
    case: Case,
    letters: Mapping[str, str],
    times: Mapping[str, Timing],
    memory: Mapping[str, Measured],
    refused: Mapping[str, tuple[str, str]],
    load: float | None,
    ceilings: Ceilings | None = None,
    tag: str = "",
) -> list[Row]:
    """One row per rival of ``letters``, in its order.

    Args:
        times: of the rivals that were timed, from one interleaved run.
        memory: of those that were metered.
        refused: (status, reason) of those that could not run.
        load: the load average when the case began.
        ceilings: those of the case's device and precision.
        tag: "@<commit>" behind the names of the base commit's rivals.
    """
    s, counted = case.shape, counts.work(case)
    out = []
    for name, letter in letters.items():
        time, meter = times.get(name), memory.get(name)
        status, reason = refused.get(name, ("ok", ""))
        peak = meter.peak if meter else None
        median = time.percentile(50) if time else None
        work = replace(counted, flop=products.flop(case)) if name == PRODUCTS else counted
        shares = ceilings.shares(work, median) if ceilings and median else {}
        if name == PRODUCTS:
            shares = {"product": shares.get("product")}
        base = times.get(f"{name.removesuffix('@here')}{tag}") if tag and name.endswith("@here") else None
        over = {other: time.ratio(times[other]) if time and other in times else None for other in _OTHERS}
        out.append(
            Row(
                operation=case.operation,
                shape=s.name,
                B=case.batch,
                C=s.classes,
                L=s.locations,
                D=s.channels,
                K=s.joint_dim,
                T=s.steps,
                dtype=case.precision,
                mode=case.mode,
                rival=name,
                letter=letter,
                status=status,
                reason=reason,
                load_average=load,
                rounds=len(time.seconds) if time else None,
                p20_ms=time.percentile(20) * 1e3 if time else None,
                p50_ms=median * 1e3 if median else None,
                p80_ms=time.percentile(80) * 1e3 if time else None,
                products_flop=products.flop(case),
                over_products=over[PRODUCTS],
                over_published=over["published"],
                over_handwritten=over["handwritten"],
                over_base=time.ratio(base) if time and base else None,
                flop=work.flop,
                bytes=work.bytes,
                tanh=work.tanh,
                copy_bytes_per_s=ceilings.copy_bytes if ceilings else None,
                product_flop_per_s=ceilings.product_flop if ceilings else None,
                tanh_per_s=ceilings.tanh if ceilings else None,
                share_copy=shares.get("copy"),
                share_product=shares.get("product"),
                share_tanh=shares.get("tanh"),
                images_per_s=case.batch / median if median else None,
                extra_bytes=peak.extra if peak else None,
                resident_bytes=peak.resident if peak else None,
                allocator_bytes=peak.allocator if peak else None,
                memory_note=f"{meter.status}: {meter.reason}" if meter and meter.reason else "",
            )
        )
    return out


_OTHERS = (PRODUCTS, "published", "handwritten")


def path_of(device: str) -> Path:
    """<device name>.csv, in lower case with hyphens, in results/ of a source tree, else in the current folder."""
    return (RESULTS if RESULTS.is_dir() else Path()) / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.csv"


def append(path: Path, run: Run, found: Sequence[Row]) -> None:
    """Append rows to a results file; create it if necessary.

    Raises:
        ValueError: the file has other columns than these rows.
    """
    columns = [field.name for kind in (Run, Row) for field in fields(kind)]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or path.stat().st_size == 0
    if not fresh:
        with path.open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file))
        if header != columns:
            raise ValueError(
                f"{path}: its columns are {', '.join(header)}; expected {', '.join(columns)}. Move it aside first"
            )
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if fresh:
            writer.writeheader()
        for row in found:
            writer.writerow({key: _cell(value) for key, value in (asdict(run) | asdict(row)).items()})


def table(case: Case, found: Sequence[Row], labels: Mapping[str, str]) -> Table:
    """The rows of one case as a table. 2.00x means twice the time; "of ceiling" is the share of the nearest ceiling."""
    rounds = max((row.rounds or 0 for row in found), default=0)
    title = f"{case} (D={case.shape.channels}, {case.precision}, {rounds} rounds)"
    based = any(row.over_base for row in found)
    from rich.table import Table  # the parity check does without rich

    out = Table(title=title, title_justify="left")
    for column in ("", "rival"):
        out.add_column(column, no_wrap=True)
    others = ["/ products", "/ published", "/ by hand", *(["/ base"] if based else [])]
    for column in ("p20 ms", "median", "p80 ms", *others, "of ceiling", "extra MB", "/ published"):
        out.add_column(column, justify="right")
    published = next((row.extra_bytes for row in found if row.rival == "published"), None)
    for row in found:
        name = labels.get(row.rival, row.rival)
        if row.status != "ok":
            out.add_row(row.letter, name, row.status)
            continue
        share = row.extra_bytes / published if row.extra_bytes is not None and published else None
        times = [number(value, _digits(value)) for value in (row.p20_ms, row.p50_ms, row.p80_ms)]
        over = [row.over_products, row.over_published, row.over_handwritten, *([row.over_base] if based else [])]
        ratios = [number(value, "{:.2f}x") for value in over]
        extra = megabytes(row.extra_bytes)
        out.add_row(row.letter, name, *times, *ratios, nearest(row), extra, number(share, "{:.3f}"))
    return out


def nearest(row: Row) -> str:
    """The ceiling that a rival comes nearest to, such as "82% product"; "-" without ceilings."""
    shares = {"copy": row.share_copy, "product": row.share_product, "tanh": row.share_tanh}
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return "-"
    name = max(known, key=lambda name: known[name])
    return f"{known[name]:.0%} {name}"


def verdicts(case: Case, found: Sequence[Row]) -> list[str]:
    """One line per target of the case for backend cpu: the target, the measured value, met or missed."""
    wanted, by_name = cases.targets(case), {row.rival: row for row in found}
    ours, published = by_name.get("cpu"), by_name.get("published")
    lines = []
    if wanted.over_products is not None:
        value = ours.over_products if ours else None
        lines.append(_verdict("time of cpu / products alone", value, wanted.over_products, "{:.2f}"))
    if wanted.over_published_memory is not None:
        both = ours and published and ours.extra_bytes is not None and published.extra_bytes
        share = ours.extra_bytes / published.extra_bytes if both else None  # type: ignore[union-attr, operator]
        lines.append(_verdict("extra memory of cpu / as published", share, wanted.over_published_memory, "{:.3f}"))
    if wanted.extra_bytes is not None:
        value = ours.extra_bytes / 1e6 if ours and ours.extra_bytes is not None else None
        lines.append(_verdict("extra memory of cpu, MB", value, wanted.extra_bytes / 1e6, "{:.0f}"))
    return lines


def notes(found: Sequence[Row]) -> list[str]:
    """One line per rival that could not run or whose memory could not be measured, with the reason."""
    refused = [f"{row.rival}: {row.status}: {row.reason}" for row in found if row.status != "ok"]
    return refused + [
        f"memory of {row.rival}: {row.memory_note}" for row in found if row.memory_note and row.status == "ok"
    ]


def header(run: Run) -> str:
    """One line with the device, versions and load of the run."""
    load = load_average()
    return (
        f"{run.device}, {run.system}, {run.threads} threads, torch {run.torch}, ssgrl_fast {run.ssgrl_fast}, "
        f"commit {run.commit}, "
        f"load average {'unknown' if load is None else f'{load:.2f}'}"
    )


def _verdict(what: str, value: float | None, limit: float, form: str) -> str:
    if value is None:
        return f"{what}: target <= {form.format(limit)}, not measured"
    verdict = "met" if value <= limit else "missed"
    return f"{what}: target <= {form.format(limit)}, measured {form.format(value)}, {verdict}"


def _digits(value: float | None) -> str:
    """Three decimals for times under 10 ms, else one."""
    return "{:.3f}" if value is not None and value < 10 else "{:.1f}"


def number(value: float | None, form: str) -> str:
    """A value in a format; "-" for None."""
    return "-" if value is None else form.format(value)


def megabytes(value: int | None) -> str:
    """Bytes in MB; "-" for None."""
    return number(None if value is None else value / 1e6, "{:.0f}")


def _cell(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value


def _commit() -> str:
    """The commit of this tree, marked where files other than the results differ from it."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return "none"
    return f"{head}-changed" if git("status", "--porcelain", "--", ":/", ":!results") else head
