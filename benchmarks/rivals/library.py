"""Rival (d): this library, one rival per backend, and its head after ``accelerate``, ``capture`` and ``quantize``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import cases
from benchmarks.harness.cases import Case
from benchmarks.rivals.accelerated import build_accelerated, refuses_accelerated
from benchmarks.rivals.programs import Program, Rival, Tensors, leaves_of
from ssgrl_fast import functional
from ssgrl_fast.backends import explain, names
from ssgrl_fast.models.prepare import prepare_head
from ssgrl_fast.modules import SSGRLHead


def _build_ours(backend: str, case: Case, tensors: Tensors) -> Program:
    if case.operation == "head":
        return _build_head(backend, case, tensors)
    inputs = leaves_of(tensors)
    leaves = {name: value for name, value in inputs.items() if value.requires_grad}
    factors: dict[str, Any] = {
        "attention": inputs.get("attention"),
        "features": inputs.get("features"),
        "backend": backend,
    }

    def attention() -> tuple[Tensor, ...]:
        return functional.semantic_attention(inputs["u"], inputs["v"], inputs["p"], inputs["features"], backend=backend)

    def propagation() -> tuple[Tensor, ...]:
        weights = (inputs["weight_zr"], None, inputs["weight_h"], None)
        steps = case.shape.steps
        return (functional.graph_propagation(inputs["h0"], inputs["adjacency"], *weights, steps=steps, **factors),)

    def scores() -> tuple[Tensor, ...]:
        weights = (inputs["weight_o"], inputs["bias_o"], inputs["weight_c"], inputs["bias_c"])
        return (functional.label_scores(inputs["h_T"], inputs["h0"], *weights, **factors),)

    forms = {"semantic_attention": attention, "graph_propagation": propagation, "label_scores": scores}
    return Program(forms[case.operation], leaves)


def head_module(backend: str | None, case: Case, tensors: Tensors) -> SSGRLHead:
    """SSGRLHead as a user has it, on the weights of the case (not copied)."""
    s = case.shape
    head = SSGRLHead(
        s.channels,
        tensors["words"],
        tensors["adjacency"],
        joint_dim=s.joint_dim,
        attention_dim=s.score_dim,
        out_dim=s.out_dim,
        steps=s.steps,
        mode="paper",
        backend=backend,
    )
    own = {name: tensors[name.rpartition(".")[2]].view(value.shape) for name, value in head.state_dict().items()}
    head.load_state_dict(own, assign=True)
    return head


def _build_head(backend: str, case: Case, tensors: Tensors) -> Program:
    """The head on a feature map."""
    head = head_module(backend, case, tensors)
    return _inferring(head, head, tensors)


def prepared_step(backend: str, case: Case, tensors: Tensors) -> Callable[[], Tensor]:
    """An inference in the form whose kernels benchmarks.reckon counts: a prepared head on a channels_last map."""
    head = prepare_head(head_module(backend, case, tensors))
    feature_map = tensors["feature_map"].contiguous(memory_format=torch.channels_last)
    return torch.no_grad()(lambda: head(feature_map))


def _build_captured(case: Case, tensors: Tensors) -> Program:
    """The prepared head whose inference is one CUDA graph (SSGRLHead.capture)."""
    head = head_module(None, case, tensors)
    return _inferring(head, prepare_head(head).capture(tensors["feature_map"]), tensors)


def _build_fp8(backend: str, case: Case, tensors: Tensors) -> Program:
    """The head whose inference multiplies in e4m3 (SSGRLHead.quantize)."""
    head = head_module(backend, case, tensors)
    return _inferring(head, head.quantize("fp8"), tensors)


def _inferring(head: SSGRLHead, form: Callable[[Tensor], Tensor], tensors: Tensors) -> Program:
    """A head with another form for inference; with autograd the head itself runs. Every parameter gets a gradient."""
    feature_map = tensors["feature_map"].detach().requires_grad_()
    leaves = {name.rpartition(".")[2]: parameter for name, parameter in head.named_parameters()}

    def forward() -> tuple[Tensor, ...]:
        return ((form if torch.is_inference_mode_enabled() else head)(feature_map),)

    def collect(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.view(tensors[name].shape) for name, value in gradients.items()}

    return Program(forward, {"feature_map": feature_map, **leaves}, collect)


def _refuses_captured(case: Case) -> str | None:
    if case.device != "cuda":
        return "a CUDA graph is captured on a GPU only"
    return None if case.operation == "head" else "only the whole head can be captured"


def _refuses_fp8(case: Case) -> str | None:
    if case.operation != "head" or case.dtype != torch.bfloat16:
        return "only the whole head in bfloat16 is quantized"
    rows = [row for row in explain(case.device) if row.backend == "cuda"]
    return next((row.reason for row in rows if not row.usable), None)


def _refuses_backend(backend: str, case: Case) -> str | None:
    """The backend's own reason against any of the case's operations."""
    wanted = cases.OPERATIONS[1:] if case.operation == "head" else (case.operation,)
    for row in explain(case.device):
        if row.backend == backend and row.operation in wanted and case.dtype not in row.dtypes:
            return row.reason or f"{backend} does not run {str(case.dtype).removeprefix('torch.')}"
    return None


def _ours(backend: str) -> Rival:
    build, refuses = partial(_build_ours, backend), partial(_refuses_backend, backend)
    return Rival(backend, "d", f"ssgrl_fast, {backend}", build, refuses, ours=True)


LIBRARY = (
    *(_ours(name) for name in reversed(names())),
    Rival(
        "accelerated",
        "d",
        "as published, accelerate()",
        build_accelerated,
        refuses_accelerated,
        applies=lambda case: refuses_accelerated(case) is None,
    ),
    Rival(
        "captured",
        "d",
        "ssgrl_fast, captured head",
        _build_captured,
        _refuses_captured,
        applies=lambda case: _refuses_captured(case) is None and case.mode == "infer",
    ),
    Rival(
        "fp8",
        "d",
        "ssgrl_fast, cuda, quantized",
        partial(_build_fp8, "cuda"),
        _refuses_fp8,
        loose=16.0,  # operands of 4 significant bits beside bfloat16's 8
        applies=lambda case: _refuses_fp8(case) is None and case.mode == "infer",
    ),
)


def fastest(case: Case) -> str:
    """The backend that the library would choose for a case: the first of its list that can run it."""
    return next(name for name in names() if _refuses_backend(name, case) is None)
