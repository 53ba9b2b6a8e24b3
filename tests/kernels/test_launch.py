"""A remembered launch arrives at the driver exactly as Triton's own does."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

if sys.platform != "linux":
    pytest.skip("triton is for Linux", allow_module_level=True)
triton = pytest.importorskip("triton")

from stubbed_launches import forgotten, scale_kernel  # noqa: E402, F401

from benchmarks.harness import stub_driver  # noqa: E402
from ssgrl_fast.kernels import launch  # noqa: E402
from ssgrl_fast.kernels.activations import INTERPRETED  # noqa: E402

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter launches nothing"),
    pytest.mark.usefixtures("forgotten"),
]


def arguments(**other: Any) -> dict[str, Any]:
    x, out = torch.zeros(256), torch.zeros(256)
    return {"p_out": out, "p_x": x, "N": 256, "stride": 1, "FACTOR": 2, "BLOCK": 128, "num_warps": 4} | other


VARIANTS: dict[str, dict[str, Any]] = {
    "same": {},
    "another size": {"N": 255},
    "another stride": {"stride": 2},
    "unaligned": {"p_x": torch.zeros(257)[1:]},
    "another dtype": {"p_out": torch.zeros(256, dtype=torch.float16)},
    "another constant": {"FACTOR": 3},
    "more warps": {"num_warps": 8},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_launch_is_tritons_own(variant: str) -> None:
    """First the base case, which must serve none of the variants; then each twice, by Triton and remembered."""
    from triton.compiler import CompiledKernel

    used: list[str] = []
    own, grid = arguments(**VARIANTS[variant]), (2,)
    with stub_driver.active() as started, pytest.MonkeyPatch.context() as patch:
        plain = CompiledKernel.run.fget
        patch.setattr(CompiledKernel, "run", property(lambda self: used.append(self.hash) or plain(self)))
        for _ in range(2):
            launch.run(scale_kernel, grid, **arguments())
        started.clear()
        used.clear()
        for _ in range(3):
            launch.run(scale_kernel, grid, **own)
        scale_kernel[grid](**own)
    assert len(started) == 4 and len(set(used)) == 1  # one compiled kernel
    for name, blocks, values in started:
        assert (name, blocks) == ("scale_kernel", (2, 1, 1))
        assert [value is other for value, other in zip(values, started[-1][2], strict=True)] == [True] * 6
    assert started[0][2][0] is own["p_x"] and started[0][2][4:] == (own["FACTOR"], 128)


def test_another_grid_is_another_launch() -> None:
    with stub_driver.active() as started:
        for grid in ((2,), (3, 2), (2,), (3, 2)):
            launch.run(scale_kernel, grid, **arguments())
    assert [blocks for _, blocks, _ in started] == [(2, 1, 1), (3, 2, 1)] * 2


def test_the_memory_of_launches_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_MOST_KNOWN", 3)
    with stub_driver.active() as started:
        for size in (16, 32, 48, 64, 80, 16):
            launch.run(scale_kernel, (1,), **arguments(N=size))
            assert len(launch._known) <= 3
    assert [values[2] for _, _, values in started] == [16, 32, 48, 64, 80, 16]


def test_a_profiler_sees_every_launch() -> None:
    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    with stub_driver.active() as started:
        launch.run(scale_kernel, (1,), **arguments())
        triton.knobs.runtime.launch_enter_hook.add(hook)
        try:
            for _ in range(2):
                launch.run(scale_kernel, (1,), **arguments())
        finally:
            triton.knobs.runtime.launch_enter_hook.remove(hook)
        launch.run(scale_kernel, (1,), **arguments())
    assert seen == ["scale_kernel"] * 2 and len(started) == 4
