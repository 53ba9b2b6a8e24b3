"""The benchmarks' pictures: which rows they set side by side, what they leave out, and that they are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("matplotlib", reason="pictures need matplotlib: pip install 'ssgrl_fast[bench]'")

from benchmarks import plot
from benchmarks.harness import cases, ceilings, report, timing
from benchmarks.harness.cases import Case
from benchmarks.harness.peak import Measured, Peak

RATES = ceilings.Ceilings(copy_bytes=2e10, product_flop=1e11, tanh=4e8)
LETTERS = {"published": "a", "handwritten": "c", "cpu": "d", "products": "e", "cpu@0123456789ab": "d"}


def run(date: str) -> report.Run:
    return replace(report.Run.now("cpu", 1), date=date)


def rows(shape: str, batch: int, mode: str, scale: float = 1.0, refused: str = "") -> list[report.Row]:
    case = Case("head", cases.SHAPES[shape], batch, mode)
    seconds = {"published": 4.0, "handwritten": 2.0, "cpu": 1.0, "products": 0.9, "cpu@0123456789ab": 1.1}
    size = scale * case.shape.classes * batch / 1000
    times = {name: timing.Timing((value * size,)) for name, value in seconds.items() if name != refused}
    peaks = {name: Measured(Peak(int(value * size * 1e9))) for name, value in seconds.items()}
    gone = {refused: ("out of memory", "no room")} if refused else {}
    return report.rows(case, LETTERS, times, peaks, gone, None, RATES)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs: an old one with three sizes, a new one with COCO at B = 1 and 4, the latter twice as fast."""
    path = tmp_path / "some-cpu.csv"
    for mode in cases.MODES:
        for shape in ("coco", "vg500", "c1000", "c2000"):
            stopped = "published" if shape == "c2000" else ""
            report.append(path, run("2026-01-01T00:00:00+00:00"), rows(shape, 1, mode, refused=stopped))
        for batch in (1, 4):
            report.append(path, run("2026-02-01T00:00:00+00:00"), rows("coco", batch, mode, 0.5))
    return path


def test_rows_come_from_the_latest_run_of_their_case(results: Path) -> None:
    points = plot.read(results)
    assert not any("@" in point.rival for point in points)
    found = plot.latest(points)
    assert [case for case in found if case[2] == "infer"] == [
        ("coco", 1, "infer"),
        ("coco", 4, "infer"),
        ("vg500", 1, "infer"),
        ("c1000", 1, "infer"),
        ("c2000", 1, "infer"),
    ]
    assert found["coco", 1, "infer"]["cpu"].ms == pytest.approx(40.0)
    assert {point.date[:7] for point in found["coco", 1, "infer"].values()} == {"2026-02"}


def test_a_curve_is_one_run(results: Path) -> None:
    lines = plot.curves(plot.read(results), 1, "train")
    assert [point.C for point in lines["cpu"]] == [80, 500, 1000, 2000]
    assert {point.date[:7] for points in lines.values() for point in points} == {"2026-01"}
    assert [point.status for point in lines["published"]] == ["ok", "ok", "ok", "out of memory"]
    assert plot.curves(plot.read(results), 4, "train") == {}


def test_speed_up_is_against_the_published_form_in_float32() -> None:
    def point(rival: str, ms: float) -> plot.Point:
        empty = dict.fromkeys(("extra_bytes", "flop", "bytes", "share_product", "ridge"))
        return plot.Point("1", "coco", 1, 80, "bfloat16", "infer", rival, "ok", ms, **empty)

    figure = plot.draw_speedup([point("published", 5.0), point("published-float32", 10.0), point("triton", 2.0)], "x")
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers}
    assert heights == {"published": [2.0], "triton": [5.0]}
    assert plot.draw_speedup([point("triton", 2.0), point("cpu", 3.0)], "x") is None


def test_what_ran_out_of_memory_is_written_into_the_picture(results: Path) -> None:
    figure = plot.draw_scaling(plot.read(results), "x", 1)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("published: out of memory") == 4
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "cpu  C^1.00" in labels and "published  C^1.00" in labels


def test_every_picture_is_drawn(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    assert plot.main([str(results), "--output", str(folder)]) == 0
    kinds = ("speedup", "latency", "roofline", "scaling-b1")
    assert sorted(folder.iterdir()) == sorted(folder / f"some-cpu-float32-{kind}.png" for kind in kinds)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())
    assert capsys.readouterr().out.count(".png") == 4


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("date,seconds\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.csv: no results file of these benchmarks"):
        plot.main([str(tmp_path / "x.csv")])
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "none")
    with pytest.raises(ValueError, match="no results file in"):
        plot.main([])
