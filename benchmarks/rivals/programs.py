"""What a rival is: a program built from a case's tensors, and how one step of it is run.

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
"""How many times the plain form's error a rival may err in the gate."""
CONSTANTS = ("words", "adjacency")
"""What gets no gradient in a training step."""
CANCELLED = ("bias_p", "bias_a")
"""What the softmax cancels (identity 1): its gradient is exactly zero, and a form with p collapsed does without it."""


@dataclass(frozen=True)
class Program:
    """A rival at one case: ``forward()`` gives the outputs; ``leaves`` get gradients in a training step.

    ``collect`` brings gradients by leaf name to the registry's names and layouts, for the gate. ``around`` makes the
    block that a whole step runs in, for a program with a precision setting of its own.
    """

    forward: Callable[[], tuple[Tensor, ...]]
    leaves: dict[str, Tensor]
    collect: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    around: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Rival:
    """``refuses(case)`` is None where it can run, otherwise the reason why not.

    A rival belongs to a case only where ``applies`` says so; the others are left out of it unless they were named.
    ``loose`` is how many times the plain form's error it may err in the gate, where it is none of the backends.
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
    """The tensors as leaves of autograd (same storage); constants and, beside its factors, the cached h0 are none."""
    fixed = (*CONSTANTS, *CANCELLED, "h0") if "attention" in tensors else (*CONSTANTS, *CANCELLED)
    return {name: value.detach().requires_grad_(name not in fixed) for name, value in tensors.items()}


def as_program(forward: Callable[[Tensors], tuple[Tensor, ...]], tensors: Tensors) -> Program:
    """A program whose leaves carry the registry's names."""
    given = leaves_of(tensors)
    return Program(lambda: forward(given), {name: value for name, value in given.items() if value.requires_grad})


def joint_inputs(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u [B, L, K], v [C, K], p [K] and features [B, L, D] of the head's inputs, P and f_a folded (identity 1)."""
    features = t["feature_map"].flatten(2).transpose(1, 2)
    return linear(features, t["weight_u"]), linear(t["words"], t["weight_v"]), t["weight_a"] @ t["weight_p"], features


def start_state(t: Tensors) -> Tensor:
    """h0 [B, C, D], from its factors where they are given and gradients have to reach them."""
    return t["attention"].to(t["features"].dtype) @ t["features"] if "attention" in t else t["h0"]


def refuses_compile(case: Case) -> str | None:
    """Why torch.compile cannot run on the case's device, or None."""
    if case.device == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return "torch.compile needs a C++ compiler, and none of c++, g++, clang++ is on the path"
    return None
