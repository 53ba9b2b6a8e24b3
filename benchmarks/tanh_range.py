"""``python -m benchmarks.tanh_range``: the share of channels for which the Triton scores are matrix products, by the
standard deviation of x = u·v.

u [R, K] and v [C, K] are standard normal, scaled so that x has the standard deviation σ. A channel of a tile of rows
and classes is computed by products alone if max|u| · max|v| is within the reach of the polynomials
(kernels/split_tanh.py); otherwise tanh is evaluated for the rows whose |u| · max|v| is not. Prints the share of
channels computed by products alone, by σ and dtype. Needs no GPU.
"""

from __future__ import annotations

import sys

import torch

from ssgrl_fast.kernels import split_tanh, tile_tables

SPREADS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
ROWS, CLASSES, CHANNELS = 64 * 81, 80, 1024  # the COCO head at B = 64


def share(dtype: torch.dtype, spread: float, seed: int = 0) -> float:
    """The share of channels, over all tiles of the architecture's table, that fit the dtype's reach."""
    tile = tile_tables.TABLES["sm_90"]["split_scores"]
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(n, CHANNELS, generator=generator) * spread**0.5 for n in (ROWS, CLASSES))
    tops = [
        torch.stack([part.abs().amax(0) for part in tensor.split(tile[block])])
        for tensor, block in ((u, "BLOCK_R"), (v, "BLOCK_C"))
    ]
    bounds = tops[0][:, None] * tops[1][None]  # [row tiles, class tiles, K]
    return float((bounds <= split_tanh.FORMS[dtype].reach).float().mean())


def main() -> int:
    """Print the table."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in split_tanh.FORMS}
    print(f"share of channels that are matrix products, R = {ROWS}, C = {CLASSES}, K = {CHANNELS}")
    print("σ of x  " + "  ".join(f"{name} (reach {split_tanh.FORMS[dtype].reach:g})" for name, dtype in names.items()))
    for spread in SPREADS:
        cells = (f"{share(dtype, spread):>{len(name) + 10}.1%}" for name, dtype in names.items())
        print(f"{spread:<7g} " + "  ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
