"""``python -m benchmarks.resources``: compiles every Triton kernel for several GPU architectures and prints registers,
spills and shared memory. Needs no GPU.

The launches of the three operations are recorded at aligned and at odd sizes, so the compiled code is the same as that
of a user's first call.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ssgrl_fast._utils.files import replacing
from ssgrl_fast.kernels import gated_product, graph_propagation, label_scores, launch, semantic_attention, tile_tables
from ssgrl_fast.kernels.gated_product import Share
from ssgrl_fast.kernels.launch import Launch

ARCHITECTURES = {f"sm_{number}": number for number in (80, 86, 89, 90, 100, 120)}
DTYPES = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_NAMES[torch.int32] = "i32"
_OPTIONS = ("num_warps", "num_stages")
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
RESULTS = Path(__file__).resolve().parent / "triton-resources.csv"


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel: registers per thread, bytes of stack (spills) and of shared memory."""

    architecture: str
    dtype: str
    size: str
    kernel: str
    tiles: str
    registers: int
    stack: int
    shared: int
    triton: str
    seconds: float


SIZES = {"aligned": (2, 81, 80, 256, 128, 256), "odd": (2, 81, 67, 100, 33, 50)}
"""B, L, C, D, K, O; "aligned": the extents of matrices are multiples of 16 (except L)."""

MANY = 40
"""Times B: images for which other kernels run than for few."""


def launches(architecture: str, dtype: torch.dtype, size: str = "aligned") -> list[Launch]:
    """Every launch with different compiled code: h0 with and without factors, tied and separate gates."""
    B, L, C, D, K, O = SIZES[size]

    def empty(*shape: int, exact: bool = False) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32 if exact and dtype != torch.float64 else dtype)

    u, v, p, features = empty(B, L, K), empty(C, K), empty(K, exact=True), empty(B, L, D)
    h0, adjacency = empty(B, C, D), empty(C, C)
    few, attention = features[:, :5], empty(B, C, 5, exact=True)  # few locations: low-rank first step
    weights, biases = [empty(2 * D, 3 * D), empty(D, 3 * D)], [empty(2 * D), empty(D)]
    output = (empty(O, 2 * D), empty(O), empty(C, O), empty(C))

    with (
        patch.object(gated_product, "share", lambda *product: Share(0, 3, 1)),  # in parts, however small it is
        tile_tables.assumed(tile_tables.of_capability(*divmod(ARCHITECTURES[architecture], 10))),
        launch.recorded() as launched,
    ):
        for times in ((MANY, 1, 1), (MANY, 2, 1), (1, 2, 1)):  # also more locations than a tile has
            semantic_attention.forward(u.repeat(times), v, p, features.repeat(times))
        pooled, weight = semantic_attention.forward(u, v, p, features)
        semantic_attention.backward(pooled, weight, u, v, p, features, weight, True)
        for factors, bias, tied in (((None, None), biases, True), ((attention, few), [], False)):
            start = (h0, adjacency, *factors, weights, bias)
            h_T, *saved = graph_propagation.forward(*start, 2, tied, True)
            graph_propagation.backward(h_T, *start, saved, 2, tied, True)
            label_scores.forward(h0, h0, *factors, *output, False)
            logits, *saved = label_scores.forward(h0, h0, *factors, *output, True)
            label_scores.backward(logits, h0, h0, *factors, output[0], output[2], saved, True)
        for start in (h0, h0[:1]):  # many rows and few
            graph_propagation.forward(start, adjacency, None, None, weights, biases, 2, False, False)
            label_scores.forward(start, start, None, None, *output, False)
    return list({code(one): one for one in launched}.values())


def code(one: Launch) -> str:
    """A key that is equal for launches with the same compiled code."""
    types, options = source(one), [one.arguments.get(name) for name in _OPTIONS]
    return f"{one.kernel.fn.__name__} {types.signature} {types.constants} {types.attrs} {options}"


def compiled(one: Launch, architecture: str, dtype: str, size: str) -> Resources:
    """Compile a recorded launch as the first call on such a GPU would."""
    begin, arguments = time.perf_counter(), one.arguments
    built = binary(one, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        done = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True)
    match = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if match is None:
        raise RuntimeError(f"{TOOL} printed no resources of {one.kernel.fn.__name__}: {done.stdout!r}")
    names = (name for name in arguments if name.startswith("BLOCK_") or name in _OPTIONS)
    return Resources(
        architecture,
        dtype,
        size,
        one.kernel.fn.__name__,
        " ".join(f"{name}={arguments[name]}" for name in names),
        int(match[1]),
        int(match[2]),
        built.metadata.shared,
        triton.__version__,
        round(time.perf_counter() - begin, 2),
    )


def binary(one: Launch, architecture: str) -> Any:
    """Triton's compiled kernel of a recorded launch."""
    options = {name: one.arguments[name] for name in _OPTIONS if name in one.arguments}
    return triton.compile(source(one), target=GPUTarget("cuda", ARCHITECTURES[architecture], 32), options=options)


def source(one: Launch) -> ASTSource:
    """The kernel and the types of its arguments, specialised as Triton does: arguments equal to 1, multiples of 16."""
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


def every(
    architectures: Sequence[str], dtypes: Sequence[str], sizes: Sequence[str] = tuple(SIZES)
) -> Iterator[Resources]:
    """The resources of every kernel, for all combinations."""
    for architecture, dtype, size in itertools.product(architectures, dtypes, sizes):
        for one in launches(architecture, DTYPES[dtype], size):
            yield compiled(one, architecture, dtype, size)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it to a file.

    Returns:
        0; 1 if a kernel spills registers.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resources", description=__doc__)
    parser.add_argument(
        "--architecture", action="append", choices=tuple(ARCHITECTURES), help="repeatable; default: all"
    )
    parser.add_argument("--dtype", action="append", choices=tuple(DTYPES), help="repeatable; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="CSV file to write; default: %(default)s")
    arguments = parser.parse_args(argv)
    rows = []
    for row in every(arguments.architecture or tuple(ARCHITECTURES), arguments.dtype or tuple(DTYPES)):
        rows.append(row)
        print(
            f"{row.architecture:7} {row.dtype:9} {row.size:8} {row.kernel:30} {row.registers:4} registers "
            f"{row.stack:5} B spilled {row.shared:6} B shared  {row.tiles}",
            flush=True,
        )
    with replacing(arguments.output) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Resources) if field.name != "seconds"])
        writer.writeheader()
        writer.writerows({k: v for k, v in asdict(row).items() if k != "seconds"} for row in rows)
    print(f"written to {arguments.output}")
    return int(any(row.stack for row in rows))


if __name__ == "__main__":
    sys.exit(main())
