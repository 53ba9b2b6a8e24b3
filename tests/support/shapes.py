"""The named shapes and inputs that every test of the three operations runs on.

Shape letters: B images, L locations, C classes, D feature channels, K joint size, O output size, T propagation steps.
Inputs are drawn in float64 from a seeded generator and rounded to the dtype under test; the float64 truth of any dtype
is the reference on `truth_of(inputs)`, the same rounded numbers widened.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """One named shape, and what it is there for."""

    name: str
    B: int
    L: int
    C: int
    D: int
    K: int
    O: int
    T: int = 3
    isolated: tuple[int, ...] = ()
    saturated: bool = False
    why: str = ""

    def __str__(self) -> str:
        return self.name


_ALL = (
    Shape("tiny", 2, 5, 3, 4, 6, 5, why="every extent differs, small enough for scalar loops"),
    Shape("one_class", 2, 6, 1, 5, 7, 3, why="C = 1: the adjacency is a single zero"),
    Shape("one_location", 2, 1, 4, 6, 5, 4, why="L = 1: attention is exactly one, its gradients exactly zero"),
    Shape("one_channel", 3, 4, 2, 1, 1, 1, why="D = K = O = 1"),
    Shape("one_step", 2, 5, 3, 4, 6, 5, T=1, why="the first step is also the last"),
    Shape("five_steps", 2, 4, 3, 6, 5, 5, T=5, why="more steps than the paper's three"),
    Shape("empty_batch", 0, 5, 3, 4, 6, 5, why="B = 0"),
    Shape("many_classes", 1, 4, 500, 6, 5, 7, why="C = 500, as in VG-500, at a small D"),
    Shape("odd", 3, 13, 7, 17, 11, 9, why="odd extents, no multiple of any vector"),
    Shape("off_tile", 2, 33, 19, 65, 129, 31, why="one past a tile in L, D and K, one short in O"),
    Shape("on_tile", 2, 64, 16, 64, 128, 64, why="whole tiles"),
    Shape("few_locations", 2, 3, 24, 40, 16, 40, why="L < C D / (C + D): the low-rank first step pays"),
    Shape("many_locations", 2, 81, 5, 24, 20, 24, why="L > C: the low-rank first step does not pay"),
    Shape("isolated", 2, 6, 9, 12, 10, 8, isolated=(0, 4, 8), why="classes without edges, first and last among them"),
    Shape("no_edges", 2, 6, 4, 8, 6, 6, isolated=(0, 1, 2, 3), why="an adjacency of zeros"),
    Shape("saturated", 2, 9, 6, 16, 24, 12, saturated=True, why="|u v| up to 1e4, gates driven to 0 and 1"),
)
_REAL = (
    Shape("voc_448", 1, 49, 20, 2048, 1024, 2048, why="the paper's VOC setting at scale 512, L = 49"),
    Shape("coco_448", 1, 49, 80, 2048, 1024, 2048, why="its COCO setting at that scale: the low-rank first step pays"),
)

_WIDE = (
    Shape("wide_low_rank", 1, 16, 40, 256, 64, 256, why="alone in a pool: identity 4 in reduced dtypes, undiluted"),
    Shape("wide_full_rank", 1, 49, 40, 256, 64, 256, why="the same with L > C D / (C + D)"),
)

SHAPES: dict[str, Shape] = {shape.name: shape for shape in _ALL}
REAL: dict[str, Shape] = {shape.name: shape for shape in _REAL}
WIDE: dict[str, Shape] = {shape.name: shape for shape in _WIDE}
LOOP_SHAPES = [
    SHAPES[n] for n in ("tiny", "one_class", "one_location", "one_channel", "one_step", "five_steps", "isolated")
]
"""Small enough for the scalar loops of paper_loops.py."""
GRADCHECK_SHAPES = [SHAPES[n] for n in ("tiny", "one_class", "one_location", "one_channel")]

Inputs = dict[str, Tensor | None]


def shape_id(value: object) -> str:
    """The pytest id of a shape (and of anything else that has a name)."""
    return str(value)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(0x55A6 + 7919 * seed)


def normal(g: torch.Generator, *size: int, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(*size, generator=g, dtype=torch.float64, device="cpu") * scale
    return drawn.to(torch.get_default_device())


def drawn_on_the_cpu(draw: Callable[..., Inputs]) -> Callable[..., Inputs]:
    """The same inputs on every device: drawn on the CPU, then moved to the default device (--device)."""

    @functools.wraps(draw)
    def moved(*args: Any, **options: Any) -> Inputs:
        with torch.device("cpu"):
            inputs = draw(*args, **options)
        return {name: None if t is None else t.to(torch.get_default_device()) for name, t in inputs.items()}

    return moved


def adjacency(shape: Shape, seed: int = 0) -> Tensor:
    """Conditional probabilities [C, C] in float64: not symmetric, zero diagonal, isolated classes without edges."""
    g = generator(seed + 1000)
    a = torch.rand(shape.C, shape.C, generator=g, dtype=torch.float64)
    a = a * (torch.rand(shape.C, shape.C, generator=g, dtype=torch.float64) < 0.6)
    a = a * (2.0 / max(shape.C, 4))  # rows sum to less than one on average, so that no shape overflows its gates
    a.fill_diagonal_(0.0)
    for c in shape.isolated:
        a[c, :] = 0.0
        a[:, c] = 0.0
    return a


@drawn_on_the_cpu
def semantic_attention_inputs(shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
    """u [B, L, K], v [C, K], features [B, L, D] in dtype; p [K] in float32, or float64 for float64."""
    g = generator(seed)
    B, L, C, D, K = shape.B, shape.L, shape.C, shape.D, shape.K
    u, v = normal(g, B, L, K), normal(g, C, K)
    p, features = normal(g, K, scale=2.0 * K**-0.5), normal(g, B, L, D).abs()
    if shape.saturated:  # from |u v| far below one to 1e4, both signs, exact zeros among them
        u = u * torch.logspace(-3, 2, K, dtype=torch.float64)
        v = v.clamp(-3.0, 3.0) * torch.logspace(-1, 1.8, C, dtype=torch.float64)[:, None]
        u[:, 0] = 0.0
        v[:, -1] = 0.0
    return {"u": u.to(dtype), "v": v.to(dtype), "p": p.to(wide(dtype)), "features": features.to(dtype)}


@drawn_on_the_cpu
def graph_propagation_inputs(
    shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, *, bias: bool = True, factors: bool = False
) -> Inputs:
    """The tensors of graph_propagation by name; with factors, h0 is the product attention @ features in dtype."""
    g = generator(seed + 1)
    D = shape.D
    inputs = _states(shape, g, dtype, factors)
    inputs["adjacency"] = adjacency(shape, seed).to(dtype)
    inputs["weight_zr"] = normal(g, 2 * D, 3 * D, scale=(2.0 * D) ** -0.5).to(dtype)
    inputs["bias_zr"] = normal(g, 2 * D, scale=0.5)
    inputs["weight_h"] = normal(g, D, 3 * D, scale=(2.0 * D) ** -0.5).to(dtype)
    inputs["bias_h"] = normal(g, D, scale=0.5)
    if shape.saturated:  # every combination of open, shut and free gates, channel by channel
        inputs["bias_zr"][0 : D // 3] = 1e4
        inputs["bias_zr"][D // 3 : D // 2] = -1e4
        inputs["bias_zr"][D + D // 4 : D + D // 2] = 1e4
        inputs["bias_zr"][D + D // 2 : D + 3 * D // 4] = -1e4
        inputs["bias_h"][D // 6 : D // 3] = torch.tensor([1e4, -1e4], dtype=torch.float64).repeat(D)[: D // 3 - D // 6]
    for name in ("bias_zr", "bias_h"):
        inputs[name] = inputs[name].to(dtype) if bias else None
    return inputs


@drawn_on_the_cpu
def label_scores_inputs(
    shape: Shape, dtype: torch.dtype = torch.float64, seed: int = 0, *, factors: bool = False, bias: bool = True
) -> Inputs:
    """The tensors of label_scores by name."""
    g = generator(seed + 2)
    B, C, D, O = shape.B, shape.C, shape.D, shape.O
    inputs: Inputs = {"h_T": normal(g, B, C, D).to(dtype)}
    inputs.update(_states(shape, g, dtype, factors))
    scale = 30.0 if shape.saturated else 1.0
    inputs["weight_o"] = normal(g, O, 2 * D, scale=(2.0 * D) ** -0.5).to(dtype)
    inputs["bias_o"] = normal(g, O, scale=scale).to(dtype) if bias else None
    inputs["weight_c"] = normal(g, C, O, scale=O**-0.5).to(dtype)
    inputs["bias_c"] = normal(g, C).to(dtype) if bias else None
    return inputs


def _states(shape: Shape, g: torch.Generator, dtype: torch.dtype, factors: bool) -> Inputs:
    B, L, C, D = shape.B, shape.L, shape.C, shape.D
    if not factors:
        return {"h0": normal(g, B, C, D).to(dtype), "attention": None, "features": None}
    attention = torch.softmax(normal(g, B, C, L), dim=2).to(wide(dtype))
    features = normal(g, B, L, D).to(dtype)
    h0 = torch.bmm(attention.double(), features.double()).to(dtype)
    return {"h0": h0, "attention": attention, "features": features}


INPUTS: dict[str, Callable[..., Inputs]] = {
    "semantic_attention": semantic_attention_inputs,
    "graph_propagation": graph_propagation_inputs,
    "label_scores": label_scores_inputs,
}


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of p and attention beside features of a dtype: float32, or float64 with float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def truth_of(inputs: Mapping[str, Tensor | None]) -> Inputs:
    """The same numbers in float64."""
    return {name: None if t is None else t.detach().double() for name, t in inputs.items()}


def low_rank_pays(shape: Shape) -> bool:
    """Identity 4: whether the first step's products are cheaper on the L rows of the features."""
    return shape.L * (shape.C + shape.D) < shape.C * shape.D


