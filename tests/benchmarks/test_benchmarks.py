"""The benchmarks' registry, gate and command: nothing wrong is ever timed, and every row says what it is."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmark_shapes import LOW, TINY, put

from benchmarks import rivals, run
from benchmarks.harness import cases, ceilings, memory, report, timing, verify
from benchmarks.harness.cases import Case, Shape
from benchmarks.harness.peak import Measured, Peak
from ssgrl_fast import backends

MB = 10**6


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry with two small shapes, one on each side of identity 4's threshold, and small ceilings."""
    monkeypatch.setattr(ceilings, "measure", partial(ceilings.measure, large=False))
    put(monkeypatch)


def able(case: Case) -> list[rivals.Rival]:
    return [rival for rival in rivals.RIVALS.values() if not rival.compiled and rival.refuses(case) is None]


# registry


def test_identity_4_threshold_is_that_of_performance_md() -> None:
    many = {"vg500", "vg500-448", "c1000", "c2000", "c5000", "openimages"}
    assert {name for name, shape in cases.SHAPES.items() if shape.low_rank} == {"coco-448", *many}
    assert Shape("x", 80, locations=64, channels=2048).low_rank  # 64 < 76.99
    assert LOW.low_rank and not TINY.low_rank


@pytest.mark.parametrize("name", cases.SHAPES)
@pytest.mark.parametrize("batch", [1, 4])
def test_gate_shape_is_of_the_same_class(name: str, batch: int) -> None:
    case = Case("head", cases.SHAPES[name], batch, "train")
    small = case.small()
    assert (small.shape.classes, small.shape.locations, small.factored) == (
        case.shape.classes,
        case.shape.locations,
        case.factored,
    )
    assert small.shape.channels < case.shape.channels and small.batch == min(batch, 2)


@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_tensors_repeat_and_differ_by_seed(operation: str) -> None:
    case = Case(operation, LOW, 2, "train")
    first, again, other = cases.tensors(case, 1), cases.tensors(case, 1), cases.tensors(case, 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in first.values())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"operation must be one of head, .*got 'tail'"):
        Case("tail", TINY, 1, "infer")
    with pytest.raises(ValueError, match=r"mode must be one of infer, train, got 'test'"):
        Case("head", TINY, 1, "test")
    with pytest.raises(ValueError, match=r"shape must be one of voc, .*got 'imagenet'"):
        list(cases.select(["head"], ["imagenet"], [1], ["infer"]))
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        Case("head", TINY, 0, "infer")
    with pytest.raises(ValueError, match="locations must be a square number, got 80"):
        Shape("x", 20, locations=80)


# the gate


@pytest.mark.parametrize("shape", [TINY, LOW], ids=str)
@pytest.mark.parametrize("operation", cases.OPERATIONS)
def test_every_rival_that_can_run_passes_the_gate(operation: str, shape: Shape) -> None:
    case = Case(operation, shape, 2, "train")
    checks = verify.gate(case, able(case))
    assert {check.rival for check in checks} >= {"handwritten", "reference"}
    assert all(check.error > 0 for check in checks), "a float32 form that equals float64 exactly was not run in float32"


def test_the_gate_holds_every_weight_and_input_to_the_reference() -> None:
    case = Case("head", TINY, 2, "train")
    checks = verify.gate(case, able(case))
    for rival in able(case):
        found = {check.quantity for check in checks if check.rival == rival.name}
        weights = {name for name in cases.tensors(case) if name not in (*rivals.CONSTANTS, *rivals.CANCELLED)}
        assert found == {"output 0", "recorded output 0"} | {f"gradient {name}" for name in weights}


