"""The benchmarks' counts of work, how near a time comes to the ceilings, and how times grow with C."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmark_shapes import LOW, TINY, put

from benchmarks import rivals, run
from benchmarks.harness import cases, ceilings, counts, report, scaling, timing
from benchmarks.harness.cases import Case, Shape
from benchmarks.harness.peak import Measured, Peak
from benchmarks.rivals import products


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch)


# counts and ceilings


@pytest.mark.parametrize("shape", [TINY, LOW], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_bytes_are_those_of_the_registrys_tensors(operation: str, dtype: torch.dtype, shape: Shape) -> None:
    case = Case(operation, shape, 2, "infer", dtype)
    tensors = cases.tensors(case)
    if "attention" in tensors:
        del tensors["h0"]
    assert counts.input_shapes(case) == {name: tuple(value.shape) for name, value in tensors.items()}
    read = sum(value.nbytes for value in tensors.values())
    out = sum(prod(size) for size in cases.output_shapes(case)) * dtype.itemsize
    assert counts.work(case).bytes == read + out
    written = sum(value.nbytes for name, value in tensors.items() if name not in rivals.CONSTANTS)
    assert counts.work(replace(case, mode="train")).bytes == read + written + 2 * out


def test_work_at_coco_is_the_tanh_and_products_of_its_shape() -> None:
    work = counts.work(Case("head", cases.SHAPES["coco"], 64, "infer"))
    scoring = 64 * 81 * 80 * 1024
    assert scoring == pytest.approx(425e6, rel=1e-3)  # B·L·C·K at B = 64, C = 80
    assert work.tanh == scoring + (3 * 3 + 1) * 64 * 80 * 2048
    small = 2 * 64 * 80 * 81 * (1024 + 2048) + 2 * 80 * 300 * 1024 + 2 * 1024**2 + 2 * 64 * 80 * 2048
    assert work.flop == products.flop(Case("head", cases.SHAPES["coco"], 64, "infer")) + small


def test_ceilings_are_counts_over_the_best_time() -> None:
    seconds = iter([9.0, 2.0, 9.0, 9.0, 9.0] + [4.0] * 5 + [0.5] * 5)

    def sample(step: Any) -> float:
        step()
        return next(seconds)

    found = ceilings.measure(Case("head", TINY, 1, "infer"), sample, large=False)
    assert found == ceilings.Ceilings(copy_bytes=2 * 65536 / 4, product_flop=2 * 64**3 / 2, tanh=2 * 1024 / 0.5)
    shares = found.shares(counts.Work(flop=64**3, bytes=32768, tanh=1024), seconds=2.0)
    assert shares == {"copy": 0.5, "product": 0.5, "tanh": 0.125}


def test_rows_say_how_near_the_ceiling_is() -> None:
    case = Case("head", cases.SHAPES["coco"], 4, "infer")
    work = counts.work(case)
    rates = ceilings.Ceilings(copy_bytes=work.bytes * 10, product_flop=work.flop / 0.8, tanh=work.tanh * 4)
    times = {name: timing.Timing((1.0,)) for name in ("cpu", "products")}
    row, alone = report.rows(case, {"cpu": "d", "products": "e"}, times, {}, {}, None, rates)
    assert (row.share_copy, row.share_product, row.share_tanh) == pytest.approx((0.1, 0.8, 0.25))
    assert report.nearest(row) == "80% product" and row.images_per_s == 4.0
    assert alone.flop == products.flop(case) < work.flop and alone.share_copy is None
    assert report.nearest(replace(row, share_copy=None, share_product=None, share_tanh=None)) == "-"


def test_the_tanh_kernel_compiles_for_a_gpu() -> None:
    triton = pytest.importorskip("triton")
    from benchmarks.harness import tanh_rate

    source = triton.compiler.ASTSource(
        tanh_rate.tanh_chain,
        signature={"p_out": "*fp32", "REPEATS": "constexpr", "BLOCK": "constexpr"},
        constexprs={"REPEATS": tanh_rate.REPEATS, "BLOCK": tanh_rate.BLOCK},
    )
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    assert "tanh.approx.f32" in triton.compile(source, target=target).asm["ptx"]


# scaling


def test_exponents_are_least_squares_on_logarithms() -> None:
    assert scaling.exponent([(c, 3 * c**1.5) for c in (500, 1000, 2000)]) == pytest.approx(1.5)
    assert list(scaling.slopes([(1, 1), (2, 4), (4, 8)])) == pytest.approx([2.0, 1.0])
    for points in ([(500, 1.0)], [(500, 1.0), (500, 2.0)], [(500, 0.0), (1000, 1.0)]):
        with pytest.raises(ValueError, match="needs two different sizes and positive values"):
            scaling.exponent(points)


def test_exponents_name_where_a_rival_stopped() -> None:
    found: list[report.Row] = []
    for name, seconds in (("vg500", 1.0), ("c1000", 2.0), ("c2000", 4.0)):
        case = Case("head", cases.SHAPES[name], 1, "infer")
        times = {"cpu": timing.Timing((seconds,)), "published": timing.Timing((seconds**2,))}
        peaks = {"cpu": Measured(Peak(10**6))}
        refused = {"published": ("out of memory", "no room")} if name == "c2000" else {}
        times = {key: time for key, time in times.items() if key not in refused}
        found += report.rows(case, {"published": "a", "cpu": "d"}, times, peaks, refused, None)
    published, ours = scaling.exponents(found)
    assert published.startswith("published: time ~ C^2.00 (2.00); C = 2000: out of memory [head infer, float32, B=1")
    assert ours.startswith("cpu: time ~ C^1.00 (1.00, 1.00); extra memory ~ C^0.00 (0.00, 0.00) [head infer")


def test_scaling_stays_on_one_side_of_identity_4() -> None:
    for device in ("cpu", "cuda"):
        shapes, _ = scaling.sizes(device)
        assert all(cases.SHAPES[name].low_rank for name in shapes)
        assert max(cases.SHAPES[name].classes for name in shapes) == (2000 if device == "cpu" else 9605)
    items = run.plan(run._parser().parse_args(["--scaling", "--mode", "infer"]))
    assert [item.case.shape.classes for item in items] == [500, 1000, 2000]
    assert items[0].rivals == ("published", "cpu", "products")
    assert {"published", "handwritten", "reference", "products"} <= set(scaling.rivals("cuda"))


@pytest.mark.thorough
def test_sizes_are_interleaved_with_each_other_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round runs every rival of every size, so that a slow minute meets all sizes."""
    monkeypatch.setattr(scaling, "sizes", lambda device: (("tiny", "tiny-low"), (1,)))
    monkeypatch.setattr(ceilings, "measure", partial(ceilings.measure, large=False))
    rounds: list[list[str]] = []
    interleave = timing.interleave

    def watch(steps: Any, **options: Any) -> Any:
        rounds.append(list(steps))
        return interleave(steps, **options)

    monkeypatch.setattr(timing, "interleave", watch)
    path = tmp_path / "cpu.csv"
    arguments = ["--scaling", "--rounds", "3", "--no-memory", "--threads", "1", "--output", str(path)]
    assert run.main(arguments) == 0
    names = ("published", "cpu" if "cpu" in scaling.rivals("cpu") else "reference", "products")
    assert rounds == 2 * [[f"{place} {name}" for place in (0, 1) for name in names]]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["C"], row["rival"]) for row in rows] == [
        (mode, size, name) for mode in cases.MODES for size in ("6", "40") for name in names
    ]
    assert all(row["rounds"] == "3" and float(row["share_product"]) > 0 for row in rows)
    base = run._parser().parse_args(["--scaling", "--base", "HEAD"])
    assert all(len(group) == 1 for group in run.together(run.plan(base), base))
