"""benchmarks.first_contact and scripts/gpu_first_contact.sh: nothing stops the rest, and everything comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")

from benchmarks import first_contact
from benchmarks.harness import verify

ROOT = Path(__file__).resolve().parents[2]
STUB = """#!/usr/bin/env bash
# stands for python on a machine with a GPU: triton's process ends with an error, the tests never end
case "$*" in
  *--table*) echo "a table" ;;
  *first_contact*triton*) echo broken; exit 3 ;;
  *first_contact*) echo a row >>"${@: -1}" ;;
  *pytest*) sleep 60 ;;
  *) echo "ran: $*" ;;
esac
"""


def contact(folder: Path, *options: str) -> list[str]:
    return ["cpu", "--device", "cpu", "--dtype", "float32", "--tiny", "--output", str(folder / "rows.csv"), *options]


def test_a_red_operation_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is over its budget and one that raises are facts; all times are taken, and stand beside their bounds."""
    whole = verify.gate

    def gate(case: verify.Case, listed: object) -> list[verify.Check]:
        if case.operation == "label_scores":
            raise RuntimeError("no such kernel")
        found = whole(case, listed)
        if case.operation == "semantic_attention":
            raise verify.ParityError(found[:1])
        return found

    monkeypatch.setattr(verify, "gate", gate)
    assert first_contact.main(contact(tmp_path)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(bool(line.get("red")) for line in lines) == 2
    assert [line["error"] for line in lines if "error" in line] == ["RuntimeError: no such kernel"] * 2
    assert sum("ms" in line for line in lines) == len(first_contact.TIMED)
    assert first_contact.main(contact(tmp_path, "--table")) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 + 2 * len(first_contact.TIMED)
    measured, bound = (float(cell) for cell in table[2].split("|")[3:5])
    assert 0 < bound < measured


def test_a_lost_context_ends_the_process_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gate(*arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(verify, "gate", gate)
    assert first_contact.main(contact(tmp_path)) == 3
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == {"lost": "CUDA error: an illegal memory access was encountered"}


@pytest.mark.thorough  # waits for a stage that never ends
@pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")
def test_the_script_brings_everything_back(tmp_path: Path) -> None:
    stub = tmp_path / "python"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    environment = os.environ | {"PYTHON": str(stub), "OUT": str(tmp_path / "out"), "LIMIT": "10"}
    command = ["bash", "scripts/gpu_first_contact.sh", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "-- contact-triton-bfloat16: exit status 3" in done.stdout, done.stdout + done.stderr
    assert "-- contact-cuda-bfloat16: exit status 0" in done.stdout
    assert "-- tests-triton: exit status 124" in done.stdout and "-- rival: not run, out of time" in done.stdout
    with tarfile.open(tmp_path / "out" / "gpu.tgz") as archive:
        names = {Path(name).name for name in archive.getnames()}
        stages = archive.extractfile("./stages.txt")
        assert stages is not None and b"tests-triton: exit status 124" in stages.read()
    assert {"rows.csv", "table.txt", "env.log", "contact-triton-bfloat16.log", "tests-triton.log"} <= names


@pytest.mark.parametrize("cutlass", ["4.2.0", ""])
def test_libraries_are_packed_whole_or_refused(cutlass: str, tmp_path: Path) -> None:
    """A stand-in for Python tells the build's facts."""
    script = tmp_path / "scripts" / "gpu_libraries.sh"
    script.parent.mkdir()
    shutil.copy(ROOT / "scripts" / script.name, script)
    (tmp_path / "python").write_text(f"#!/bin/sh\necho {cutlass}\n")
    (tmp_path / "python").chmod(0o755)
    names = [f"ssgrl_fast/{name}.so" for name in ("_C.abi3", "_C_cuda.abi3", "_native.cpython-312-x86_64-linux-gnu")]
    (tmp_path / "ssgrl_fast").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"library")
    environ = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], env=environ, capture_output=True, text=True)
    archive = tmp_path / "build" / "gpu-libraries.tgz"
    assert (done.returncode == 0) is archive.exists() is bool(cutlass), done.stderr
    if cutlass:
        with tarfile.open(archive) as packed:
            assert packed.getnames() == names
    else:
        assert "no CUDA kernels with CUTLASS" in done.stderr
