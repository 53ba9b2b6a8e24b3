"""The emulated CUDA scores (csrc/cuda/semantic_attention/scores.h) on CPU tensors, their float64 truth and
their plain form."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import cuda_emulation
import torch
from torch import Tensor

from ssgrl_fast.testing import assert_close_to_truth

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Images, locations, classes and joint channels."""

    B: int
    L: int
    C: int
    K: int
    scratch: int = 2**27  # bytes that the backward may take

    def __str__(self) -> str:
        return f"B{self.B}-L{self.L}-C{self.C}-K{self.K}"


RAGGED = [
    Sizes(2, 5, 3, 6),
    Sizes(1, 81, 20, 33),
    Sizes(3, 1, 4, 5),  # L = 1
    Sizes(2, 19, 1, 40),  # C = 1
    Sizes(2, 9, 5, 1),  # K = 1
    Sizes(1, 1, 1, 1),
    Sizes(2, 37, 67, 65),  # one past a tile in rows, classes and channels
    Sizes(1, 17, 9, 1030),
]


def library() -> ctypes.CDLL:
    folder = cuda_emulation.ROOT / "csrc" / "cuda" / "semantic_attention"
    return cuda_emulation.build(folder / "scores.cu", folder / "split_tanh.cu", cuda_emulation.EMULATOR / "scores.cu")


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def inputs_of(n: Sizes, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Results:
    """u [B, L, K], v [C, K], p [K] and d_scores [B, C, L]; u v is of size ``scale``."""
    g = torch.Generator().manual_seed(seed)
    u, v = torch.randn(n.B, n.L, n.K, generator=g), torch.randn(n.C, n.K, generator=g) * scale
    p, d = torch.randn(n.K, generator=g), torch.randn(n.B, n.C, n.L, generator=g)
    return {"u": u.to(dtype), "v": v.to(dtype), "p": p.to(wide(dtype)), "d_scores": d.to(wide(dtype))}


def _call(
    emulated: ctypes.CDLL, name: str, n: Sizes, inputs: Results, names: tuple[str, ...], out: list[Tensor], order: bool
) -> None:
    dtype = DTYPES.index(inputs["u"].dtype)
    tensors = [inputs[name] for name in names]
    cuda_emulation.call(emulated, name, dtype, n.B, n.L, n.C, n.K, n.scratch, *tensors, *out, backwards=order)


def forward(emulated: ctypes.CDLL, n: Sizes, inputs: Results, backwards: bool = False, kind: str = "scores") -> Tensor:
    """scores [B, C, L], their parts summed."""
    sizes = torch.zeros(2, dtype=torch.int64)
    _call(emulated, f"emulated_{kind.removesuffix('s')}_sizes", n, inputs, (), [sizes], False)
    parts = inputs["p"].new_full((int(sizes[0]), n.B, n.C, n.L), float("nan"))
    _call(emulated, f"emulated_{kind}", n, inputs, ("u", "v", "p"), [parts], backwards)
    return parts.sum(0)


def backward(
    emulated: ctypes.CDLL, n: Sizes, inputs: Results, backwards: bool = False, kind: str = "scores"
) -> Results:
    """d_u, d_v and d_p."""
    sizes = torch.zeros(2, dtype=torch.int64)
    _call(emulated, f"emulated_{kind.removesuffix('s')}_sizes", n, inputs, (), [sizes], False)
    out = {f"d_{name}": torch.full_like(inputs[name], float("nan")) for name in ("u", "v", "p")}
    scratch = inputs["p"].new_full((int(sizes[1]),), float("nan"))
    names = ("u", "v", "p", "d_scores")
    _call(emulated, f"emulated_{kind}_backward", n, inputs, names, [*out.values(), scratch], backwards)
    return out


def truth(inputs: Results, dtype: torch.dtype = torch.float64) -> Results:
    """Scores and gradients as formulas in a dtype: float64 is the truth, others the plain form."""
    u, v, p, d = (inputs[name].to(dtype) for name in ("u", "v", "p", "d_scores"))
    x = u[:, None] * v[None, :, None]  # [B, C, L, K]
    t = x.tanh()
    slope = 4 * (q := (-2 * x.abs()).exp()) / (1 + q) ** 2  # 1 - t² would cancel, and excuse everything
    w = d[..., None] * (p * slope)
    return {
        "scores": t @ p,
        "d_u": (w * v[None, :, None]).sum(1),
        "d_v": (w * u[:, None]).sum((0, 2)),
        "d_p": (d[..., None] * t).sum((0, 1, 2)),
    }


def assert_within_budget(results: list[Results], inputs: list[Results], dtype: torch.dtype) -> None:
    """Each result over all inputs to its budget, at unit root mean square of its truth where the dtype reaches it."""
    truths, plains = [truth(each) for each in inputs], [truth(each, dtype) for each in inputs]
    for name, result in results[0].items():
        least = torch.finfo(result.dtype).tiny
        sizes = [max(float(t[name].norm()) / t[name].numel() ** 0.5, least) for t in truths]
        sides = [
            [tensors[name].double() / size for tensors, size in zip(side, sizes, strict=True)]
            for side in (results, truths, plains)
        ]
        excuse = sides[2] if dtype in (torch.bfloat16, torch.float16) else None
        assert_close_to_truth(
            name, sides[0], sides[1], excuse, operation="semantic_attention", gradient=name != "scores", dtype=dtype
        )


def assert_equal_bits(first: Results, second: Results) -> None:
    """Two runs have given the same bits."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
