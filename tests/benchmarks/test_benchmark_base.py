"""Another commit beside this one, and rivals that break: what is measured, what becomes a row, what is cleaned up."""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmark_shapes import TINY

from benchmarks import rivals, run
from benchmarks.harness import base, cases, ceilings, verify
from benchmarks.harness.cases import Case

ROOT = Path(__file__).resolve().parents[2]
COMMON = ["--shape", "tiny", "--batch", "2", "--rounds", "3", "--threads", "1", "--no-memory", "--mode", "infer"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)
    monkeypatch.setattr(ceilings, "measure", partial(ceilings.measure, large=False))


def in_git() -> bool:
    command = ["git", "rev-parse", "--verify", "HEAD"]
    return shutil.which("git") is not None and subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0


with_git = pytest.mark.skipif(not in_git(), reason="needs git and a checkout with a commit")


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["rival"]: row for row in csv.DictReader(file)}


def worktrees() -> str:
    return subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# another commit


@pytest.mark.thorough
@with_git
def test_another_commit_is_measured_beside_this_one_and_leaves_nothing(tmp_path: Path) -> None:
    trees, folders = worktrees(), set(Path(tempfile.gettempdir()).glob("ssgrl-fast-base-*"))
    path = tmp_path / "cpu.csv"
    command = [*COMMON, "--rival", "reference", "--rival", "published", "--base", "HEAD", "--output", str(path)]
    assert run.main(command) == 0
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    found = rows(path)
    assert list(found) == ["reference", "published", "reference@here", f"reference@{head.strip()}"]
    assert all(row["status"] == "ok" and row["rounds"] == "3" for row in found.values())
    assert [name for name, row in found.items() if row["over_base"]] == ["reference@here"]
    left = set(Path(tempfile.gettempdir()).glob("ssgrl-fast-base-*"))
    assert worktrees() == trees and left <= folders


def test_an_unknown_commit_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="--base (nowhere: git rev-parse: |needs git)"):
        run.main([*COMMON, "--base", "nowhere"])


def test_the_process_gates_prepares_and_says_what_it_cannot() -> None:
    with base.Base(None, threads=1) as here:
        case = Case("label_scores", TINY, 2, "train")
        assert here.gate(case, ["reference", "nobody"]) > 5
        steps, refused = here.prepare(case, ["reference", "nobody"])
        assert list(steps) == ["reference@here"]
        assert refused == {"nobody@here": ("unavailable", "this commit has no such backend")}
        step = steps["reference@here"]
        assert isinstance(step, base.BaseStep) and 0 < step.sample() < 10
        with pytest.raises(RuntimeError, match="KeyError: 'nobody'"):
            here.sample("nobody")
        big = Case("label_scores", replace(TINY, classes=2**26), 2**16, "infer")
        steps, refused = here.prepare(big, ["reference"])
        assert not steps and refused["reference@here"][0] == "out of memory"
        assert here._process is not None
        here._process.kill()
        with pytest.raises(ValueError, match="the process of here ended: no message"):
            here.sample("reference")


def test_a_description_carries_the_shape() -> None:
    case = Case("head", replace(TINY, classes=7), 2, "train", torch.bfloat16)
    assert cases.describe(case)["shape"] == asdict(case.shape)
    assert cases.from_description(cases.describe(case)) == case


# rivals that break


def breaking(after: int, error: Exception) -> rivals.Rival:
    """The hand-written form, which raises once it has run so many times (the gate runs it first)."""
    right, runs = rivals.RIVALS["handwritten"], [0]

    def build(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        program = right.build(case, tensors)

        def forward() -> tuple[torch.Tensor, ...]:
            runs[0] += 1
            if runs[0] > after:
                raise error
            return program.forward()

        return replace(program, forward=forward)

    return replace(right, build=build)


GATE = 2 * len(verify.SEEDS)  # forwards that the gate takes


@pytest.mark.parametrize(
    ("after", "error", "status", "reason", "code"),
    [
        (0, RuntimeError("no kernel\nimage"), "failed", "in the gate: RuntimeError: no kernel", 1),
        (0, MemoryError("no room"), "out of memory", "in the gate: no room", 0),
        (GATE, ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero", 1),
        (GATE + 2, torch.OutOfMemoryError("CUDA out of memory"), "out of memory", "CUDA out of memory", 0),
    ],
)
def test_a_rival_that_breaks_is_a_row_and_the_others_are_timed(
    after: int, error: Exception, status: str, reason: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rivals.RIVALS, "handwritten", breaking(after, error))
    path = tmp_path / "cpu.csv"
    named = [part for name in ("handwritten", "reference") for part in ("--rival", name)]
    assert run.main([*COMMON, *named, "--output", str(path)]) == code
    found = rows(path)
    assert (found["handwritten"]["status"], found["handwritten"]["reason"]) == (status, reason)
    assert found["handwritten"]["p50_ms"] == "" and found["reference"]["rounds"] == "3"
