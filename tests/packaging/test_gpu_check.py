"""scripts/gpu_check.sh and the gate's own command: what they run, refuse, and say about a failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmark_shapes import TINY

from benchmarks import parity, rivals
from benchmarks.harness import cases
from benchmarks.harness.cases import Case

ROOT = Path(__file__).resolve().parents[2]
with_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")
STUB = """#!/usr/bin/env bash
# stands for python on a machine with a GPU: the pictures fail, the network's run never ends, all else is said aloud
case "$*" in
  *missing*) ;;
  *get_device_name*) echo some-gpu ;;
  *benchmarks.plot*) exit 3 ;;
  *network*) sleep 60 ;;
  *) echo "ran: $*" ;;
esac
"""


def check(python: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "scripts/gpu_check.sh", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHON": python} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@with_bash
def test_the_script_runs_every_step_and_names_those_that_failed(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    done = check(str(stub), tmp_path / "out", LIMIT="3", MARGIN="1")
    for part in ("pip install", "benchmarks.parity --device cuda", "--scaling --batch 16", "--dtype tf32", "--compile"):
        assert f"ran: -m {part}" in done.stdout or part in done.stdout.partition("== the whole network")[0]
    assert done.stdout.count("ran: -m benchmarks.run --device cuda --output") == 4
    assert f"rows in {tmp_path}/out/some-gpu.csv" in done.stdout
    assert "failed: the whole network (exit status 124, out of time)" in done.stdout
    assert "failed: pictures (not run)" in done.stdout and done.returncode == 1
    assert (tmp_path / "out" / "log.txt").read_text(encoding="utf-8").startswith("== install")


@pytest.mark.thorough
@with_bash
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_the_script_refuses_a_machine_without_a_gpu(tmp_path: Path) -> None:
    done = check(sys.executable, tmp_path / "out")
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr.startswith("gpu_check: device cuda: torch") and "sees no CUDA device here" in done.stderr


def test_the_parity_command_prints_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)
    monkeypatch.setattr(parity, "SHAPES", ("tiny",))
    assert parity.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    chosen = cases.select(cases.OPERATIONS, ("tiny",), (2,), ("train",), "cpu", ("float32", "bfloat16", "float16"))
    able = sum(each.ours and each.refuses(case) is None for case in chosen for each in rivals.RIVALS.values())
    assert len(lines) == 2 * able + 2 and lines[0].split()[-3:] == ["gradient", "budget", "of"]
    assert lines[-1] == "every implementation that can run here is within its budget"
    assert sum(" hostile " in line and " reference " in line for line in lines) == 4 * 3


def test_the_parity_command_fails_on_a_wrong_and_on_a_broken_rival(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = rivals.RIVALS["reference"]

    def wrong(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        program = right.build(case, tensors)
        return replace(program, forward=lambda: tuple(out + 1 for out in program.forward()))

    def broken(case: Case, tensors: rivals.Tensors) -> rivals.Program:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(cases.SHAPES, "tiny", TINY)
    monkeypatch.setitem(rivals.RIVALS, "reference", replace(right, build=wrong))
    monkeypatch.setitem(rivals.RIVALS, "handwritten", replace(rivals.RIVALS["handwritten"], build=broken))
    command = ["--shape", "tiny", "--operation", "label_scores", "--dtype", "bfloat16", "--rivals"]
    assert parity.main([*command, "--inputs", "random"]) == 1
    printed = capsys.readouterr().out
    assert "reference: output 0 of label_scores train, tiny" in printed
    assert "handwritten at label_scores train" in printed and "RuntimeError: no kernel image" in printed
    assert printed.endswith("2 failed\n")
