"""Signals and two runs at once: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_runs import digits_command, rows, write_words

pytest.importorskip("lightning", reason="the training extra is not installed")

from ssgrl_fast.training import runs

GRACE = 10  # seconds that a scheduler waits before it kills


def fit(root: Path, parent: Path, *more: str) -> subprocess.Popen[str]:
    command = digits_command(write_words(root / "words.txt"), parent, 1, "--model.schedule", "constant", *more)
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # the tests themselves may be a background job, which a shell has ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finished(process: subprocess.Popen[str], limit: float = 300) -> str:
    said = process.communicate(timeout=limit)[1]
    assert process.returncode == 0, said
    return said


@pytest.mark.thorough
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_fit_says_so_and_goes_on_as_if_it_had_not_been(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    finished(fit(tmp_path, whole))
    process = fit(tmp_path, stopped)
    log, deadline = stopped / "version_0" / "metrics.csv", time.monotonic() + 240
    while not (log.is_file() and "\n1,30," in log.read_text()):  # epoch 1 has steps 24 to 47
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, number)  # to every process, as Slurm does, and Ctrl-C
    said = process.communicate(timeout=GRACE)[1]
    last = stopped / "version_0" / "checkpoints" / "last.ckpt"
    assert process.returncode == status, said
    assert said.splitlines()[-1] == (
        f"ssgrl-fast fit: stopped by {number.name}; {last} holds the run after its last finished epoch: the same "
        f"command with --ckpt_path {last} goes on from there"
    )
    assert 30 < len(rows(stopped / "version_0")) < 72 and not list(stopped.rglob("*.partial"))
    finished(fit(tmp_path, stopped, "--ckpt_path", str(last)))
    assert rows(stopped / "version_0") == rows(whole / "version_0")


@pytest.mark.thorough
def test_two_fits_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    for process in [fit(tmp_path, tmp_path / "runs", "--trainer.max_epochs", "1") for _ in range(2)]:
        finished(process)
    first, second = (tmp_path / "runs" / f"version_{number}" for number in range(2))
    assert len(list(first.glob("events*"))) == len(list(second.glob("events*"))) == 1
    assert rows(first) == rows(second)


def test_runs_that_start_at_once_have_a_folder_each(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(runs.new_run, [tmp_path / "runs"] * 64))
    assert sorted(path.name for path in made) == sorted(f"version_{number}" for number in range(64))
