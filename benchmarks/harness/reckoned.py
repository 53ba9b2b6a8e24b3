"""How long a GPU needs at least, reckoned from compiled code: the kernels of :mod:`benchmarks.harness.recorded`.

A Triton kernel takes as long as the slowest of: its memory traffic at the rate of a copy (every argument's memory at
most once); on the fullest multiprocessor each pipe's instructions; its waves, each as long as a program of it that is
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
from typing import Any

from torch import Tensor

from benchmarks import resources
from benchmarks.harness import recorded, sass
from benchmarks.harness.cases import Case
from benchmarks.harness.occupancy import GPU, GPUS, L2_BYTES, pipe_cycles, resident
from benchmarks.harness.recorded import Operator
from benchmarks.rivals import products
from ssgrl_fast.kernels.launch import Launch

GAP = 1.0
"""Microseconds from the end of a kernel to the start of the next in a captured graph: assumed, not measured."""
TILES = ((128, 256, 1.0), (128, 128, 0.8), (64, 64, 0.35))
"""Tiles of cuBLAS's products with their shares of its best rate. The shares are assumed: with them the products alone
of the head take within 10 % of what was measured on an H100."""
TRITON_PRODUCT = 698 / 766
"""The rate of a Triton product's tensor-core instructions relative to cuBLAS's best, measured on an H100 with TMA
copies (684–712 against 762–770 TFLOP/s); assumed for the copies and GPUs of today's kernels."""
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
class Programs:
    """Programs of a launch that do the same: how many, what a warp of them does, and if a program is alone the cycles
    of a warp of a usual one and of the one that ends last."""

    programs: int
    counts: tuple[tuple[str, float], ...]
    cycles: int
    last: int


@dataclass(frozen=True)
class Kernel:
    """A compiled launch: warps of a program, resources, its programs by kind, bytes of device memory."""

    name: str
    warps: int
    registers: int
    shared: int
    kinds: tuple[Programs, ...]
    read: int
    written: int

    @property
    def programs(self) -> int:
        """Of the launch."""
        return sum(kind.programs for kind in self.kinds)

    def count(self, pipe: str) -> float:
        """Of a pipe's instructions (or FLOP, or bytes) of a warp, the average of all programs."""
        return sum(dict(kind.counts).get(pipe, 0) * kind.programs for kind in self.kinds) / max(self.programs, 1)


def kernel(one: Launch, architecture: str) -> Kernel:
    """Compile a recorded launch, and follow threads of it: what they execute, and how much memory they touch.

    The instructions are those of the first warp of the middle program. The traffic is the average of eight threads of
    it, and of the programs beside it along an axis of two. Memory that the programs along an axis share is counted
    once. Programs that compute a part of a tile (gated_product.py) are a kind of their own, and one of them, which
    takes longest, does the rest for all.
    """
    registers, shared, code = _compile(_Key(one, architecture))
    constants, grid = _constants(one, architecture), (*one.grid, 1, 1)[:3]
    warps, parts, traffic, kinds = one.arguments.get("num_warps", 4), one.arguments.get("SPLIT", 1), Counter[Any](), []
    whole = one.arguments["WHOLE"] if parts > 1 else grid[0]
    for first, last, split in ((0, whole, 1), (whole, grid[0], parts)):
        if first == last:
            continue
        along, middle = (last - first, *grid[1:]), [(first + last - 1) // 2, *[(n - 1) // 2 for n in grid[1:]]]
        follow = functools.partial(_follow, code, constants, tensor=_tensor(architecture) / warps)
        trace, usual = follow(middle, everything=split > 1), follow(middle)
        both = Counter({name: n / split for name, n in pipes(trace).items()})
        both.update({name: n * (1 - 1 / split) for name, n in pipes(usual).items()})
        kinds.append(Programs(prod(along), tuple(both.items()), usual.cycles, trace.cycles))
        threads = [4 * warps * place + 5 * place % (4 * warps) for place in range(1, 8)]
        traces = [trace, *(follow(middle, thread, everything=split > 1) for thread in threads)]
        shares: Counter[tuple[str, int]] = Counter()  # the programs that share what they touch
        for axis, n in enumerate(along):
            if n < 2:
                continue
            place = [at + (i == axis) for i, at in enumerate(middle)]
            beside = follow(place, everything=split > 1)
            if n == 2:
                traces += [beside, *(follow(place, t) for t in threads)]
            for key, addresses in trace.touched.items():
                if beside.touched.get(key) == addresses:
                    shares[key] = max(shares[key], 1) * n
        for way, place in {key for each in traces for key in each.moved}:
            mean = sum(each.moved[way, place] for each in traces) / len(traces)
            mean -= (trace.moved[way, place] - usual.moved[way, place]) * (1 - 1 / split)
            traffic[way, place] += round(mean * warps * prod(along) / max(shares[way, place], 1))
    total: Counter[str] = Counter()
    for (way, place), size in traffic.items():
        value = one.arguments[one.kernel.params[place].name]
        total[way] += min(size, value.numel() * value.itemsize)
    name = one.kernel.fn.__name__
    return Kernel(name, warps, registers, shared, tuple(kinds), total["read"], total["write"])


def _follow(
    code: dict[int, sass.Instruction],
    constants: dict[int, int],
    program: Sequence[int],
    thread: int = 0,
    everything: bool = False,
    *,
    tensor: float,
) -> sass.Trace:
    special = {f"SR_CTAID.{axis}": place for axis, place in zip("XYZ", program, strict=True)}
    return sass.Thread(code, constants, {"SR_TID.X": thread, **special}, everything, tensor).run()


def _tensor(architecture: str) -> float:
    """FLOP of a cycle and multiprocessor that a Triton product reaches."""
    return min(_reached(gpu) for gpu in GPUS.values() if gpu.architecture == architecture)


def _reached(gpu: GPU) -> float:
    return gpu.product * TRITON_PRODUCT / (gpu.processors * gpu.clock)


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
    to_us, latency, waves = 1e6 / gpu.clock, 0, 0
    busy: Counter[str] = Counter()
    for kind in one.kinds:
        fullest = ceil(kind.programs / gpu.processors)
        for name, cycles in pipe_cycles(gpu, dict(kind.counts)).items():
            busy[name] += cycles * one.warps * fullest * to_us
        own = ceil(kind.programs / (gpu.processors * max(together, 1)))
        waves, latency = waves + own, latency + (own - 1) * kind.cycles + kind.last
    busy["tensor"] *= gpu.tensor / _reached(gpu)
    times |= {name: max(times.get(name, 0), us) for name, us in busy.items()} | {"latency": latency * to_us}
    set_by = max(times, key=lambda name: times[name])
    flop = round(one.count("flop") * one.warps * one.programs)
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
