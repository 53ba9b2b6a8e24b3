"""Values, first and second derivatives of the equations where every activation saturates, against mpmath's digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import numpy as np
import operations
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from ssgrl_fast.reference import numerics

SCALE = 1e4  # of states and features
STEP = mpf(10) ** -40  # of the differences, which leave about 80 of the 160 digits
BOUND = 1e-14  # relative L2; from 1 - t² the second derivatives are 2e-7, 2e-6 and 9e-11 off
tanh, sigmoid, exp = (
    np.vectorize(f, otypes=[object]) for f in (mpmath.tanh, lambda x: 1 / (1 + mpmath.exp(-x)), mpmath.exp)
)


@pytest.fixture(autouse=True)
def digits() -> Any:
    with mpmath.workdps(160):
        yield


def wide(tensor: Tensor) -> Any:
    return np.vectorize(mpf, otypes=[object])(tensor.detach().numpy())


def scores(h_T: Any, h0: Any, weight_o: Any, bias_o: Any, weight_c: Any, bias_c: Any) -> Any:
    """Eq. 10."""
    return (tanh(np.concatenate([h_T, h0], -1) @ weight_o.T + bias_o) * weight_c).sum(-1) + bias_c


def propagation(h0: Any, adjacency: Any, weight_zr: Any, bias_zr: Any, weight_h: Any, bias_h: Any) -> Any:
    """Two steps of eq. 7-9."""
    h = h0
    for _ in range(2):
        messages = np.concatenate([np.stack([graph @ x for x in h]) for graph in (adjacency, adjacency.T)], -1)
        z, r = np.split(sigmoid(np.concatenate([h, messages], -1) @ weight_zr.T + bias_zr), 2, -1)
        h = (1 - z) * h + z * tanh(np.concatenate([messages, r * h], -1) @ weight_h.T + bias_h)
    return h


def attention(u: Any, v: Any, p: Any, features: Any) -> Any:
    """Eq. 3-6; the attention needs no care here, its scores are small."""
    weights = exp(tanh(u[:, None] * v[:, None]) @ p)
    weights = weights / weights.sum(-1, keepdims=True)
    return np.concatenate([np.stack([w @ f for w, f in zip(weights, features, strict=True)]).ravel(), weights.ravel()])


def draw() -> dict[str, tuple[Callable[..., Any], dict[str, Tensor]]]:
    """Each operation's equations and inputs: states of 10⁴, and every activation at 10 to 18 on either side."""
    generator = torch.Generator().manual_seed(3)

    def r(*shape: int, scale: float = 1.0, around: float = 0.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale + around

    far, graph = 14.0, torch.tensor([[0.0, 0.7], [0.4, 0.0]], dtype=torch.float64)
    output = {"weight_o": r(2, 4, scale=1 / SCALE), "bias_o": r(2) + torch.tensor([far, -far])}
    gates = {"weight_zr": r(4, 6, scale=1 / SCALE), "bias_zr": r(4) + torch.tensor([far, -far, far, -far])}
    candidate = {"weight_h": r(2, 6, scale=1 / SCALE), "bias_h": r(2, around=-far)}
    start = {"h0": r(1, 2, 2, scale=SCALE), "adjacency": graph}
    states = {"h_T": r(2, 2, 2, scale=SCALE), "h0": r(2, 2, 2, scale=SCALE)}
    joint = {"u": r(1, 2, 3).sign() * 7 + r(1, 2, 3, scale=0.5), "v": r(2, 3, scale=0.1, around=2.0), "p": r(3)}
    return {
        "label_scores": (scores, {**states, **output, "weight_c": r(2, 2), "bias_c": r(2)}),
        "graph_propagation": (propagation, {**start, **gates, **candidate}),
        "semantic_attention": (attention, {**joint, "features": r(1, 2, 2, scale=SCALE)}),
    }


def slopes(equations: Callable[..., Any], inputs: Mapping[str, Tensor], upstream: Any, along: Any, name: str) -> Any:
    """By differences: the gradient G of one input of f = upstream · outputs, and of Σ along · G of all inputs."""
    first, second = (np.zeros(inputs[name].shape, object) for _ in range(2))
    for index in np.ndindex(first.shape):
        at = {}
        for own in (1, -1):
            for all_ in (1, 0, -1):
                moved = {key: wide(tensor) + all_ * STEP * along[key] for key, tensor in inputs.items()}
                moved[name][index] += own * STEP
                at[own, all_] = (equations(**moved).ravel() * upstream).sum()
        first[index] = (at[1, 0] - at[-1, 0]) / (2 * STEP)
        second[index] = (at[1, 1] - at[1, -1] - at[-1, 1] + at[-1, -1]) / (4 * STEP**2)
    return first, second


def errors(stem: str, call: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """Relative L2 errors of the outputs, of each gradient, and of the gradients of the gradients."""
    equations, inputs = draw()[stem]
    leaves = {name: t if name == "adjacency" else t.clone().requires_grad_() for name, t in inputs.items()}
    asked = [name for name, t in leaves.items() if t.requires_grad]
    outputs = torch.cat([output.reshape(-1) for output in call(leaves)])
    generator = torch.Generator().manual_seed(4)
    upstream = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    along = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in inputs.items()}
    along = {n: t if n in asked else torch.zeros_like(t) for n, t in along.items()}
    first = torch.autograd.grad(outputs, [leaves[n] for n in asked], upstream, create_graph=True)
    reached = [(g, along[n]) for n, g in zip(asked, first, strict=True) if g.requires_grad]
    grads, weights = zip(*reached, strict=True)
    second = torch.autograd.grad(grads, [leaves[n] for n in asked], weights, allow_unused=True)
    wanted, far = {name: wide(t) for name, t in along.items()}, wide(upstream)
    found = {"outputs": relative(outputs, equations(**{n: wide(t) for n, t in inputs.items()}).ravel())}
    for name, one, two in zip(asked, first, second, strict=True):
        true_one, true_two = slopes(equations, inputs, far, wanted, name)
        found[f"gradient {name}"] = relative(one, true_one)
        if two is not None:
            found[f"second gradient {name}"] = relative(two, true_two)
        else:
            assert abs(true_two).max() < 1e-60, name
    return found


def relative(found: Tensor, truth: Any) -> float:
    return float(mpmath.sqrt(((wide(found) - truth) ** 2).sum() / (truth**2).sum()))


@pytest.mark.parametrize("way", ["equations", pytest.param("backends", marks=pytest.mark.thorough)])
@operations.by_each_stem
def test_second_derivatives_keep_their_digits(stem: str, way: str) -> None:
    """By autograd over the equations, and by the double backward behind the backends' own first one."""
    form = operations.plain if way == "equations" else lambda *given: operations.fused(*given, None)
    found = errors(stem, form(stem, operations.PLAIN, 2))
    assert len(found) >= 9
    assert max(found.values()) <= BOUND, {name: f"{error:.1e}" for name, error in found.items()}


@pytest.mark.thorough
@operations.by_each_stem
def test_pytorchs_own_activations_lose_them(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs above are hostile: with torch.tanh and torch.sigmoid the same check fails by far."""
    monkeypatch.setattr(numerics, "_is_exact", lambda x: False)
    found = errors(stem, operations.plain(stem, operations.PLAIN, 2))
    assert max(found.values()) > 1e3 * BOUND


@pytest.mark.parametrize("x", [0.0, 1e-30, 0.3, 0.5, 3.0, 20.0, 700.0])
def test_derivatives_at_single_points(x: float) -> None:
    """Zero, where |x| has no slope, both sides of the seam, and far out; on both sides, to the third order."""
    for value in (x, -x):
        for ours, theirs in (
            (numerics.tanh, mpmath.tanh),
            (lambda t: numerics.sigmoid_pair(t)[0], lambda t: 1 / (1 + mpmath.exp(-t))),
            (lambda t: numerics.sigmoid_pair(t)[1], lambda t: 1 / (1 + mpmath.exp(t))),
        ):
            at = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            one = ours(at)
            for order in range(4):
                truth = mpmath.diff(theirs, mpf(value), order, h=mpf(10) ** -30)
                assert abs(mpf(one.item()) - truth) <= 1e-14 * abs(truth) + 1e-15 * (abs(value) < 0.5) + 1e-300
                if order < 3:
                    (one,) = torch.autograd.grad(one, at, create_graph=True)
