"""The benchmarks' pytest-benchmark entries: what is collected, fed samples, and a comparison against a saved run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich", reason="benchmarks need rich: pip install 'ssgrl_fast[bench]'")
pytest.importorskip("pytest_benchmark", reason="needs pytest-benchmark: pip install 'ssgrl_fast[bench]'")

from benchmarks import test_speed as speed

ROOT = Path(__file__).resolve().parents[2]
ONE = "label_scores-voc-b1-infer-float32-reference"


class Fixture:
    """pytest-benchmark's fixture as far as feeding needs it: times every round by its timer."""

    enabled = True

    def __init__(self) -> None:
        self._timer: Any = None
        self.seconds: list[float] = []

    def pedantic(self, function: Any, rounds: int, iterations: int, warmup_rounds: int) -> None:
        assert (iterations, warmup_rounds) == (1, 0)
        for _ in range(rounds):
            start = self._timer()
            function()
            self.seconds.append(self._timer() - start)


def test_device_times_are_fed_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fixture, steps, samples = Fixture(), [], iter([1e-3, 3e-3, 2e-3])

    def sample(step: Any) -> float:
        step()
        return next(samples)

    monkeypatch.setattr(speed.timing, "sampler", lambda device: sample)
    speed.bench(fixture, lambda: steps.append(1), "cuda", rounds=3)
    assert fixture.seconds == pytest.approx([1e-3, 3e-3, 2e-3]) and len(steps) == 3


def test_every_operation_rival_and_mode_is_collected() -> None:
    names = [case.id for case in speed.parameters()]
    assert len(set(names)) == len(names) and any(name.startswith("head-coco-b1-train-") for name in names)
    for operation in speed.OPERATIONS:
        assert {f"{operation}-voc-b1-{mode}-float32-handwritten" for mode in ("infer", "train")} <= set(names)
    assert not any("compiled" in name for name in names)
    assert "semantic_attention-voc-b1-infer-float32-products" not in names


def pytest_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--benchmark-enable", f"--benchmark-storage={folder}", "-p", "no:cacheprovider", "-q", *arguments]
    command = [sys.executable, "-m", "pytest", f"benchmarks/test_speed.py::test_speed[{ONE}]", *options]
    # pytest-benchmark saves nothing in a process of pytest-xdist, and this run would pass for one
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    alone |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_benchmark.plugin"}
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)


@pytest.mark.thorough
@pytest.mark.skipif(speed.DEVICE == "cuda", reason="names a CPU case")
def test_a_run_is_saved_and_compared(tmp_path: Path) -> None:
    saved = pytest_run(tmp_path, "--benchmark-save=before")
    assert saved.returncode == 0, saved.stdout + saved.stderr
    (file,) = tmp_path.rglob("*_before.json")
    content = json.loads(file.read_text(encoding="utf-8"))
    (entry,) = content["benchmarks"]
    assert entry["stats"]["rounds"] == speed.ROUNDS and entry["extra_info"]["rival"] == "reference"
    assert content["machine_info"]["torch"]
    # the saved run becomes impossibly fast, so that the comparison has to fail
    for key in ("min", "max", "mean", "median"):
        entry["stats"][key] /= 1e6
    file.write_text(json.dumps(content), encoding="utf-8")
    compared = pytest_run(tmp_path, "--benchmark-compare", "--benchmark-compare-fail=median:10%")
    assert compared.returncode != 0 and "Performance has regressed" in compared.stdout + compared.stderr
