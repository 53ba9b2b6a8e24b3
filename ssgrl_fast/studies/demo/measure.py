"""Parity, speed and peak memory of the fused head on this machine.

The head as published is :mod:`ssgrl_fast.reference.published`, on the same weights. Times are medians of interleaved
runs in one process. Memory is the peak resident size above what the process held just before, each form in a process
of its own: ``python -m ssgrl_fast.studies.demo.measure fused train 1``.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ssgrl_fast.backends import extension
from ssgrl_fast.models import SSGRL
from ssgrl_fast.modules import GraphPropagation, LabelClassifier, SemanticDecoupling, SSGRLHead
from ssgrl_fast.reference.published import PublishedWeights, published_head
from ssgrl_fast.testing import relative_error

FORMS = ("fused", "published")
RUNS = ("inference", "training")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_AGREE = 1e-4


@dataclass(frozen=True)
class HeadSize:
    """The measured head, by default the paper's at one 576×576 image (3.4): B L C D S K, T = 3."""

    images: int = 1
    height: int = 9
    width: int = 9
    classes: int = 80
    channels: int = 2048
    word_dim: int = 300
    joint_dim: int = 1024

    def __str__(self) -> str:
        cells = self.height * self.width
        return f"B={self.images} L={cells} C={self.classes} D={self.channels} K={self.joint_dim} T=3, float32"


# ---- parity ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parity:
    """Relative L2 errors of a head in float32 against the reference in float64, on the same features and weights.

    Attributes:
        forward: of the logits.
        gradient, worst: the largest of all gradients, and of what.
        plain_forward, plain_gradient, plain_worst: the same of the reference in float32.
    """

    forward: float
    gradient: float
    worst: str
    plain_forward: float
    plain_gradient: float
    plain_worst: str


def parity(model: SSGRL, images: Tensor) -> Parity:
    """Compare a trained model's head with the reference, forward and backward through a binary cross entropy.

    Args:
        model: in float32; its backbone makes the features.
        images: [B, 3, H, W].
    """
    with torch.no_grad():
        features = model.backbone(images)
    truth = _run_head(model.head, features.double(), "reference")
    plain = _compare(_run_head(model.head, features, "reference"), truth)
    fused = plain if extension.library() else _compare(_run_head(model.head, features, "cpu"), truth)
    return Parity(*fused, *plain)


def _run_head(head: SSGRLHead, features: Tensor, backend: str) -> dict[str, Tensor]:
    """Logits, and the gradients of the features and of every parameter, by name."""
    head = copy.deepcopy(head).to(features.dtype)
    for part in head.modules():
        if hasattr(part, "backend"):
            setattr(part, "backend", backend)  # noqa: B010
    features = features.detach().clone().requires_grad_()
    logits = head(features)
    targets = (torch.arange(logits.numel()).view_as(logits) % 3 == 0).to(logits.dtype)
    binary_cross_entropy_with_logits(logits, targets, reduction="sum").backward()
    grads = {name: parameter.grad for name, parameter in head.named_parameters()} | {"features": features.grad}
    return {"logits": logits.detach(), **{name: grad for name, grad in grads.items() if grad is not None}}


def _compare(result: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float, str]:
    errors = {name: relative_error(result[name], value) for name, value in truth.items()}
    forward = errors.pop("logits")
    worst = max(errors, key=lambda name: errors[name])
    return forward, errors[worst], worst


# ---- the two forms ---------------------------------------------------------------------------------------------------


class PublishedHead(nn.Module):
    """The head as published, with the weights of an SSGRLHead each stored as its layer: map [B, D, H, W] → [B, C]."""

    def __init__(self, head: SSGRLHead) -> None:
        super().__init__()
        joint, graph, out, dim = head.semantic_decoupling, head.graph_propagation, head.classifier, head.in_channels
        assert (
            isinstance(graph, GraphPropagation)
            and isinstance(out, LabelClassifier)
            and isinstance(joint, SemanticDecoupling)
        )
        assert head.mode == "paper"
        zr, h = graph.weight_zr, graph.weight_h
        layers = {
            "image": joint.weight_u,
            "word": joint.weight_v,
            "joint": joint.weight_p,
            "joint_bias": joint.bias_p,
            "score": joint.weight_a.view(1, -1),
            "score_bias": joint.bias_a.view(1),
            "w_z": zr[:dim, dim:],
            "u_z": zr[:dim, :dim],
            "w_r": zr[dim:, dim:],
            "u_r": zr[dim:, :dim],
            "w_h": h[:, : 2 * dim],
            "u_h": h[:, 2 * dim :],
            "output": out.weight_o,
            "output_bias": out.bias_o,
            "classifier": out.weight_c,
            "classifier_bias": out.bias_c,
        }
        self.layers = nn.ParameterDict({name: value.detach().clone() for name, value in layers.items()})
        self.words, self.adjacency = head.words, head.adjacency

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a map."""
        weights = PublishedWeights(**dict(self.layers), b_z=None, b_r=None, b_h=None)
        return published_head(x.flatten(2).transpose(1, 2).contiguous(), self.words, self.adjacency, weights)[0]


def make_head(size: HeadSize, backend: str) -> SSGRLHead:
    """A head of random weights, words and graph, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = torch.randn(size.classes, size.word_dim)
        graph = torch.rand(size.classes, size.classes).pow(4)
        return SSGRLHead(size.channels, words, graph.fill_diagonal_(0), joint_dim=size.joint_dim, backend=backend)


