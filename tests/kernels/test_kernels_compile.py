"""Every Triton kernel compiles for GPUs that are not here, without spills and within their shared memory."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import product
from pathlib import Path

import pytest
import torch

from ssgrl_fast import backends
from ssgrl_fast.backends import triton as backend

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
"""KiB of shared memory that a program may ask for (CUDA C++ Programming Guide, compute capabilities)."""

VERSIONS = ("3.6.0", "3.8.0")  # the oldest Triton of the requirements, beside torch 2.11; the newest that was tried
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or sys.platform != "linux", reason="triton is not installed"
)


def compiled_cases() -> Iterator[object]:
    """Architecture, size of the extents and dtype; at odd extents bfloat16 and float32 stand for the others
    (`python -m benchmarks.resources` has all). `make test` compiles two dtypes for compute capability 9.0."""
    dtypes = {"aligned": ("bfloat16", "float16", "float32", "float64"), "odd": ("bfloat16", "float32")}
    for architecture, size in product(SHARED, dtypes):
        for dtype in dtypes[size]:
            quick = (architecture, size) == ("sm_90", "aligned") and dtype in ("bfloat16", "float32")
            yield pytest.param(architecture, size, dtype, marks=[] if quick else [pytest.mark.thorough])


@needs_triton
@pytest.mark.parametrize(("architecture", "size", "dtype"), list(compiled_cases()))
def test_no_kernel_spills(
    architecture: str, size: str, dtype: str, record_property: Callable[[str, object], None]
) -> None:
    from benchmarks import resources

    found = list(resources.every([architecture], [dtype], [size]))
    assert len(found) >= 11
    for row in found:
        record_property(row.kernel, f"{row.registers} registers, {row.stack} B stack, {row.shared} B shared")
        assert row.stack == 0, row
        assert row.shared <= SHARED[architecture] * 1024, row


@needs_triton
@pytest.mark.thorough
@pytest.mark.parametrize("version", VERSIONS)
def test_no_kernel_spills_in_another_triton(version: str, tmp_path: Path) -> None:
    """Both ends of what torch brings along, for every architecture, unpacked beside and found first by a process of its
    own. Inputs of both sizes, in bfloat16 and float32."""
    if metadata.version("triton") == version:
        pytest.skip(f"triton {version} is installed: test_no_kernel_spills compiles with it")
    where, table = tmp_path / "triton", tmp_path / "table.csv"
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(where)]
    done = subprocess.run([*fetch, f"triton=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"triton {version} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(where), os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "benchmarks.resources", "--dtype", "bfloat16", "--dtype", "float32"]
    done = subprocess.run([*command, "--output", str(table)], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert table.exists(), done.stderr[-2000:]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["triton"] for row in rows} == {version}
    assert {row["architecture"] for row in rows} == set(SHARED)
    over = [row for row in rows if int(row["stack"]) or int(row["shared"]) > SHARED[row["architecture"]] * 1024]
    assert over == []
    assert done.returncode == 0, done.stderr[-2000:]


@needs_triton
def test_every_kernel_is_launched_by_an_operation() -> None:
    """No kernel that nothing reaches: the recorded launches of all dtypes are the kernels that the files define."""
    from triton.runtime.jit import JITFunction

    from benchmarks import resources
    from ssgrl_fast.kernels import aggregate, gate_kernels, gated_product, label_scores, pool, semantic_attention
    from ssgrl_fast.kernels import split_tanh as forward
    from ssgrl_fast.kernels import split_tanh_backward as gradients

    modules = (aggregate, gate_kernels, gated_product, label_scores, pool, semantic_attention, forward, gradients)
    defined = {name for module in modules for name, value in vars(module).items() if isinstance(value, JITFunction)}
    launched = {
        one.kernel.fn.__name__ for dtype in resources.DTYPES.values() for one in resources.launches("sm_90", dtype)
    }
    assert launched == {name for name in defined if name.endswith("_kernel")}


@needs_triton
def test_recording_starts_nothing_and_ends() -> None:
    from ssgrl_fast.kernels import launch

    started = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda **arguments: started.append((grid, arguments))

    with launch.recorded() as found:
        launch.run(Kernel(), (2, 3), x=1)
        launch.run(Kernel(), (0, 3), x=2)
    assert [one.grid for one in found] == [(2, 3)] and not started
    launch.run(Kernel(), (4,), x=3)
    launch.run(Kernel(), (4, 0), x=4)
    assert started == [((4,), {"x": 3})]


def test_an_unknown_architecture_is_refused() -> None:
    pytest.importorskip("triton")
    from ssgrl_fast.kernels import tile_tables

    with pytest.raises(ValueError, match="sm_90.*abacus"), tile_tables.assumed("abacus"):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_without_a_gpu_the_backend_says_so(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend._MISSING is not None or backend._INTERPRETED:
        pytest.skip("this process has no compiled Triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for stem in backends.base.STEMS:
        assert "no CUDA device" in str(backend.BACKEND.refusal(stem, "cuda", dtype))
        assert "cuda tensors, not on cpu" in str(backend.BACKEND.refusal(stem, "cpu", dtype))


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    if backend._MISSING is not None or backend._INTERPRETED:
        pytest.skip("this process has no compiled Triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "_missing_compiler", backend._missing_compiler.__wrapped__)
    monkeypatch.delenv("CC", raising=False)
    for found, reason in ((None, "needs a C compiler and finds none"), ("/usr/bin/gcc", None)):
        monkeypatch.setattr("shutil.which", lambda name, found=found: found)
        row = next(r for r in backends.explain("cuda") if (r.backend, r.operation) == ("triton", "label_scores"))
        assert row.usable == (reason is None) and (reason or "") in row.reason


def test_an_old_gpu_and_a_missing_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if backend._MISSING is None and not backend._INTERPRETED:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        reason = backend.BACKEND.refusal("label_scores", "cuda", torch.float32)
        assert reason is not None and "8.0 or newer" in reason and "7.5" in reason
        assert "not in complex64" in str(backend.BACKEND.refusal("label_scores", "cuda", torch.complex64))
    monkeypatch.setattr(backend, "_MISSING", "triton cannot be imported")
    assert backend.BACKEND.refusal("label_scores", "cuda", torch.float32) == "triton cannot be imported"
