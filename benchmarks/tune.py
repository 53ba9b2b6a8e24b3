"""``python -m benchmarks.tune``: measures candidate tiles of the Triton kernels on this GPU and prints the best ones.

Each kernel is timed within its operation, forward or backward, at the size of the COCO head (C = 80, L = 81, D = 2048,
K = 1024), with the tiles of all other kernels unchanged. Copy the output into kernels/tile_tables.py by hand, then run
the parity tests (pytest --device cuda) and benchmarks.resources.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import triton
from torch import Tensor

from ssgrl_fast.kernels import graph_propagation, label_scores, semantic_attention, tile_tables

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EXTENTS = ("BLOCK_R", "BLOCK_C", "BLOCK_D", "BLOCK_O", "BLOCK_K", "VALUES", "num_stages")
"""The constants that are tried at half, once and twice their value; 1 is not halved."""
WARPS = (1, 2, 4, 8)
_UNFIT = (
    triton.runtime.errors.OutOfResources,
    triton.runtime.errors.PTXASError,
    triton.compiler.errors.CompilationError,
)
Call = Callable[[], object]


def calls(dtype: torch.dtype, batch: int) -> dict[str, tuple[Call, Call]]:
    """Forward and backward of each operation on random tensors of the COCO head, on the current GPU."""
    B, L, C, D, K = batch, 81, 80, 2048, 1024

    def normal(*size: int, scale: float = 1.0, exact: bool = False) -> Tensor:
        return (torch.randn(size, device="cuda") * scale).to(torch.float32 if exact else dtype)

    u, v, p, features = normal(B, L, K, scale=0.5), normal(C, K, scale=0.2), normal(K, exact=True), normal(B, L, D)
    pooled, attention = semantic_attention.forward(u, v, p, features)
    adjacency, weights = normal(C, C, scale=1 / C), [normal(2 * D, 3 * D, scale=0.01), normal(D, 3 * D, scale=0.01)]
    start = (pooled, adjacency, None, None, weights, [])
    h_T, *states = graph_propagation.forward(*start, 3, False, True)
    output = (normal(D, 2 * D, scale=0.01), normal(D), normal(C, D, scale=0.02), normal(C))
    logits, *kept = label_scores.forward(h_T, pooled, None, None, *output, True)
    return {
        "semantic_attention": (
            lambda: semantic_attention.forward(u, v, p, features),
            lambda: semantic_attention.backward(pooled, attention, u, v, p, features, attention, True),
        ),
        "graph_propagation": (
            lambda: graph_propagation.forward(*start, 3, False, True),
            lambda: graph_propagation.backward(h_T, *start, states, 3, False, True),
        ),
        "label_scores": (
            lambda: (
                label_scores.forward(h_T, pooled, None, None, *output, False),
                label_scores.forward(h_T, pooled, None, None, *output, True),
            ),
            lambda: label_scores.backward(logits, h_T, pooled, None, None, output[0], output[2], kept, True),
        ),
    }


class _Watched(dict[str, tile_tables.Tiles]):
    """A table that records which entries are looked up."""

    def __init__(self, table: Mapping[str, tile_tables.Tiles]) -> None:
        super().__init__(table)
        self.seen: list[str] = []

    def __getitem__(self, name: str) -> tile_tables.Tiles:
        self.seen.append(name)
        return super().__getitem__(name)


def users(stems: Mapping[str, tuple[Call, Call]], architecture: str) -> dict[str, Call]:
    """For each entry of an architecture's table that is used, the first call that uses it."""
    found: dict[str, Call] = {}
    table = tile_tables.TABLES[architecture]
    for call in itertools.chain.from_iterable(stems.values()):
        tile_tables.TABLES[architecture] = watched = _Watched(table)
        try:
            call()
        finally:
            tile_tables.TABLES[architecture] = table
        found = dict.fromkeys(watched.seen, call) | found
    return found


def candidates(tile: tile_tables.Tiles) -> Iterator[tile_tables.Tiles]:
    """The tile itself, then its extents doubled and halved one at a time, each with every number of warps."""
    shapes = [dict(tile)]
    for name in EXTENTS:
        if name in tile:
            shapes += [tile | {name: tile[name] * 2}, tile | {name: max(1, tile[name] // 2)}]
    seen: list[tile_tables.Tiles] = []
    for shape, warps in itertools.product(shapes, WARPS):
        candidate = shape | {"num_warps": warps}
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def best(
    name: str, call: Call, table: dict[str, tile_tables.Tiles], clock: Callable[[Call], float]
) -> tile_tables.Tiles:
    """The candidate with the shortest call; candidates that do not compile or do not fit are skipped."""
    own, times = table[name], []
    try:
        for candidate in candidates(own):
            table[name] = candidate
            try:
                times.append((clock(call), candidate))
            except _UNFIT:
                continue
    finally:
        table[name] = own
    if not times:
        raise RuntimeError(f"tune: no tiles of {name} run on this GPU")
    return min(times, key=lambda timed: timed[0])[1]


def milliseconds(call: Call) -> float:
    """The median time of a call on the GPU, with the L2 cache flushed before each."""
    return float(triton.testing.do_bench(call, warmup=10, rep=60, return_mode="median"))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the best tiles of each kernel.

    Returns:
        0; 1 without a GPU or for an unknown kernel.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=tuple(DTYPES), help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="images; default: %(default)s")
    parser.add_argument("--kernel", action="append", help="an entry of the table, repeatable; default: all that run")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("tune: needs a GPU, and PyTorch finds none", file=sys.stderr)
        return 1
    architecture = tile_tables.architecture(torch.device("cuda"))
    table = tile_tables.TABLES[architecture] = dict(tile_tables.TABLES[architecture])
    chosen = users(calls(DTYPES[arguments.dtype], arguments.batch), architecture)
    unknown = set(arguments.kernel or ()) - set(chosen)
    if unknown:
        names, others = ", ".join(sorted(unknown)), ", ".join(sorted(chosen))
        print(f"tune: {names} does not run in {arguments.dtype}; choose from {others}", file=sys.stderr)
        return 1
    print(f"# {torch.cuda.get_device_name()}, {architecture}, {arguments.dtype}, B = {arguments.batch}")
    for name in arguments.kernel or chosen:
        found = best(name, chosen[name], table, milliseconds)
        print(f'    "{name}": {found},'.replace("'", '"'), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
