"""Groups of AdamW, the cosine schedule, and schedules without an end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ssgrl_fast.training.optim import cosine_share, make_optimizer, make_schedule
from ssgrl_fast.training.options import OptimizerOptions, ScheduleOptions

OPTIONS = OptimizerOptions(optimizer="adamw", lr=1e-3, head_lr=2e-3, betas=(0.9, 0.99), weight_decay=0.1, freeze="none")
COSINE = ScheduleOptions(schedule="cosine")


def test_adamw_decays_matrices_and_leaves_vectors_alone() -> None:
    head, body = nn.Linear(3, 2), nn.BatchNorm1d(3)
    optimizer = make_optimizer(head.parameters(), body.parameters(), OPTIONS)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(2e-3, 0.1, 1), (2e-3, 0.0, 1), (1e-3, 0.0, 2)]
    before = [parameter.detach().clone() for parameter in head.parameters()]
    for parameter in (*head.parameters(), *body.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(head.weight, before[0] * (1 - 2e-3 * 0.1), rtol=1e-6, atol=0)
    assert torch.equal(head.bias, before[1]) and torch.equal(body.weight, torch.ones(3))


def test_adam_keeps_one_group_a_part() -> None:
    head, body = nn.Linear(3, 2), nn.BatchNorm1d(3)
    body.requires_grad_(False)
    optimizer = make_optimizer(head.parameters(), body.parameters(), replace(OPTIONS, optimizer="adam"))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(2e-3, 0.1)]
    with pytest.raises(ValueError, match="freeze='all' leaves no parameter to train"):
        make_optimizer([], body.parameters(), replace(OPTIONS, freeze="all"))
    with pytest.raises(ValueError, match="optimizer must be one of"):
        make_optimizer(head.parameters(), [], replace(OPTIONS, optimizer="sgd"))


def test_cosine_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    optimizer = make_optimizer(nn.Linear(3, 2).parameters(), [], replace(OPTIONS, head_lr=None))
    schedule = make_schedule(optimizer, COSINE, lambda: 100)
    assert schedule is not None
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [1e-3 * (step + 1) / 6 for step in range(5)]
    expected += [5e-4 * (1 + math.cos(math.pi * step / 95)) for step in range(95)]
    assert rates == pytest.approx(expected, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert cosine_share(0, 1) == pytest.approx(0.5) and cosine_share(1, 1) == 1.0  # of a training of one step


def test_a_schedule_over_all_steps_needs_an_end() -> None:
    optimizer = make_optimizer(nn.Linear(3, 2).parameters(), [], OPTIONS)
    for kind in ("onecycle", "cosine"):
        with pytest.raises(ValueError, match=f"schedule '{kind}' needs an end of the training"):
            make_schedule(optimizer, ScheduleOptions(schedule=kind), lambda: math.inf)
    assert make_schedule(optimizer, ScheduleOptions(schedule="constant"), lambda: math.inf) is None
