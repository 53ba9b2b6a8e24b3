"""The ceilings of the machine, measured in the same run as the rivals: memory copy, matrix product, tanh.

The best of a few rounds is used, because a ceiling is the maximum of the machine, not its average.

- copy: bytes read and written per second by one large ``Tensor.copy_``.
- product: FLOP per second of ``torch.mm(out=)`` on square matrices, the best of several sizes.
- tanh: values per second. On a GPU ``tanh.approx.f32`` of the special-function units in a Triton kernel that touches no
  memory; on a CPU ``torch.tanh`` on float32 that stays in the cache. The latter is
  PyTorch's rate, not a limit of the hardware: a kernel with a faster tanh can exceed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.harness import cases, counts
from benchmarks.harness.cases import Case

ROUNDS = 5


@dataclass(frozen=True)
class Ceilings:
    """Rates per second; None if not measured."""

    copy_bytes: float
    product_flop: float
    tanh: float | None

    def shares(self, work: counts.Work, seconds: float) -> dict[str, float | None]:
        """Share of each ceiling that is reached by doing ``work`` in this time; 1.0 is the ceiling."""
        return {
            "copy": work.bytes / seconds / self.copy_bytes,
            "product": work.flop / seconds / self.product_flop,
            "tanh": None if self.tanh is None else work.tanh / seconds / self.tanh,
        }

    def __str__(self) -> str:
        tanh = "not measured" if self.tanh is None else f"{self.tanh / 1e9:.3g} G/s"
        return f"copy {self.copy_bytes / 1e9:.3g} GB/s, product {self.product_flop / 1e12:.3g} TFLOP/s, tanh {tanh}"


def measure(case: Case, sample: Callable[[Callable[[], object]], float], *, large: bool = True) -> Ceilings:
    """The ceilings of a case's device and precision.

    Args:
        case: any case of that device and precision.
        sample: runs a function and returns its seconds, see benchmarks.harness.timing.sampler.
        large: sizes of a real run; False: small sizes, for a test.
    """
    gpu = case.device == "cuda"
    sizes = ((4096, 8192, 16384) if gpu else (1536, 2048)) if large else (64,)
    room = ((1 << 30) if gpu else (1 << 28)) if large else 1 << 16
    with cases.multiplying(case.tf32), torch.inference_mode():
        products = [2 * n**3 / _best(_product(n, case), sample) for n in sizes]
        source = torch.zeros(room, dtype=torch.uint8, device=case.device)
        target = torch.empty_like(source)
        copy = 2 * room / _best(lambda: target.copy_(source), sample)
        return Ceilings(copy, max(products), _tanh(case, sample, large))


def _best(step: Callable[[], object], sample: Callable[[Callable[[], object]], float]) -> float:
    step()
    return min(sample(step) for _ in range(ROUNDS))


def _product(n: int, case: Case) -> Callable[[], object]:
    left, right = (torch.randn(n, n, device=case.device).to(case.dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _tanh(case: Case, sample: Callable[[Callable[[], object]], float], large: bool) -> float | None:
    if case.device == "cuda":
        from benchmarks.harness import tanh_rate

        step, count = tanh_rate.chain(
            torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
        )
        return count / _best(step, sample)
    elements, times = (1 << 17, 50) if large else (1 << 10, 2)
    values = torch.linspace(-4, 4, elements)
    out = torch.empty_like(values)

    def step() -> None:
        for _ in range(times):
            torch.tanh(values, out=out)

    return elements * times / _best(step, sample)