def wrong(spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None, forward: float = 1.0) -> rivals.Rival:
    """The hand-written form with its output scaled, or its gradients spoiled."""
    right = rivals.RIVALS["handwritten"]

    def build(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        program = right.build(case, tensors)
        return replace(
            program, forward=lambda: tuple(out * forward for out in program.forward()), collect=spoil or program.collect
        )

    return replace(right, name="wrong", build=build)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda grads: {key: value for key, value in grads.items() if key != name}


@pytest.mark.parametrize(
    ("planted", "quantity"),
    [
        (wrong(forward=1 + 1e-5), "output 0"),
        (wrong(forward=float("nan")), "output 0"),
        (wrong(lambda grads: grads | {"weight_h": grads["weight_h"] * (1 + 1e-4)}), "gradient weight_h"),
        (wrong(lambda grads: grads | {"feature_map": grads["feature_map"].flip(0)}), "gradient feature_map"),
        (wrong(lambda grads: grads | {"weight_u": grads["weight_u"].T}), "gradient weight_u"),
        (wrong(without("weight_a")), "gradient weight_a"),
    ],
    ids=["forward", "nan", "gradient", "permuted", "shape", "missing"],
)
def test_the_gate_is_red_for_a_wrong_kernel(planted: rivals.Rival, quantity: str) -> None:
    with pytest.raises(verify.ParityError, match=f"wrong: {quantity} of head train") as caught:
        verify.gate(Case("head", TINY, 2, "train"), [rivals.RIVALS["handwritten"], planted])
    assert {check.rival for check in caught.value.red} == {"wrong"}


# the run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


COMMON = ["--shape", "tiny", "--batch", "2", "--rounds", "3", "--threads", "1", "--no-memory"]


@pytest.mark.usefixtures("tiny")
def test_a_run_times_every_rival_and_appends_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.csv"
    for _ in range(2):
        assert run.main([*COMMON, "--output", str(path)]) == 0
    rows, printed = read(path), capsys.readouterr().out
    names = ["published", "handwritten", *reversed(backends.names()), "accelerated", "products"]
    assert [row["rival"] for row in rows] == 4 * names
    assert {row["mode"] for row in rows} == {"infer", "train"} and {row["threads"] for row in rows} == {"1"}
    for row in rows:
        if row["status"] == "ok":
            assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"]) and row["rounds"] == "3"
            assert float(row["over_products"]) > 0 and row["extra_bytes"] == "" and row["torch"] == torch.__version__
    assert "as published" in printed and "products alone" in printed and str(path.name) in printed


@pytest.mark.long
@pytest.mark.usefixtures("tiny")
def test_the_compiled_rivals_pass_the_gate_and_are_timed(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    compiled = ["published-compiled", "handwritten-compiled"]
    chosen = [argument for name in ("published", *compiled) for argument in ("--rival", name)]
    assert run.main([*COMMON, *chosen, "--output", str(path)]) == 0
    rows = read(path)
    assert [row["rival"] for row in rows] == 2 * ["published", *compiled]
    assert {row["status"] for row in rows} == {"ok"} and all(float(row["over_published"]) > 0 for row in rows)


@pytest.mark.usefixtures("tiny")
def test_on_red_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(rivals.RIVALS, "reference", replace(wrong(forward=1.001), name="reference"))
    monkeypatch.setattr(timing, "interleave", lambda *args, **kwargs: pytest.fail("timed on red"))
    monkeypatch.setattr(memory, "measure", lambda *args, **kwargs: pytest.fail("metered on red"))
    path = tmp_path / "cpu.csv"
    assert run.main([*COMMON[:-1], "--output", str(path)]) == 1
    assert not path.exists()
    assert (
        "nothing was timed" in (printed := capsys.readouterr().out) and "reference: output 0 of head train" in printed
    )


@pytest.mark.usefixtures("tiny")
def test_a_rival_without_memory_becomes_a_row_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        return rivals.Program(lambda: (torch.empty(2**60, dtype=torch.uint8),), {})

    monkeypatch.setitem(rivals.RIVALS, "handwritten", replace(rivals.RIVALS["handwritten"], build=build))
    monkeypatch.setattr(verify, "gate", lambda case, wanted, **_: [])
    path = tmp_path / "cpu.csv"
    assert run.main([*COMMON, "--mode", "infer", "--output", str(path)]) == 0
    rows = {row["rival"]: row for row in read(path)}
    assert rows["handwritten"]["status"] == "out of memory" and rows["handwritten"]["p50_ms"] == ""
    assert rows["reference"]["status"] == "ok" and rows["reference"]["over_handwritten"] == ""
    assert "handwritten: out of memory" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("status", ["out of memory", pytest.param("ok", marks=pytest.mark.thorough)])
def test_memory_is_metered_before_the_times(status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(rival: str, *_: object) -> Measured:
        refused = status != "ok" and rival == "published"
        return Measured(None, status, "asked for too much") if refused else Measured(Peak(5 * MB, 7 * MB))

    monkeypatch.setattr(memory, "measure", measure)
    path = tmp_path / "cpu.csv"
    assert run.main([*COMMON[:-1], "--mode", "infer", "--output", str(path)]) == 0
    rows = {row["rival"]: row for row in read(path)}
    assert rows["published"]["status"] == status and (rows["published"]["p50_ms"] == "") == (status != "ok")
    assert rows["reference"]["extra_bytes"] == str(7 * MB) and rows["products"]["extra_bytes"] == ""


def test_rows_are_not_mixed_into_a_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu.csv"
    path.write_text("date,seconds\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cpu\.csv: its columns are date, seconds; expected date, commit"):
        report.append(path, report.Run.now("cpu", 1), [])
    assert path.read_text(encoding="utf-8") == "date,seconds\n"


def test_results_are_named_after_the_device() -> None:
    assert report.path_of("AMD EPYC 9R14 (96 cores)").name == "amd-epyc-9r14-96-cores.csv"


def test_verdicts_stand_beside_the_targets() -> None:
    case = Case("head", cases.SHAPES["coco"], 4, "infer")
    times = {name: timing.Timing((seconds,)) for name, seconds in (("published", 3.0), ("cpu", 1.3), ("products", 1.0))}
    peaks = {name: Measured(Peak(size)) for name, size in (("published", 800 * MB), ("cpu", 80 * MB))}
    rows = report.rows(case, {"published": "a", "cpu": "d", "products": "e"}, times, peaks, {}, None)
    assert report.verdicts(case, rows) == [
        "time of cpu / products alone: target <= 1.25, measured 1.30, missed",
        "extra memory of cpu / as published: target <= 0.125, measured 0.100, met",
    ]
    vg = Case("head", cases.SHAPES["vg500"], 1, "train")
    rows = report.rows(vg, {"cpu": "d"}, {}, {}, {"cpu": ("unavailable", "not built")}, None)
    assert report.verdicts(vg, rows) == ["extra memory of cpu, MB: target <= 1000, not measured"]
    assert report.notes(rows) == ["cpu: unavailable: not built"]


def test_quick_adds_the_memory_of_500_classes() -> None:
    items = run.plan(run._parser().parse_args(["--quick"]))
    assert [(str(item.case), item.timed) for item in items] == [
        ("head infer, coco: C=80 L=81 B=4", True),
        ("head train, coco: C=80 L=81 B=4", True),
        ("head infer, vg500: C=500 L=81 B=1", False),
        ("head train, vg500: C=500 L=81 B=1", False),
    ]
    assert items[2].rivals == ("cpu",) and "handwritten-compiled" not in items[0].rivals
    chosen = run.plan(run._parser().parse_args(["--quick", "--shape", "voc", "--mode", "infer", "--rival", "cpu"]))
    assert [(str(item.case), item.rivals) for item in chosen] == [("head infer, voc: C=20 L=81 B=4", ("cpu",))]


def test_the_module_runs() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--help"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--memory-limit" in done.stdout


def test_a_run_says_whether_freed_memory_is_kept() -> None:
    default, kept = report.Run.now("cpu", 1), report.Run.now("cpu", 1, kept=True)
    assert kept.system == f"{default.system}, freed memory kept" and kept.system in report.header(kept)
