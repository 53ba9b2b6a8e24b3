"""The products of csrc/cuda on a GPU of compute capability 9.0, against sums in double; prints their speed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gated_product_build import NATIVE, SM90, kernels_of, nvcc

Units = Callable[..., Path]


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Units:
    """The object of a type's kernels, gated or the classifier's, compiled once."""
    folder = tmp_path_factory.mktemp("products")
    done: dict[tuple[str, str], Path] = {}

    def compiled(name: str, product: str = "gated") -> Path:
        if (name, product) not in done:
            done[name, product] = kernels_of(name, folder, product)[0]
        return done[name, product]

    return compiled


def needs_hopper() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of compute capability 9.0")


def on_gpu(capsys: pytest.CaptureFixture[str], *command: str) -> list[list[str]]:
    """The lines of a program, which end with an error and a speed in TFLOP/s; printed too."""
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    with capsys.disabled():
        print(f"\n{' '.join(command[1:])}: product, error, TFLOP/s\n{run.stdout}", end="")
    return [line.split() for line in run.stdout.splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(("rows", "dim"), [(80, 2048), (500, 72), (1, 8), (64 * 80, 2048)])
@pytest.mark.parametrize(("name", "limit"), [("bf16", 3e-3), ("fp16", 4e-4)])
def test_products_are_right_on_a_gpu(
    name: str, limit: float, rows: int, dim: int, units: Units, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tile against sums in double. A half type's own rounding is at most 2^-9 or 2^-12 of an element."""
    needs_hopper()
    objects = [str(units(each)) for each in ("bf16", "fp16")]
    program = tmp_path / "device"
    nvcc("-O2", str(NATIVE / "gated_product_device.cu"), *objects, "-o", str(program))
    found = on_gpu(capsys, str(program), name, str(rows), str(dim))
    assert [(product, int(tile)) for product, tile, *_ in found] == [
        (product, tile) for tile in range(3) for product in ("gates", "blend")
    ]
    assert all(float(error) < limit for _, _, error, _ in found)


@pytest.mark.long
@pytest.mark.parametrize(("rows", "dim"), [(80, 2048), (500, 80), (64 * 80, 2048)])
def test_e4m3_products_are_right_on_a_gpu(
    rows: int, dim: int, units: Units, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against sums in double of the same e4m3 operands. Half a unit is 2^-4 of an element of e4m3 and 2^-9 of bfloat16;
    the tensor cores' short sums add to both."""
    needs_hopper()
    program = tmp_path / "device"
    sources = [str(NATIVE / "gated_product_fp8_device.cu"), str(SM90 / "gated_product.cu")]
    objects = [str(units(each)) for each in ("bf16", "fp16", "fp8")]
    nvcc("-O2", *sources, *objects, "-o", str(program))
    found = on_gpu(capsys, str(program), str(rows), str(dim))
    limits = {"z": 1e-2, "reset": 5e-2, "blend": 1e-2}
    assert [name for name, *_ in found] == list(limits)
    assert all(float(error) < limits[name] for name, error, _ in found)


@pytest.mark.long
@pytest.mark.parametrize(
    ("rows", "dim", "outputs", "classes"),
    [(80, 2048, 2048, 80), (500, 72, 40, 100), (1, 8, 8, 1), (64 * 80, 2048, 2048, 80)],
)
@pytest.mark.parametrize(("name", "limit"), [("bf16", 1e-3), ("fp16", 1e-4)])
def test_classifier_product_is_right_on_a_gpu(
    name: str,
    limit: float,
    rows: int,
    dim: int,
    outputs: int,
    classes: int,
    units: Units,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every tile, against sums in double. tanh is right to 2^-11 of its value in
    bfloat16 and to 2^-20 in float16, where the tensor cores' sums weigh more; nothing else is rounded."""
    needs_hopper()
    objects = [str(units(each, "classifier")) for each in ("bf16", "fp16")]
    program = tmp_path / "device"
    nvcc("-O2", str(NATIVE / "classifier_product_device.cu"), *objects, "-o", str(program))
    found = on_gpu(capsys, str(program), name, *map(str, (rows, dim, outputs, classes)))
    assert [(form, int(tile)) for form, tile, *_ in found] == [("pairs", tile) for tile in range(3)]
    assert all(float(error) < limit for _, _, error, _ in found)
