"""The measured cases: operations x named shapes x modes, and the tensors of each case.

Shapes: B images, L = H·W locations, C classes, D feature channels, S word size, K joint size (d_1), M size of f_a's
input (d_2), O output size of f_o, T propagation steps.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import isqrt
from typing import Any

import torch
from torch import Tensor

OPERATIONS = ("head", "semantic_attention", "graph_propagation", "label_scores")
MODES = ("infer", "train")
PRECISIONS: dict[str, tuple[torch.dtype, bool]] = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
}
"""Name -> dtype of inputs and weights, and whether PyTorch may round products of float32 to tf32."""


@dataclass(frozen=True)
class Shape:
    """A named setting of the paper; ``locations`` must be a square, as the map is [B, D, side, side]."""

    name: str
    classes: int
    locations: int = 81
    channels: int = 2048
    word_dim: int = 300
    joint_dim: int = 1024
    score_dim: int = 1024
    out_dim: int = 2048
    steps: int = 3

    def __post_init__(self) -> None:
        if isqrt(self.locations) ** 2 != self.locations:
            raise ValueError(f"Shape {self.name}: locations must be a square number, got {self.locations}")

    @property
    def side(self) -> int:
        return isqrt(self.locations)

    @property
    def low_rank(self) -> bool:
        """Whether identity 4 is used (docs/kernels.md): L < C·D/(C+D)."""
        return self.locations * (self.classes + self.channels) < self.classes * self.channels


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("voc", 20),
        Shape("voc-448", 20, locations=49),
        Shape("coco", 80),
        Shape("coco-448", 80, locations=49),
        Shape("vg500", 500),
        Shape("vg500-448", 500, locations=49),
        Shape("c1000", 1000),
        Shape("c2000", 2000),
        Shape("c5000", 5000),
        Shape("openimages", 9605),
    )
}


@dataclass(frozen=True)
class Case:
    """An operation at a shape, a batch, a mode and a precision on a device."""

    operation: str
    shape: Shape
    batch: int
    mode: str
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    tf32: bool = False  # products of float32 may be rounded to tf32, by PyTorch's own setting

    def __post_init__(self) -> None:
        _choose("operation", self.operation, OPERATIONS)
        _choose("mode", self.mode, MODES)
        if self.batch < 1:
            raise ValueError(f"Case: batch must be at least 1, got {self.batch}")
        if self.tf32 and self.dtype != torch.float32:
            raise ValueError(f"Case: tf32 is a way to multiply float32, not {self.dtype}")

    def __str__(self) -> str:
        sizes = f"C={self.shape.classes} L={self.shape.locations} B={self.batch}"
        precision = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.operation} {self.mode}, {self.shape.name}: {sizes}{precision}"

    @property
    def precision(self) -> str:
        """Its name in PRECISIONS ("float64" for the gate's truth, which is not in it)."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def factored(self) -> bool:
        """Whether graph_propagation and label_scores receive h0 with its factors (identity 4)."""
        return self.shape.low_rank

    def small(self) -> Case:
        """A smaller case for the parity check: the same C, L and use of identity 4, fewer channels, B at most 2."""
        channels = next((d for d in (128, 256, 512, 1024) if self._at(d).low_rank == self.shape.low_rank), None)
        shape = self.shape if channels is None or channels >= self.shape.channels else self._at(channels)
        return replace(self, shape=shape, batch=min(self.batch, 2))

    def tiny(self) -> Case:
        """A few classes and channels, same operation and mode: loads code and starts threads before a measurement."""
        shape = replace(self.shape, classes=4, channels=32, word_dim=8, joint_dim=16, score_dim=16, out_dim=32)
        return replace(self, shape=shape, batch=1)

    def _at(self, channels: int) -> Shape:
        small = channels // 2
        return replace(self.shape, channels=channels, out_dim=channels, joint_dim=small, score_dim=small, word_dim=50)


def select(
    operations: Iterable[str],
    shapes: Iterable[str],
    batches: Iterable[int],
    modes: Iterable[str],
    device: str = "cpu",
    precisions: Iterable[str] = ("float32",),
) -> Iterator[Case]:
    """The cases of every combination, by name.

    Raises:
        ValueError: an unknown operation, shape, mode or precision; tf32 on a CPU.
    """
    for operation, name, batch, precision, mode in product(operations, shapes, batches, precisions, modes):
        _choose("shape", name, tuple(SHAPES))
        _choose("precision", precision, tuple(PRECISIONS))
        if precision == "tf32" and device == "cpu":
            raise ValueError("precision tf32 is a mode of NVIDIA GPUs, and the device is cpu: use float32")
        dtype, tf32 = PRECISIONS[precision]
        yield Case(operation, SHAPES[name], batch, mode, dtype, device, tf32)


def describe(case: Case) -> dict[str, Any]:
    """A case as JSON-compatible values for another process; :func:`from_description` reads it."""
    names = ("operation", "batch", "mode", "precision", "device")
    return {"shape": asdict(case.shape)} | {name: getattr(case, name) for name in names}


def from_description(described: dict[str, Any]) -> Case:
    """The case of :func:`describe`; the shape may also be a name of SHAPES."""
    shape = described["shape"]
    dtype, tf32 = PRECISIONS[described.get("precision", "float32")]
    return Case(
        described["operation"],
        SHAPES[shape] if isinstance(shape, str) else Shape(**shape),
        described["batch"],
        described["mode"],
        dtype,
        described.get("device", "cpu"),
        tf32,
    )


@contextmanager
def multiplying(tf32: bool) -> Iterator[None]:
    """Within the block PyTorch multiplies float32 matrices as tf32, or exactly; then as before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def tensors(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs and weights of a case, drawn in float32 from the seed and the operation, in the case's dtype.

    The scales are those of a network at its start: features after a ReLU, weights uniform in ±1/√(fan in), adjacency a
    row-wise conditional probability with zero diagonal whose rows sum to about one. The gates have no biases, as in
    the paper.

    Returns:
        "feature_map" [B, D, H, W], "words" [C, S], "weight_u" [K, D], "weight_v" [K, S], "weight_p" [M, K],
        "bias_p" [M], "weight_a" [M], "bias_a" [] and the weights of the next two for the head;
        "u" [B, L, K], "v" [C, K], "p" [K], "features" [B, L, D] for semantic_attention;
        "h0" [B, C, D] (and, where identity 4 pays, its factors "attention" [B, C, L], "features" [B, L, D]),
        "adjacency" [C, C], "weight_zr" [2D, 3D], "weight_h" [D, 3D] for graph_propagation;
        "h_T", "h0", the factors, "weight_o" [O, 2D], "bias_o" [O], "weight_c" [C, O], "bias_c" [C] for label_scores.
    """
    draw = _Draw(torch.Generator().manual_seed(zlib.crc32(f"{case.operation} {seed}".encode())), case)
    out = {
        "head": draw.head,
        "semantic_attention": draw.attention,
        "graph_propagation": draw.propagation,
        "label_scores": draw.scores,
    }[case.operation]()
    return {name: value.to(case.device, stored(name, case)) for name, value in out.items()}


def stored(name: str, case: Case) -> torch.dtype:
    """The dtype of an input or weight: the case's, but at least float32 for attention and p, as the operations want."""
    return torch.promote_types(case.dtype, torch.float32) if name in ("attention", "p") else case.dtype


def output_shapes(case: Case) -> list[tuple[int, ...]]:
    """Shapes of the operation's outputs, in its order."""
    b, s = case.batch, case.shape
    shapes: dict[str, list[tuple[int, ...]]] = {
        "head": [(b, s.classes)],
        "semantic_attention": [(b, s.classes, s.channels), (b, s.classes, s.locations)],
        "graph_propagation": [(b, s.classes, s.channels)],
        "label_scores": [(b, s.classes)],
    }
    return shapes[case.operation]


@dataclass(frozen=True)
class Targets:
    """The project's targets for backend cpu at a case; None without a target."""

    over_products: float | None = None  # time over the products alone
    over_published_memory: float | None = None  # peak extra memory over that of the as-published form
    extra_bytes: int | None = None  # peak extra memory


def targets(case: Case) -> Targets:
    """The head in the paper's COCO setting at B = 4, and with 500 classes at B = 1."""
    where = (case.operation, case.shape.name, case.batch)
    if where == ("head", "coco", 4):
        return Targets(over_products=1.25 if case.mode == "infer" else 1.4, over_published_memory=1 / 8)
    if where == ("head", "vg500", 1):
        return Targets(extra_bytes=10**9)
    return Targets()


class _Draw:
    """Draws the tensors of one case from one generator."""

    def __init__(self, generator: torch.Generator, case: Case) -> None:
        self.generator, self.case, self.shape = generator, case, case.shape

    def uniform(self, *size: int) -> Tensor:
        """Uniform in ±1/√n, n the last extent."""
        return torch.empty(size).uniform_(-(size[-1] ** -0.5), size[-1] ** -0.5, generator=self.generator)

    def normal(self, *size: int) -> Tensor:
        return torch.empty(size).normal_(generator=self.generator)

    def head(self) -> dict[str, Tensor]:
        s, d = self.shape, self.shape.channels
        return {
            "feature_map": self.normal(self.case.batch, d, s.side, s.side).relu_(),
            "words": self.normal(s.classes, s.word_dim).mul_(0.5),
            "weight_u": self.uniform(s.joint_dim, d),
            "weight_v": self.uniform(s.joint_dim, s.word_dim),
            "weight_p": self.uniform(s.score_dim, s.joint_dim),
            "bias_p": self.uniform(1, s.score_dim)[0],
            "weight_a": self.uniform(s.score_dim),
            "bias_a": self.uniform(1)[0],
            **self._gates(),
            **self._output(),
        }

    def attention(self) -> dict[str, Tensor]:
        s, b = self.shape, self.case.batch
        return {
            "u": self.normal(b, s.locations, s.joint_dim).mul_(0.5),
            "v": self.normal(s.classes, s.joint_dim).mul_(0.5),
            "p": self.normal(s.joint_dim).mul_(2 * s.joint_dim**-0.5),
            "features": self.normal(b, s.locations, s.channels).relu_(),
        }

    def propagation(self) -> dict[str, Tensor]:
        return {**self._start(), **self._gates()}

    def scores(self) -> dict[str, Tensor]:
        start = self._start()
        return {"h_T": self.normal(*start["h0"].shape).mul_(0.5), **start, **self._output()}

    def _start(self) -> dict[str, Tensor]:
        """h0 as semantic_attention gives it, with its factors if the case has them."""
        s, b = self.shape, self.case.batch
        features = self.normal(b, s.locations, s.channels).relu_()
        attention = self.normal(b, s.classes, s.locations).softmax(-1)
        h0 = {"h0": attention @ features}
        return {**h0, "attention": attention, "features": features} if self.case.factored else h0

    def _gates(self) -> dict[str, Tensor]:
        c, d = self.shape.classes, self.shape.channels
        adjacency = torch.rand(c, c, generator=self.generator).mul_(2 / c)
        return {
            "adjacency": adjacency.fill_diagonal_(0),
            "weight_zr": self.uniform(2 * d, 3 * d),
            "weight_h": self.uniform(d, 3 * d),
        }

    def _output(self) -> dict[str, Tensor]:
        s = self.shape
        return {
            "weight_o": self.uniform(s.out_dim, 2 * s.channels),
            "bias_o": self.uniform(1, s.out_dim)[0],
            "weight_c": self.uniform(s.classes, s.out_dim),
            "bias_c": self.uniform(1, s.classes)[0],
        }


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
