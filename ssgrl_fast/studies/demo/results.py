"""The demonstration's table and files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ssgrl_fast._utils.files import write_json, write_text
from ssgrl_fast._version import __version__
from ssgrl_fast.metrics.report import defined
from ssgrl_fast.studies.demo.measure import RUNS, HeadSize, Parity
from ssgrl_fast.studies.demo.training import BATCH, PEAK_LR, Pair

_WIDTH = 118  # of the output where there is no terminal
_HEAD = ("measured", "SSGRL", "compared with", "difference")


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        pair: the trained models.
        parity, speed, memory: see :mod:`ssgrl_fast.studies.demo.measure`; speed in seconds, memory in bytes.
        size: of the measured head.
        backend: of SSGRL's operations, "cpu" or "reference".
        missing: why the fused kernels are absent, or None.
        seconds: of the whole demonstration so far.
    """

    pair: Pair
    parity: Parity
    speed: dict[str, dict[str, float]]
    memory: dict[str, dict[str, int]] | str
    size: HeadSize
    backend: str
    missing: str | None
    seconds: float

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table's rows: what, SSGRL's value, with what it is compared, and the difference."""
        mine, other = (self.pair.reports[kind].summary() for kind in ("ssgrl", "pooling"))
        rows = [
            (
                f"test {name}, per cent",
                f"{100 * mine[name]:.2f}",
                f"{100 * other[name]:.2f}  global pooling",
                f"{100 * (mine[name] - other[name]):+.2f}",
            )
            for name in ("mAP", "OF1", "CF1")
        ]
        seconds = self.pair.seconds
        ratio = seconds["ssgrl"] / seconds["pooling"]
        rows.append(
            ("training, s", f"{seconds['ssgrl']:.0f}", f"{seconds['pooling']:.0f}  global pooling", f"{ratio:.2f}x")
        )
        rows += self._parity_rows() + self._speed_rows() + self._memory_rows()
        return rows

    def _parity_rows(self) -> list[tuple[str, str, str, str]]:
        if self.missing:
            return [("fused against reference", "not measured", "the fused kernels are absent", "")]
        p, budget = self.parity, "relative L2 to float64"
        return [
            ("parity, forward", f"{p.forward:.1e}", f"{p.plain_forward:.1e}  reference in float32", budget),
            (
                f"parity, worst gradient ({p.worst.rpartition('.')[2]})",
                f"{p.gradient:.1e}",
                f"{p.plain_gradient:.1e}  reference in float32",
                budget,
            ),
        ]

    def _speed_rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (
                f"head, {run}, ms",
                f"{1e3 * times['fused']:.0f}",
                f"{1e3 * times['published']:.0f}  as published",
                f"{times['published'] / times['fused']:.2f}x faster",
            )
            for run, times in self.speed.items()
        ]

    def _memory_rows(self) -> list[tuple[str, str, str, str]]:
        if isinstance(self.memory, str):
            return [("head, peak extra memory", "not measured", self.memory, "")]
        return [
            (
                f"head, {run}, peak extra MB",
                f"{peaks['fused'] / 1e6:.0f}",
                f"{peaks['published'] / 1e6:.0f}  as published",
                f"1/{peaks['published'] / max(1, peaks['fused']):.1f}",
            )
            for run, peaks in self.memory.items()
        ]

    def caption(self) -> str:
        """How it was measured, for below the table."""
        pair, report = self.pair, self.pair.reports["ssgrl"]
        cut = "" if pair.steps == pair.planned else f" (cut from {pair.planned} to fit --minutes)"
        return (
            f"SSGRL mode paper, backend {self.backend}, float32, {torch.get_num_threads()} threads; both models: the "
            f"same five-layer CNN, {pair.steps} steps of {BATCH} canvases{cut}, one-cycle Adam, peak learning rates "
            f"{PEAK_LR['ssgrl']:g} and {PEAK_LR['pooling']:g}; AP definition "
            f"{report.ap_definition}, {report.images} test canvases. Head: {self.size}, median of interleaved runs; "
            "memory above weights, inputs and gradients."
        )

    def table(self) -> Table:
        """The one table, for a terminal."""
        table = Table(title="SSGRL on the embedded digits", title_justify="left", caption_justify="left")
        table.caption = self.caption()
        for place, name in enumerate(_HEAD):
            table.add_column(name, justify="left" if place in (0, 2) else "right")
        sections = {"training, s", "parity, worst gradient", "fused against reference", f"head, {RUNS[-1]}, ms"}
        for row in self.rows():
            table.add_row(*row, end_section=any(row[0].startswith(name) for name in sections))
        return table

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = ["# SSGRL on the embedded digits", "", f"| {' | '.join(_HEAD)} |", "|---|---:|---|---:|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        if self.missing:
            lines += ["", f"The fused kernels are absent: {self.missing}"]
        pictures = ["![AP of every class](ap.png)", "![attention](attention.png)"]
        return "\n".join([*lines, "", self.caption(), "", *pictures, ""])

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values; fractions, seconds and bytes."""
        pair = self.pair
        return {
            "format": "ssgrl_fast.demo",
            "versions": {"ssgrl_fast": __version__, "torch": torch.__version__},
            "threads": torch.get_num_threads(),
            "backend": self.backend,
            "fused_kernels_absent_because": self.missing,
            "steps": {"done": pair.steps, "planned": pair.planned},
            "training_seconds": pair.seconds,
            "seconds": self.seconds,
            "test": {kind: report.summary() for kind, report in pair.reports.items()},
            "parity": asdict(self.parity),
            "head": {"size": asdict(self.size), "seconds": self.speed, "peak_extra_bytes": self.memory},
        }


def save(results: Results, out: Path) -> dict[str, Path]:
    """Write report.json and .md, the test reports and the bundles; returns what is where."""
    write_json(out / "report.json", defined(results.to_dict()))
    write_text(out / "report.md", results.markdown())
    written = {"this table": out / "report.md", "the same as JSON": out / "report.json"}
    for kind, task in (("ssgrl", results.pair.ssgrl), ("pooling", results.pair.pooling)):
        results.pair.reports[kind].to_json(out / kind / "report_test.json")
        task.model.save_pretrained(out / kind / "bundle")
        written[f"{kind}: report, model"] = out / kind
    return written


def console() -> Console:
    """Standard output; wide enough for the table where it is no terminal."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH)