def make_step(head: nn.Module, size: HeadSize, run: str) -> Callable[[], Tensor]:
    """An inference, or a forward and backward that leaves the gradients of all weights and of the map."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(size.images, size.channels, size.height, size.width, generator=generator)
    if run == "inference":

        def infer() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = head(x)
            return logits

        return infer
    x.requires_grad_()

    def train() -> Tensor:
        logits: Tensor = head(x)
        for leaf in (x, *head.parameters()):
            leaf.grad = None
        logits.square().mean().backward()
        return logits.detach()

    return train


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(size: HeadSize, backend: str, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Median seconds, {run: {form: seconds}}, of interleaved runs of the two forms on the same weights.

    Raises:
        RuntimeError: the two forms disagree.
    """
    fused = make_head(size, backend)
    heads = {"fused": fused, "published": PublishedHead(fused)}
    medians: dict[str, dict[str, float]] = {}
    for run in RUNS:
        steps = {form: make_step(head, size, run) for form, head in heads.items()}
        first = {form: step() for form, step in steps.items()}
        if (error := relative_error(first["fused"], first["published"])) > _AGREE:
            raise RuntimeError(f"the fused head and the head as published differ by {error:.1e} (relative L2), {size}")
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(repeats):
            for form, step in steps.items():
                began = time.perf_counter()
                step()
                times[form].append(time.perf_counter() - began)
        medians[run] = {form: statistics.median(values) for form, values in times.items()}
        for head in heads.values():
            head.zero_grad(set_to_none=True)
    return medians


# ---- memory ----------------------------------------------------------------------------------------------------------


def memory(size: HeadSize, backend: str) -> dict[str, dict[str, int]] | str:
    """Peak bytes above weights, inputs and gradients, {run: {form: bytes}}, or why they cannot be measured here.

    Raises:
        RuntimeError: a measuring process failed; the message ends with its error output.
    """
    if not _STATUS.exists() or "VmHWM" not in _STATUS.read_text(encoding="ascii", errors="replace"):
        return "memory is metered through /proc/self/status, which only Linux has"
    peaks: dict[str, dict[str, int]] = {run: {} for run in RUNS}
    for run in RUNS:
        for form in FORMS:
            command = [
                sys.executable,
                "-m",
                "ssgrl_fast.studies.demo.measure",
                form,
                run,
                backend,
                json.dumps(asdict(size)),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 3:
                return done.stdout.strip()
            if done.returncode:
                raise RuntimeError(f"metering the memory of {form} {run} failed: {done.stderr.strip()[-2000:]}")
            peaks[run][form] = int(done.stdout)
    return peaks


def peak_bytes(form: str, run: str, backend: str, size: HeadSize) -> int:
    """Peak resident bytes of one step above what this process held before, its gradients and result left out."""
    tiny = HeadSize(1, 2, 2, 3, 8, 4, 4)
    _form(form, tiny, backend, run)()  # code pages and threads are not counted
    step = _form(form, size, backend, run)
    before = _kibibytes("VmRSS")
    _RESET.write_text("5", encoding="ascii")
    step()
    extra = 1024 * (_kibibytes("VmHWM") - before)
    return extra - (_gradient_bytes(form, size) if run == "training" else 0)


def _form(form: str, size: HeadSize, backend: str, run: str) -> Callable[[], Tensor]:
    fused = make_head(size, backend)
    return make_step(fused if form == "fused" else PublishedHead(fused), size, run)


def _gradient_bytes(form: str, size: HeadSize) -> int:
    weights = sum(parameter.nbytes for parameter in make_head(size, "reference").parameters())
    return weights + 4 * size.images * size.channels * size.height * size.width


def _kibibytes(entry: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1])
    raise RuntimeError(f"{_STATUS} has no {entry}")


def _main(form: str, run: str, backend: str, size: str) -> int:
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError as error:
        print(f"the peak cannot be set back through {_RESET}: {error}")
        return 3
    print(peak_bytes(form, run, backend, HeadSize(**json.loads(size))))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
