"""The classes Rival and Program: a program is built from the tensors of a case; one step of it is timed.

Shapes: B images, L = H·W locations, C classes, D channels, S word size, K joint size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.harness import cases
from benchmarks.harness.cases import Case

Tensors = Mapping[str, Tensor]
LOOSE = 3.0
"""The allowed error of a rival in the parity check, as a multiple of the plain form's error."""
CONSTANTS = ("words", "adjacency")
"""Inputs without a gradient in a training step."""
CANCELLED = ("bias_p", "bias_a")
"""Biases that the softmax cancels (identity 1): their gradient is exactly zero, and collapsed forms do not use them."""


@dataclass(frozen=True)
class Program:
    """A rival at one case: ``forward()`` gives the outputs; ``leaves`` get gradients in a training step.

    ``collect`` converts gradients by leaf name to the names and layouts of the case's tensors, for the parity check.
    ``around`` returns the context manager of a whole step, for a program with its own precision setting.
    """

    forward: Callable[[], tuple[Tensor, ...]]
    leaves: dict[str, Tensor]
    collect: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Rival:
    """An implementation; ``refuses(case)`` is the reason why it cannot run, or None.

    Rivals for which ``applies(case)`` is False are only measured if the command line names them. ``loose`` is the
    allowed error in the parity check as a multiple of the plain form's error, for rivals that are not backends.
    """

    name: str
    letter: str
    label: str
    build: Callable[[Case, Tensors], Program]
    refuses: Callable[[Case], str | None]
    compiled: bool = False
    optional: bool = False
    ours: bool = False
    loose: float = LOOSE
    applies: Callable[[Case], bool] = lambda case: True


def step(program: Program, case: Case) -> Callable[[], Sequence[Tensor]]:
    """The timed function: a forward without autograd, or a forward and the gradients of leaves, which it returns."""
    if case.mode == "infer":

        def infer() -> Sequence[Tensor]:
            with torch.inference_mode(), program.around():
                program.forward()
            return ()

        return infer
    upstream, leaves = cotangents(case), list(program.leaves.values())

    def train() -> Sequence[Tensor]:
        with program.around():
            return torch.autograd.grad(program.forward(), leaves, upstream)

    return train


def cotangents(case: Case) -> list[Tensor]:
    """Gradients of the outputs: standard normal, drawn in float32 from a fixed seed, the same for every rival."""
    generator = torch.Generator().manual_seed(7)
    shapes = cases.output_shapes(case)
    return [torch.empty(shape).normal_(generator=generator).to(case.device, case.dtype) for shape in shapes]


def leaves_of(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors as leaves of autograd (same storage); constants, and h0 if its factors are given, are not."""
    fixed = (*CONSTANTS, *CANCELLED, "h0") if "attention" in tensors else (*CONSTANTS, *CANCELLED)
    return {name: value.detach().requires_grad_(name not in fixed) for name, value in tensors.items()}


def as_program(forward: Callable[[Tensors], tuple[Tensor, ...]], tensors: Tensors) -> Program:
    """A program whose leaves have the names of the case's tensors."""
    inputs = leaves_of(tensors)
    return Program(lambda: forward(inputs), {name: value for name, value in inputs.items() if value.requires_grad})


def joint_inputs(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u [B, L, K], v [C, K], p [K] and features [B, L, D] of the head's inputs, P and f_a folded (identity 1)."""
    features = t["feature_map"].flatten(2).transpose(1, 2)
    return linear(features, t["weight_u"]), linear(t["words"], t["weight_v"]), t["weight_a"] @ t["weight_p"], features


def start_state(t: Tensors) -> Tensor:
    """h0 [B, C, D], computed from its factors if the case has them, so that gradients reach them."""
    return t["attention"].to(t["features"].dtype) @ t["features"] if "attention" in t else t["h0"]


def refuses_compile(case: Case) -> str | None:
    """Why torch.compile cannot run on the case's device, or None."""
    if case.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "torch.compile needs a C++ compiler, and none of c++, g++, clang++ is on the path"
    return None