# Layouts: equal values at other strides.


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else _strided(t)


def _strided(t: Tensor) -> Tensor:
    room = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), float("nan"))
    view = room[..., 1::2][..., : t.shape[-1]]
    view.copy_(t)
    return view


def _sliced(t: Tensor) -> Tensor:
    room = t.new_full(tuple(n + 3 for n in t.shape), float("nan"))
    view = room[tuple(slice(2, 2 + n) for n in t.shape)]
    view.copy_(t)
    return view


def _offset(t: Tensor) -> Tensor:
    room = t.new_full((t.numel() + 1,), float("nan"))
    view = room[1:].view(t.shape)
    view.copy_(t)
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "strided": _strided,
    "sliced": _sliced,
    "offset": _offset,
}
"""transposed: last two axes swapped in memory; strided: every second element of NaN-filled room; sliced: a box inside
NaN-filled room; offset: contiguous but one element past an aligned address."""


def relaid(inputs: Mapping[str, Tensor | None], layout: str | Sequence[str | None]) -> Inputs:
    """Every tensor of the inputs at another layout, the room around it filled with NaN.

    Of several layouts the tensors take one each, in turn; None leaves a tensor as it is.
    """
    turns = itertools.cycle([layout] if isinstance(layout, str) else layout)
    pairs = zip(inputs.items(), turns, strict=False)
    return {name: t if t is None or how is None else LAYOUTS[how](t) for (name, t), how in pairs}
