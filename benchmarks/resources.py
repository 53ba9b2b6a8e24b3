"""``python -m benchmarks.resources``: every Triton kernel compiled for GPUs that need not be there; registers, spills,
shared memory.

The launches are those of the three operations themselves, recorded at a COCO-like shape (every extent a multiple of
16 but L = 81), so the compiled code is what a user's first call would compile.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssgrl_fast.kernels import configs, graph_propagation, label_scores, launch, semantic_attention
from ssgrl_fast.kernels.launch import Launch

ARCHITECTURES = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_OPTIONS = ("num_warps", "num_stages")
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
RESULTS = Path(__file__).resolve().parent / "triton-resources.csv"


@dataclass(frozen=True)
class Resources:
    """What the compiler gave one kernel: registers a thread, bytes of stack (spills) and of shared memory."""

    architecture: str
    dtype: str
    kernel: str
    tiles: str
    registers: int
    stack: int
    shared: int
    triton: str
    seconds: float


def launches(architecture: str, dtype: torch.dtype) -> list[Launch]:
    """One launch a kernel of the three operations, forward and backward, with their factors and without."""
    B, L, C, D, K, O = 2, 81, 80, 256, 128, 256

    def empty(*size: int, exact: bool = False) -> Tensor:
        return torch.zeros(size, dtype=torch.float32 if exact and dtype != torch.float64 else dtype)

    u, v, p, features = empty(B, L, K), empty(C, K), empty(K, exact=True), empty(B, L, D)
    h0, adjacency = empty(B, C, D), empty(C, C)
    weights, biases = [empty(2 * D, 3 * D), empty(D, 3 * D)], [empty(2 * D), empty(D)]
    output = (empty(O, 2 * D), empty(O), empty(C, O), empty(C))
    with configs.assumed(architecture), launch.recorded() as found:
        pooled, attention = semantic_attention.forward(u, v, p, features)
        semantic_attention.backward(pooled, attention, u, v, p, features, attention, True)
        start = (h0, adjacency, None, None, weights, biases)
        h_T, *saved = graph_propagation.forward(*start, 2, True, True)
        graph_propagation.backward(h_T, *start, saved, 2, True, True)
        label_scores.forward(h0, h0, None, None, *output, False)
        logits, *saved = label_scores.forward(h0, h0, None, None, *output, True)
        label_scores.backward(logits, h0, h0, None, None, output[0], output[2], saved, True)
    return list({one.kernel.fn.__name__: one for one in found}.values())


def compiled(one: Launch, architecture: str, dtype: str) -> Resources:
    """Compile a recorded launch as the kernel's first call on such a GPU would."""
    begin, arguments = time.perf_counter(), one.arguments
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    target = GPUTarget("cuda", ARCHITECTURES[architecture], 32)
    binary = triton.compile(_source(one), target=target, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        done = subprocess.run([_TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if match is None:
        raise RuntimeError(f"{_TOOL} printed no resources of {one.kernel.fn.__name__}: {done.stdout!r}")
    names = (*(name for name in arguments if name.startswith("BLOCK_")), *options)
    return Resources(
        architecture,
        dtype,
        one.kernel.fn.__name__,
        " ".join(f"{name}={arguments[name]}" for name in names),
        int(match[1]),
        int(match[2]),
        binary.metadata.shared,
        triton.__version__,
        round(time.perf_counter() - begin, 2),
    )


def _source(one: Launch) -> ASTSource:
    """The kernel with the types of its arguments, specialised as Triton does: ones, and multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    divisible: dict[tuple[int, ...], list[list[object]]] = {}
    for index, parameter in enumerate(one.kernel.params):
        name, value = parameter.name, one.arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[name] = f"*{_NAMES[value.dtype]}"
        elif parameter.is_constexpr or value == 1:
            signature[name], constants[name] = "constexpr", value
            continue
        else:
            signature[name] = "i32"
        if isinstance(value, Tensor) or value % 16 == 0:
            divisible[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=one.kernel, signature=signature, constexprs=constants, attrs=divisible)


def every(architectures: Sequence[str], dtypes: Sequence[str]) -> Iterator[Resources]:
    """The resources of every kernel, compiled one after the other."""
    for architecture in architectures:
        for dtype in dtypes:
            for one in launches(architecture, DTYPES[dtype]):
                yield compiled(one, architecture, dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it to a file.

    Returns:
        0; 1 where a kernel spills.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument(
        "--architecture", action="append", choices=tuple(ARCHITECTURES), help="repeatable; default: all"
    )
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES), help="repeatable; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file to write; default: %(default)s")
    arguments = parser.parse_args(argv)
    found = []
    for row in every(arguments.architecture or tuple(ARCHITECTURES), arguments.dtype or tuple(DTYPES)):
        found.append(row)
        print(
            f"{row.architecture:7} {row.dtype:9} {row.kernel:30} {row.registers:4} registers {row.stack:5} B spilled "
            f"{row.shared:6} B shared  {row.tiles}",
            flush=True,
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Resources) if field.name != "seconds"])
        writer.writeheader()
        writer.writerows({k: v for k, v in asdict(row).items() if k != "seconds"} for row in found)
    print(f"written to {arguments.output}")
    return int(any(row.stack for row in found))


if __name__ == "__main__":
    sys.exit(main())
