"""How long a GPU needs at least, reckoned from compiled code: the kernels of :mod:`benchmarks.harness.recorded`.

A Triton kernel takes as long as the slowest of: its memory traffic at the rate of a copy (every argument's memory at
most once); on the fullest multiprocessor each pipe's instructions; its waves, each as long as a warp of it that is
alone. A product takes whole waves of tiles at cuBLAS's measured rate, or its traffic; everything else, its traffic.
Traffic that fits into the L2 cache passes at its rate, as the kernel before may have left all of it there, except that
of products, whose weights do not stay there until the next call.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod

from torch import Tensor

from benchmarks import resources
from benchmarks.harness import recorded, sass
from benchmarks.harness.cases import Case
from benchmarks.harness.occupancy import GPU, L2_BYTES, pipe_cycles, resident
from benchmarks.harness.recorded import Operator
from benchmarks.rivals import products
from ssgrl_fast.kernels.launch import Launch

GAP = 1.0
"""Microseconds from the end of a kernel to the start of the next in a captured graph: assumed, not measured."""
TILES = ((128, 256, 1.0), (128, 128, 0.8), (64, 64, 0.35))
"""Tiles of cuBLAS's products with their shares of its best rate. The shares are assumed: with them the products alone
of the head take within 10 % of what was measured on an H100."""
_PARAMETERS = {"sm_80": 0x160, "sm_90": 0x210}  # where constant bank 0 holds a kernel's parameters
_GRID = 0xC  # and the extents of its grid
_FMA = {"FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2"}
_XU = {"MUFU", "I2F", "F2I", "F2F"}
_LSU = {"LDG", "STG", "LDGSTS", "LDS", "STS", "LDSM", "STSM", "SHFL", "RED", "ATOM", "ATOMG"}
_NOT_ALU = {"BRA", "BAR", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "NOP", "S2R", "S2UR", "CS2R", "LDC", "R2UR", "DEPBAR"}
_NOT_ALU |= {"WARPGROUP", "WARPSYNC", "LDGDEPBAR", "FENCE", "MEMBAR", "ENDCOLLECTIVE", "YIELD"}


def pipes(trace: sass.Trace) -> dict[str, float]:
    """Instructions of a warp by pipe ("issue": all), its tensor-core FLOP and its bytes of global memory."""
    counts: Counter[str] = Counter(bytes=sum(trace.moved.values()))
    for one, times in trace.opcodes.items():
        counts["issue"] += times
        if one.flop:
            counts["flop"] += one.flop * times
        elif one.name in _LSU:
            wide = 4 if one.name in ("LDSM", "STSM") and one.opcode.endswith("4") else one.bytes / 4
            counts["lsu"] += times * max(1, ceil(wide))
        elif one.name in _FMA | _XU | {"IMAD"}:
            counts["fma" if one.name in _FMA else "imad" if one.name == "IMAD" else "xu"] += times
        elif one.name not in _NOT_ALU and one.name[0] != "U":
            counts["alu"] += times
    return dict(counts)


@dataclass(frozen=True)
class Kernel:
    """A compiled launch: programs and warps of each, resources, what a warp does, bytes of device memory."""

    name: str
    programs: int
    warps: int
    registers: int
    shared: int
    counts: tuple[tuple[str, float], ...]
    cycles: int
    read: int
    written: int


def kernel(one: Launch, architecture: str) -> Kernel:
    """Compile a recorded launch, and follow threads of it: what they execute, and how much memory they touch.

    The instructions are those of the first warp of the middle program. The traffic is the average of four threads of
    it, and of the programs beside it along an axis of two. Memory that the programs along an axis share is counted
    once.
    """
    registers, shared, code = _compile(_Key(one, architecture))
    constants, grid = _constants(one, architecture), (*one.grid, 1, 1)[:3]
    programs, warps = prod(grid), one.arguments.get("num_warps", 4)

    def follow(program: Sequence[int], thread: int = 0) -> sass.Trace:
        special = {f"SR_CTAID.{axis}": place for axis, place in zip("XYZ", program, strict=True)}
        return sass.Thread(code, constants, {"SR_TID.X": thread, **special}).run()

    middle = [(n - 1) // 2 for n in grid]
    trace = follow(middle)
    threads = [place * (8 * warps + 5) for place in range(1, 4)]
    traces = [follow(middle, thread) for thread in threads]
    shares: Counter[tuple[str, int]] = Counter()  # the programs that share what they touch
    for axis, n in enumerate(grid):
        if n < 2:
            continue
        beside = follow([place + (i == axis) for i, place in enumerate(middle)])
        if n == 2:
            traces += [
                beside,
                *(follow([1 if i == axis else place for i, place in enumerate(middle)], t) for t in threads),
            ]
        for key, addresses in trace.touched.items():
            if beside.touched.get(key) == addresses:
                shares[key] = max(shares[key], 1) * n
    traffic: Counter[str] = Counter()
    for key in {key for each in (trace, *traces) for key in each.moved}:
        way, place = key
        mean = sum(each.moved[key] for each in (trace, *traces)) / (1 + len(traces))
        value = one.arguments[one.kernel.params[place].name]
        traffic[way] += min(round(mean * warps * programs / max(shares[key], 1)), value.numel() * value.itemsize)
    name, counts = one.kernel.fn.__name__, tuple(pipes(trace).items())
    return Kernel(name, programs, warps, registers, shared, counts, trace.cycles, traffic["read"], traffic["write"])


def _constants(one: Launch, architecture: str) -> dict[int, int]:
    """Constant bank 0 as the driver fills it: the arguments in their order, each at a multiple of its size."""
    at, types = _PARAMETERS[architecture], resources.source(one).signature
    constants = {_GRID + 4 * axis: n for axis, n in enumerate((*one.grid, 1, 1)[:3])}
    for place, parameter in enumerate(one.kernel.params):
        kind, value = types[parameter.name], one.arguments[parameter.name]
        if kind == "constexpr":
            continue
        size = 8 if kind.startswith("*") else 4
        at, number = ceil(at / size) * size, place << 40 if isinstance(value, Tensor) else value
        constants |= {at + i: number >> 8 * i & 0xFFFFFFFF for i in range(0, size, 4)}
        at += size
    return constants


class _Key:
    """A launch that is equal to another with the same compiled code."""

    def __init__(self, one: Launch, architecture: str) -> None:
        self.one, self.architecture, self.code = one, architecture, f"{architecture} {resources.code(one)}"

    def __hash__(self) -> int:
        return hash(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.code == other.code


@functools.cache
def _compile(key: _Key) -> tuple[int, int, dict[int, sass.Instruction]]:
    """Registers, bytes of shared memory, code."""
    binary = resources.binary(key.one, key.architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        done = subprocess.run(
            [resources.TOOL, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        )
    used = re.search(r"REG:(\d+)", done.stdout)
    if used is None:
        raise RuntimeError(f"{resources.TOOL} printed no resources of {key.one.kernel.fn.__name__}: {done.stdout!r}")
    return int(used[1]), binary.metadata.shared, sass.parse(done.stdout)


@dataclass(frozen=True)
class Bound:
    """The least time of a kernel, in microseconds without the gap behind it, and what sets it."""

    name: str
    us: float
    set_by: str
    read: int
    written: int
    flop: int = 0
    kernel: Kernel | None = None
    resident: int = 0  # programs of a multiprocessor at the same time
    waves: int = 0


def bound(one: Kernel | Operator, gpu: GPU) -> Bound:
    """The bound of one kernel."""
    traffic = one.read + one.written
    cached = traffic <= gpu.cache and not (isinstance(one, Operator) and one.flop)
    times = {"L2" if cached else "memory": traffic / (L2_BYTES * gpu.clock if cached else gpu.copy) * 1e6}
    if isinstance(one, Operator):
        if one.flop:
            times["product"] = product_us(gpu, one.m, one.n, one.k, one.batch)
        set_by = max(times, key=lambda name: times[name])
        return Bound(one.name, times[set_by], set_by, one.read, one.written, one.flop)
    together = resident(gpu, one.registers, one.warps, one.shared)
    fullest, waves = ceil(one.programs / gpu.processors), ceil(one.programs / (gpu.processors * max(together, 1)))
    to_us = 1e6 / gpu.clock
    for name, cycles in pipe_cycles(gpu, dict(one.counts)).items():
        times[name] = max(times.get(name, 0), cycles * one.warps * fullest * to_us)
    times["latency"] = waves * one.cycles * to_us
    set_by = max(times, key=lambda name: times[name])
    flop = round(dict(one.counts).get("flop", 0) * one.warps * one.programs)
    return Bound(one.name, times[set_by], set_by, one.read, one.written, flop, one, together, waves)


def product_us(gpu: GPU, m: int, n: int, k: int, batch: int = 1) -> float:
    """Microseconds of a product of cuBLAS: whole waves of the tiles that serve it best."""
    times = []
    for rows, columns, share in TILES:
        waves = ceil(ceil(m / rows) * ceil(n / columns) * batch / gpu.processors)
        times.append(waves * 2 * rows * columns * k * gpu.processors / (gpu.product * share) * 1e6)
    return min(times)


def products_us(case: Case, gpu: GPU) -> float:
    """Microseconds of the products alone (:mod:`benchmarks.rivals.products`), gaps included."""
    return sum(
        one.times * (_alone(one.m, one.n, one.k, one.batch, case.dtype.itemsize, gpu) + GAP)
        for one in products.products(case)
    )


def _alone(m: int, n: int, k: int, batch: int, itemsize: int, gpu: GPU) -> float:
    read, written = (m * k + k * n) * batch * itemsize, m * n * batch * itemsize
    return bound(Operator("product", read, written, m, n, k, batch), gpu).us


def head(case: Case, gpus: Sequence[GPU]) -> dict[str, list[Bound]]:
    """By GPU the bounds of every kernel of one call of the head, in the order of the call."""
    found: dict[str, list[Kernel | Operator]] = {}
    for architecture, processors in {gpu.architecture: gpu.processors for gpu in gpus}.items():
        known: dict[str, Kernel] = {}
        kernels: list[Kernel | Operator] = []
        for one in recorded.head(case, architecture, processors):
            if isinstance(one, Operator):
                kernels.append(one)
                continue
            key = f"{one.grid} {resources.code(one)} {[v for v in one.arguments.values() if isinstance(v, int)]}"
            if key not in known:
                known[key] = kernel(one, architecture)
            kernels.append(known[key])
        found[architecture] = kernels
    return {gpu.name: [bound(one, gpu) for one in found[gpu.architecture]] for gpu in gpus}


def total(bounds: Iterable[Bound]) -> float:
    """Microseconds of a captured call: its kernels one after another."""
    return sum(one.us + GAP for one in bounds)
